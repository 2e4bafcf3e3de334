"""Writes SentencePiece models: the file format of `tokenizer.model`.

Format: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto. The Python module that the
package `sentencepiece` generates from it requires a newer `protobuf` than TensorFlow does, so the fields are encoded
here (https://protobuf.dev/programming-guides/encoding).
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

Field = tuple[int, bytes | str | float]
"""Field number and value."""

BPE = 2
"""`TrainerSpec.ModelType`."""


class PieceType(enum.IntEnum):
    """Types of pieces; the same numbers as llama.cpp's `tokenizer.ggml.token_type`."""

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


def bpe_model(pieces: Sequence[Piece], roles: dict[str, int], add_dummy_prefix: bool) -> bytes:
    """Returns the content of a `tokenizer.model` with BPE that changes only the spaces of a text.

    Args:
        pieces: by id. One of them is unknown; either all 256 bytes (`<0x00>`, …) or none are included.
        roles: ids of "unk", "bos", "eos" and "pad", if there are such pieces.
        add_dummy_prefix: whether to encode a text as if a space stood before it.
    """
    ids = [roles.get(name, -1) for name in ("unk", "bos", "eos", "pad")]
    fallback = any(piece.type == PieceType.BYTE for piece in pieces)
    trainer: list[Field] = [(3, BPE), (4, len(pieces)), (35, fallback), *enumerate(ids, 40)]
    trainer += [(number, pieces[index].text) for number, index in enumerate(ids, 45) if index >= 0]
    normalizer: list[Field] = [(1, "identity"), (3, add_dummy_prefix), (4, False), (5, True)]
    model: list[Field] = [
        (1, encode_message([(1, piece.text), (2, float(piece.score)), (3, piece.type)])) for piece in pieces
    ]
    return encode_message([*model, (2, encode_message(trainer)), (3, encode_message(normalizer))])


def encode_message(fields: Iterable[Field]) -> bytes:
    """Encodes (field number, value) pairs: bytes and str with their lengths, float as 32 bits, int as a varint."""
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
