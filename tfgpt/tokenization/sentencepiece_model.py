"""Writes SentencePiece models: the file format of `tokenizer.model`, a protocol buffer.

Fields and numbers: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto. The package
`sentencepiece` carries a generated module of it, but that refuses every `protobuf` older than the one it was generated
with (TensorFlow allows older ones), and two generated modules of one file cannot be in a process (`transformers` has
its own). So what is written here has a pool of descriptors of its own.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any, NamedTuple

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

BPE = 2
"""`TrainerSpec.ModelType`."""

FIELDS = {
    "SentencePiece": {"piece": (1, "STRING"), "score": (2, "FLOAT"), "type": (3, "INT32")},
    "TrainerSpec": {
        "model_type": (3, "INT32"),
        "vocab_size": (4, "INT32"),
        "byte_fallback": (35, "BOOL"),
        "unk_id": (40, "INT32"),
        "bos_id": (41, "INT32"),
        "eos_id": (42, "INT32"),
        "pad_id": (43, "INT32"),
        "unk_piece": (45, "STRING"),
        "bos_piece": (46, "STRING"),
        "eos_piece": (47, "STRING"),
        "pad_piece": (48, "STRING"),
    },
    "NormalizerSpec": {
        "name": (1, "STRING"),
        "add_dummy_prefix": (3, "BOOL"),
        "remove_extra_whitespaces": (4, "BOOL"),
        "escape_whitespaces": (5, "BOOL"),
    },
    "ModelProto": {
        "pieces": (1, "SentencePiece"),
        "trainer_spec": (2, "TrainerSpec"),
        "normalizer_spec": (3, "NormalizerSpec"),
    },
}
"""Message → field → (number, type). Enumerations are written as the numbers they are."""


class Kind(enum.IntEnum):
    """What a piece is. llama.cpp's `tokenizer.ggml.token_type` has the same numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class Piece(NamedTuple):
    """One entry of a vocabulary; the pair with the highest score is merged first."""

    text: str
    score: float
    kind: Kind


def bpe_model(pieces: Sequence[Piece], roles: dict[str, int], space_before_text: bool) -> bytes:
    """A BPE model that changes nothing in a text but its spaces, as Llama 2's and Mistral's do.

    Args:
        pieces: by id. Exactly one is unknown; all 256 bytes are there (`<0x00>`, …), or none.
        roles: the ids of "unk", "bos", "eos" and "pad", as far as there are such pieces.
        space_before_text: whether a text is read as if a space stood before it.

    Returns:
        The content of a `tokenizer.model`.
    """
    model = message("ModelProto")
    for piece in pieces:
        model.pieces.add(piece=piece.text, score=piece.score, type=int(piece.kind))
    trainer = model.trainer_spec
    trainer.model_type, trainer.vocab_size = BPE, len(pieces)
    trainer.byte_fallback = any(piece.kind == Kind.BYTE for piece in pieces)
    for name in ("unk", "bos", "eos", "pad"):
        setattr(trainer, f"{name}_id", roles.get(name, -1))
        if name in roles:
            setattr(trainer, f"{name}_piece", pieces[roles[name]].text)
    normalizer = model.normalizer_spec
    normalizer.name, normalizer.add_dummy_prefix = "identity", space_before_text
    normalizer.remove_extra_whitespaces, normalizer.escape_whitespaces = False, True
    return model.SerializeToString()


def message(name: str) -> Any:
    """An empty message of the format."""
    file = descriptor_pb2.FileDescriptorProto(name="sentencepiece_model.proto", package="sentencepiece")
    kinds = descriptor_pb2.FieldDescriptorProto
    for owner, fields in FIELDS.items():
        described = file.message_type.add(name=owner)
        for field, (number, kind) in fields.items():
            label = kinds.LABEL_REPEATED if field == "pieces" else kinds.LABEL_OPTIONAL
            added = described.field.add(name=field, number=number, label=label)
            if kind in FIELDS:
                added.type, added.type_name = kinds.TYPE_MESSAGE, f".sentencepiece.{kind}"
            else:
                added.type = kinds.Type.Value(f"TYPE_{kind}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"sentencepiece.{name}"))()
