"""What a source of any kind is, once it is opened."""

from __future__ import annotations

import dataclasses
from typing import Any

from tfgpt.model.checkpoints.lazy_weights import LazyWeights
from tfgpt.tokenization.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Source:
    """An opened source, checked, its weights not read yet.

    Attributes:
        kind: what it is, for people.
        checkpoint: its model.
        tokenizer: its tokenizer, which also knows what ends a text.
        provenance: what training.json says of it.
    """

    kind: str
    checkpoint: LazyWeights
    tokenizer: Tokenizer
    provenance: dict[str, Any]
