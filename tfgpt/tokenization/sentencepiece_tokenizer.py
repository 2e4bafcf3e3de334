"""SentencePiece models (Llama 2, Mistral v0.1): the same interface as `Tokenizer`, over a `tokenizer.model`.

Outside of a graph the ids come from the `sentencepiece` package, in a graph from `tensorflow_text`
(`in_graph_sentencepiece`); both hold the same library. Unlike our own tokenizers these are not without loss: most
models put a space before every text, some rewrite it (NFKC), and bytes that are not UTF-8 become U+FFFD.
"""

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
SPACE = "▁"
"""How SentencePiece writes a space (U+2581)."""

FILE = "tokenizer.model"


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model with the parts that its tokens play.

    `token_bytes` gives what each id adds to a text, the space before a word included. `decode` leaves the space out
    that the model puts before every text, as `transformers` does; texts that go on from another are joined from
    `token_bytes`.

    Args:
        model: the content of `tokenizer.model`.
        origin: what messages call it.
        roles, config: as `Tokenizer`'s.
        added: special tokens behind the model's own, name → id.
        reference: the content of a `tokenizer.json` that `transformers` reads instead; None where there is none.

    Raises:
        UserError: it is no SentencePiece model.
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
        self.processor = processor_of(model, origin)
        size = self.processor.get_piece_size()
        self.special_tokens = {**special_pieces(self.processor), **self.added}
        self.vocabulary_size = max([size, *(identifier + 1 for identifier in self.added.values())])
        self._token_bytes = [piece_bytes(self.processor, identifier) for identifier in range(size)]
        self._token_bytes += [b""] * (self.vocabulary_size - size)
        self._assign(roles, self.special_tokens)
        self.chat_template = config.get("chat_template") or ""
        self.merges, self.missing_bytes = [], []
        # The space that the model puts before a text.
        self.prefix = b" " if self.processor.id_to_piece(self.processor.encode("a")[0]).startswith(SPACE) else b""

    @classmethod
    def load(cls, path: str | os.PathLike) -> SentencePieceTokenizer:
        """Reads a directory that `save` wrote.

        Raises:
            UserError: a file is missing or damaged.
        """
        directory = Path(path).expanduser()
        config = read_json(directory / "tokenizer_config.json")
        if not isinstance(config, dict) or KEY not in config:
            raise UserError(
                f"{directory}: has a SentencePiece model that was not converted; "
                f"{shell_command('convert', f'--source={directory}', '--output=MODEL')}"
            )
        own = dict(config.pop(KEY))
        reference = directory / "tokenizer.json"
        try:
            return cls(
                (directory / FILE).read_bytes(),
                str(directory / FILE),
                added=own.pop("added", {}),
                roles=SpecialTokens.from_dict(own),
                config=config,
                reference=reference.read_text(encoding="utf-8") if reference.is_file() else None,
            )
        except (OSError, TypeError, KeyError) as error:
            raise UserError(f"{directory}: its tokenizer is not whole ({error})") from error

    def save(self, directory: str | os.PathLike, model_max_length: int | None = None) -> None:
        """Writes `tokenizer.model`, `tokenizer_config.json` and, where it came with one, `tokenizer.json`."""
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
        raise UserError(f"{self.origin}: a SentencePiece model is no tokenizer.json")

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the model and of what parts its tokens play."""
        assert self.roles is not None
        return sha256_of_json([hashlib.sha256(self.model).hexdigest(), self.roles.to_dict(), self.added])

    @property
    def why_reference_only(self) -> str | None:  # type: ignore[override]
        """Why tiktoken does not give these ids."""
        return "it is a SentencePiece model"

    @property
    def why_not_in_graph(self) -> str | None:  # type: ignore[override]
        """None: `in_graph_sentencepiece` gives the ids."""
        return None

    def encode(self, text: str | bytes) -> np.ndarray:
        """The ids of one text; [n] int32. Special tokens never come out."""
        return np.array(self.processor.encode(valid_text(text)), np.int32)

    def encode_batch(self, texts: Sequence[str | bytes], num_threads: int | None = None) -> list[np.ndarray]:
        """The ids of many texts, encoded in parallel."""
        encoded = self.processor.encode([valid_text(text) for text in texts], num_threads=num_threads or -1)
        return [np.array(ids, np.int32) for ids in encoded]

    def decode_bytes(self, ids: Iterable[int] | np.ndarray, skip_special_tokens: bool = True) -> bytes:
        """The bytes that the ids stand for, without the space before the text."""
        return super().decode_bytes(ids, skip_special_tokens).removeprefix(self.prefix)


def foreign_tokenizer(
    model: bytes,
    origin: str,
    config: dict[str, Any],
    stop_ids: Iterable[int],
    added: dict[str, int] | None = None,
    reference: str | None = None,
) -> SentencePieceTokenizer:
    """A model that another program made, with the parts that its tokens play found out.

    Args:
        model, origin, config, reference: as `SentencePieceTokenizer`'s; config as `transformers` writes it.
        stop_ids: what ends a generated text.
        added: name → id of tokens that were added; those that are the model's own pieces are left out.

    Raises:
        UserError: it is no SentencePiece model.
        ValueError, KeyError: no token is known to play a part.
    """
    processor = processor_of(model, origin)
    added = {name: number for name, number in (added or {}).items() if number >= processor.get_piece_size()}
    specials = {**special_pieces(processor), **added}
    names = {identifier: name for name, identifier in specials.items()}
    starts = config.get("add_bos_token", True) is not False
    roles = choose_special_tokens(
        sorted(specials, key=specials.__getitem__),
        end=token_name(config.get("eos_token")) or "</s>",
        padding=token_name(config.get("pad_token")),
        start_of_text=(token_name(config.get("bos_token")) or "<s>") if starts else None,
        chat_template=str(config.get("chat_template", "")),
        more_ends=[names[identifier] for identifier in stop_ids if identifier in names],
    )
    return SentencePieceTokenizer(model, origin, roles, config, added, reference)


def processor_of(model: bytes, origin: str) -> sentencepiece.SentencePieceProcessor:
    """The model, loaded."""
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.load_from_serialized_proto(model)
    except (RuntimeError, OSError) as error:
        raise UserError(f"{origin}: is no SentencePiece model") from error
    return processor


def special_pieces(processor: sentencepiece.SentencePieceProcessor) -> dict[str, int]:
    """The control pieces and the unknown one, name → id."""
    return {
        processor.id_to_piece(identifier): identifier
        for identifier in range(processor.get_piece_size())
        if processor.is_control(identifier) or processor.is_unknown(identifier)
    }


def piece_bytes(processor: sentencepiece.SentencePieceProcessor, identifier: int) -> bytes:
    """What an id adds to a text."""
    if processor.is_control(identifier) or processor.is_unknown(identifier) or processor.is_unused(identifier):
        return b""
    piece = processor.id_to_piece(identifier)
    byte = BYTE_PIECE.fullmatch(piece)
    if byte and processor.is_byte(identifier):
        return bytes([int(byte.group(1), 16)])
    return piece.replace(SPACE, " ").encode()


def valid_text(text: str | bytes) -> str:
    """What SentencePiece can take: U+FFFD for bytes that are not UTF-8."""
    content = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return content.decode("utf-8", "replace")
