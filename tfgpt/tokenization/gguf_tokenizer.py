"""Tokenizers of GGUF files, converted from the metadata to `tokenizer.json` or to a SentencePiece model.

A GGUF file has the pieces of a SentencePiece model, but not its settings. As in llama.cpp (`llm_tokenizer_spm`), the
converted model is BPE that changes only spaces, which is exact for Llama 2's and Mistral's.
"""

from __future__ import annotations

import enum
import re
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from tfgpt.common.errors import UserError
from tfgpt.tokenization.pretokenizer import FAMILY_OF_GGUF
from tfgpt.tokenization.sentencepiece_tokenizer import BYTE_PIECE, SPACE
from tfgpt.tokenization.tokenizer_json import added_token, bpe_document

DEFAULT_IDS = {"unknown": 0, "bos": 1, "eos": 2}
"""llama.cpp's defaults for SentencePiece (`llama_vocab::impl::load`, LLAMA_VOCAB_TYPE_SPM)."""

FILLER = re.compile(r"\[PAD\d+\]")
"""Name that convert_hf_to_gguf.py gives to rows of the model without a piece."""

Field = tuple[int, bytes | str | float]  # number and value, in a protocol buffer


class PieceType(enum.IntEnum):
    """`tokenizer.ggml.token_type` of llama.cpp, and the types of SentencePiece."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class Piece(NamedTuple):
    """An entry of a vocabulary; the pair with the highest score is merged first."""

    text: str
    score: float
    type: PieceType


def gguf_document(metadata: Mapping[str, Any], long_field: Callable[[str], list[Any]], origin: str) -> dict:
    """Returns the `tokenizer.json` of a GGUF file whose `tokenizer.ggml.model` is "gpt2".

    Args:
        metadata: metadata of the file without its lists.
        long_field: returns a list of the metadata, such as `tokenizer.ggml.tokens`.
        origin: name of the file, for messages.
    """
    name = metadata.get("tokenizer.ggml.pre", "default")
    if name not in FAMILY_OF_GGUF:
        known = ", ".join(FAMILY_OF_GGUF)
        raise UserError(f"{origin}: tokenizer.ggml.pre={name!r} is not supported; supported are {known}")
    tokens, merges = long_field("tokenizer.ggml.tokens"), long_field("tokenizer.ggml.merges")
    types = long_field("tokenizer.ggml.token_type") or [PieceType.NORMAL] * len(tokens)
    if not tokens or not merges or len(types) != len(tokens):
        raise UserError(f"{origin}: its tokenizer is not complete (tokens, merges and token types of one vocabulary)")
    if len(set(tokens)) != len(tokens):
        raise UserError(f"{origin}: two ids have the same token")
    added = [
        {**added_token(identifier, token), "special": type_ == PieceType.CONTROL}
        for identifier, (token, type_) in enumerate(zip(tokens, types))
        if type_ in (PieceType.CONTROL, PieceType.USER_DEFINED)
    ]
    vocabulary = {token: identifier for identifier, token in enumerate(tokens)}
    return bpe_document(FAMILY_OF_GGUF[name], vocabulary, [merge.split(" ", 1) for merge in merges], added)


def gguf_sentencepiece_model(
    metadata: Mapping[str, Any], long_field: Callable[[str], list[Any]], origin: str
) -> tuple[bytes, list[str]]:
    """Returns the SentencePiece model of a GGUF file whose `tokenizer.ggml.model` is "llama".

    Returns:
        The content of a `tokenizer.model`, and the names of its pieces by id, without `FILLER`.
    """
    for key in ("precompiled_charsmap", "remove_extra_whitespaces"):
        if metadata.get(f"tokenizer.ggml.{key}"):
            raise UserError(f"{origin}: tokenizer.ggml.{key} is not supported with tokenizer.ggml.model='llama'")
    pieces = _pieces(long_field, origin)
    ids = {
        name: metadata[key]
        for name in ("unknown", "bos", "eos", "padding", "eot", "eom")
        if 0 <= metadata.get(key := f"tokenizer.ggml.{name}_token_id", -1) < len(pieces)
    }
    # Some converters write <unk> as a control token, others write all of these as normal ones.
    for name, number in ids.items():
        if pieces[number].type in (PieceType.NORMAL, PieceType.USER_DEFINED, PieceType.CONTROL):
            pieces[number] = pieces[number]._replace(type=PieceType.UNKNOWN if name == "unknown" else PieceType.CONTROL)
    unknown = [number for number, piece in enumerate(pieces) if piece.type == PieceType.UNKNOWN]
    if len(unknown) != 1:
        raise UserError(f"{origin}: {len(unknown)} tokens are the unknown one (tokenizer.ggml.token_type), not one")
    ranks = [piece.score for piece in pieces if piece.type == PieceType.NORMAL]
    if not all(float(rank).is_integer() for rank in ranks):
        raise UserError(
            f"{origin}: tokenizer.ggml.scores are not integers that rank the merges of BPE: "
            "unigram models are not supported"
        )
    if len(ranks) > 1 and len(set(ranks)) == 1:
        raise UserError(
            f"{origin}: tokenizer.ggml.scores are all {ranks[0]:g} and do not rank merges, so the ids of a text are "
            "undefined; convert the Hugging Face directory that the file was made from"
        )
    roles = {"unk": unknown[0]} | {
        ours: ids[theirs]
        for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
        if theirs in ids and pieces[ids[theirs]].type == PieceType.CONTROL
    }
    model = bpe_model(pieces, roles, bool(metadata.get("tokenizer.ggml.add_space_prefix", True)))
    return model, [piece.text for piece in pieces]


def _pieces(long_field: Callable[[str], list[Any]], origin: str) -> list[Piece]:
    names, scores, types = (long_field(f"tokenizer.ggml.{field}") for field in ("tokens", "scores", "token_type"))
    if not names or not len(names) == len(scores) == len(types):
        raise UserError(f"{origin}: its tokenizer is not complete (tokens, scores and token types of one vocabulary)")
    try:
        pieces = [Piece(name, score, PieceType(type_)) for name, score, type_ in zip(names, scores, types)]
    except ValueError as error:
        raise UserError(f"{origin}: tokenizer.ggml.token_type: {error}") from error
    for number, piece in enumerate(pieces):
        if piece.type == PieceType.USER_DEFINED:  # The converter writes spaces, which SentencePiece does not allow.
            pieces[number] = piece._replace(text=piece.text.replace(" ", SPACE))
    while pieces and pieces[-1].type == PieceType.UNUSED and FILLER.fullmatch(pieces[-1].text):
        pieces.pop()
    first: dict[str, int] = {}
    for number, piece in enumerate(pieces):
        if not piece.text or first.setdefault(piece.text, number) != number:
            raise UserError(
                f"{origin}: token {number} of its tokenizer is {piece.text!r}, which is empty or a duplicate"
            )
    found = [piece.text for piece in pieces if piece.type == PieceType.BYTE]
    if found and (len(found) != 256 or not all(map(BYTE_PIECE.fullmatch, found))):
        raise UserError(f"{origin}: its tokenizer has {len(found)} byte tokens, not <0x00> to <0xFF>")
    return pieces


def with_default_ids(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {f"tokenizer.ggml.{name}_token_id": number for name, number in DEFAULT_IDS.items()} | dict(metadata)


def token_names(metadata: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, Any]:
    """Returns the content of `tokenizer_config.json`: the named tokens and the chat template."""
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for key, name in (("bos", "bos_token"), ("eos", "eos_token"), ("unknown", "unk_token"), ("padding", "pad_token")):
        identifier = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if identifier is not None and identifier < len(tokens):
            config[name] = tokens[identifier]
    if metadata.get("tokenizer.chat_template"):
        config["chat_template"] = metadata["tokenizer.chat_template"]
    return config


def stop_ids(metadata: Mapping[str, Any]) -> list[int]:
    found = [metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("eot", "eom", "eos")]
    return list(dict.fromkeys(identifier for identifier in found if identifier is not None))


def begins_with_bos(metadata: Mapping[str, Any]) -> bool:
    """Returns whether every text begins with the bos token. llama.cpp's default depends on the pre-tokenizer."""
    default = FAMILY_OF_GGUF.get(metadata.get("tokenizer.ggml.pre", "")) == "llama3"
    default = default or metadata.get("tokenizer.ggml.model") == "llama"
    return bool(metadata.get("tokenizer.ggml.add_bos_token", default))


def bpe_model(pieces: Sequence[Piece], roles: dict[str, int], add_dummy_prefix: bool) -> bytes:
    """Returns the content of a `tokenizer.model` with BPE that changes only the spaces of a text.

    Format: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto. The Python module that
    `sentencepiece` generates from it requires a newer `protobuf` than TensorFlow does.

    Args:
        pieces: by id. One of them is unknown; either all 256 bytes (`<0x00>`, …) or none are included.
        roles: ids of "unk", "bos", "eos" and "pad", if there are such pieces.
        add_dummy_prefix: whether to encode a text as if a space stood before it.
    """
    ids = [roles.get(name, -1) for name in ("unk", "bos", "eos", "pad")]
    fallback = any(piece.type == PieceType.BYTE for piece in pieces)
    trainer: list[Field] = [(3, 2), (4, len(pieces)), (35, fallback), *enumerate(ids, 40)]
    trainer += [(number, pieces[index].text) for number, index in enumerate(ids, 45) if index >= 0]
    normalizer: list[Field] = [(1, "identity"), (3, add_dummy_prefix), (4, False), (5, True)]
    model: list[Field] = [
        (1, encode_message([(1, piece.text), (2, float(piece.score)), (3, piece.type)])) for piece in pieces
    ]
    return encode_message([*model, (2, encode_message(trainer)), (3, encode_message(normalizer))])


def encode_message(fields: Iterable[Field]) -> bytes:
    """Encodes a protocol buffer: bytes and str with their lengths, float as 32 bits, int as a varint."""
    parts = []
    for number, value in fields:
        if isinstance(value, (bytes, str)):
            content = value.encode() if isinstance(value, str) else value
            parts += [_varint(number << 3 | 2), _varint(len(content)), content]
        elif isinstance(value, float):
            parts += [_varint(number << 3 | 5), struct.pack("<f", value)]
        else:
            parts += [_varint(number << 3), _varint(value)]
    return b"".join(parts)


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # Negative numbers have ten bytes.
    groups = [value >> shift & 0x7F for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes([*(group | 0x80 for group in groups[:-1]), groups[-1]])
