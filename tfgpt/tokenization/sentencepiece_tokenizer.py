"""SentencePiece tokenizers (Llama 2, Mistral v0.1)."""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from tfgpt.common.atomic_files import atomic_write, read_json, sha256_of_json, write_json, write_text
from tfgpt.common.command_line import shell_command
from tfgpt.common.errors import UserError
from tfgpt.tokenization.special_tokens import KEY, SpecialTokens, choose_special_tokens, token_name
from tfgpt.tokenization.tokenizer import Tokenizer

BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
SPACE = "▁"  # U+2581
FILE = "tokenizer.model"


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model with the interface of `Tokenizer`; in a graph `in_graph.sentencepiece` gives the same ids.

    It is not lossless: most models put a space before every text, some normalize text (NFKC), and bytes that are not
    UTF-8 become U+FFFD. `decode` removes the space before the text, as `transformers` does; `token_bytes` keeps it.

    Args:
        model: content of `tokenizer.model`.
        origin, roles, config: as in `Tokenizer`.
        added: special tokens after the model's own, name → id.
        reference: content of the `tokenizer.json` that `transformers` reads, or None.

    Example:

    >>> from tfgpt.tokenization.gguf_tokenizer import Piece, PieceType, bpe_model
    >>> pieces = [Piece("<unk>", 0, PieceType.UNKNOWN), Piece("</s>", 0, PieceType.CONTROL)]
    >>> pieces += [Piece(text, -rank, PieceType.NORMAL) for rank, text in enumerate(["▁a", "▁", "a"])]
    >>> roles = SpecialTokens("</s>", "<unk>", "</s>", "</s>")
    >>> SentencePieceTokenizer(bpe_model(pieces, {"unk": 0}, True), "model", roles, {}).encode("a a")
    array([2, 2], dtype=int32)
    """

    def __init__(
        self,
        model: bytes,
        origin: str,
        roles: SpecialTokens,
        config: dict[str, Any],
        added: dict[str, int] | None = None,
        reference: str | None = None,
    ):
        self.model, self.origin, self.roles, self.config = model, origin, roles, config
        self.added, self.reference = dict(added or {}), reference
        self.processor = load_processor(model, origin)
        size = self.processor.get_piece_size()
        self.special_tokens = {**special_pieces(self.processor), **self.added}
        self.vocabulary_size = max([size, *(identifier + 1 for identifier in self.added.values())])
        self._token_bytes = [_piece_bytes(self.processor, identifier) for identifier in range(size)]
        self._token_bytes += [b""] * (self.vocabulary_size - size)
        self._assign_roles(roles, self.special_tokens)
        self.merges, self.missing_bytes = [], []
        self.prefix = b" " if self.processor.id_to_piece(self.processor.encode("a")[0]).startswith(SPACE) else b""

    @classmethod
    def load(cls, path: str | os.PathLike) -> SentencePieceTokenizer:
        """Reads a directory that `save` wrote, or raises UserError."""
        directory = Path(path).expanduser()
        config = read_json(directory / "tokenizer_config.json")
        if not isinstance(config, dict) or KEY not in config:
            raise UserError(
                f"{directory}: has a SentencePiece model that was not converted; "
                f"{shell_command('convert', f'--source={directory}', '--output=MODEL')}"
            )
        roles = dict(config.pop(KEY))
        reference = directory / "tokenizer.json"
        try:
            return cls(
                (directory / FILE).read_bytes(),
                str(directory / FILE),
                added=roles.pop("added", {}),
                roles=SpecialTokens.from_dict(roles),
                config=config,
                reference=reference.read_text(encoding="utf-8") if reference.is_file() else None,
            )
        except (OSError, TypeError, KeyError) as error:
            raise UserError(f"{directory}: its tokenizer is not complete ({error})") from error

    def save(self, directory: str | os.PathLike, model_max_length: int | None = None) -> None:
        """Writes `tokenizer.model`, `tokenizer_config.json` and, if there is one, `tokenizer.json`."""
        assert self.roles is not None
        config = {**self.config, KEY: {**self.roles.to_dict(), "added": self.added}}
        if model_max_length is not None:
            config["model_max_length"] = model_max_length
        with atomic_write(Path(directory) / FILE) as temporary:
            temporary.write_bytes(self.model)
        if self.reference is not None:
            write_text(Path(directory) / "tokenizer.json", self.reference)
        write_json(Path(directory) / "tokenizer_config.json", config)

    def to_json(self) -> str:
        raise UserError(f"{self.origin}: a SentencePiece model has no tokenizer.json")

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the model and the roles."""
        assert self.roles is not None
        return sha256_of_json([hashlib.sha256(self.model).hexdigest(), self.roles.to_dict(), self.added])

    in_graph_limitation = None  # type: ignore[assignment]

    def encode(self, text: str | bytes) -> np.ndarray:
        return np.array(self.processor.encode(_valid_text(text)), np.int32)

    def encode_batch(self, texts: Sequence[str | bytes]) -> list[np.ndarray]:
        encoded = self.processor.encode([_valid_text(text) for text in texts], num_threads=-1)
        return [np.array(ids, np.int32) for ids in encoded]

    def decode_bytes(self, ids: Iterable[int] | np.ndarray, skip_special_tokens: bool = True) -> bytes:
        return super().decode_bytes(ids, skip_special_tokens).removeprefix(self.prefix)


def pretrained_sentencepiece(
    model: bytes,
    origin: str,
    config: dict[str, Any],
    stop_ids: Iterable[int],
    added: dict[str, int] | None = None,
    reference: str | None = None,
) -> SentencePieceTokenizer:
    """Returns a tokenizer of another program with roles for its tokens; ValueError if none can play one.

    Args:
        model, origin, reference: as in `SentencePieceTokenizer`.
        config: content of `tokenizer_config.json` of `transformers`.
        stop_ids: ids that end a generated text.
        added: name → id of added tokens; those that are pieces of the model are left out.
    """
    processor = load_processor(model, origin)
    added = {name: number for name, number in (added or {}).items() if number >= processor.get_piece_size()}
    specials = {**special_pieces(processor), **added}
    begins_with_bos = config.get("add_bos_token", True) is not False
    roles = choose_special_tokens(
        specials,
        end=token_name(config.get("eos_token")) or "</s>",
        padding=token_name(config.get("pad_token")),
        start_of_text=(token_name(config.get("bos_token")) or "<s>") if begins_with_bos else None,
        chat_template=str(config.get("chat_template", "")),
        stop_ids=stop_ids,
    )
    return SentencePieceTokenizer(model, origin, roles, config, added, reference)


def load_processor(model: bytes, origin: str) -> sentencepiece.SentencePieceProcessor:
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.load_from_serialized_proto(model)
    except (RuntimeError, OSError) as error:
        raise UserError(f"{origin}: is not a SentencePiece model") from error
    return processor


def special_pieces(processor: sentencepiece.SentencePieceProcessor) -> dict[str, int]:
    return {
        processor.id_to_piece(identifier): identifier
        for identifier in range(processor.get_piece_size())
        if processor.is_control(identifier) or processor.is_unknown(identifier)
    }


def _piece_bytes(processor: sentencepiece.SentencePieceProcessor, identifier: int) -> bytes:
    if processor.is_control(identifier) or processor.is_unknown(identifier) or processor.is_unused(identifier):
        return b""
    piece = processor.id_to_piece(identifier)
    byte = BYTE_PIECE.fullmatch(piece)
    if byte and processor.is_byte(identifier):
        return bytes([int(byte.group(1), 16)])
    return piece.replace(SPACE, " ").encode()


def _valid_text(text: str | bytes) -> str:
    content = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return content.decode("utf-8", "replace")
