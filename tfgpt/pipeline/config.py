"""The settings of a batch: how many windows of how many tokens. No TensorFlow."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from tfgpt.common.settings import Settings, setting


@dataclasses.dataclass(frozen=True)
class BatchConfig(Settings):
    """The shape of a batch and what attention may see across documents."""

    title: ClassVar[str] = "Batches"

    sequence_length: int = setting(256, "Tokens a row of a batch: the context the model is trained with.", minimum=1)
    batch_size: int = setting(
        32, "Rows of the global batch of one optimizer step, over all replicas, hosts and micro-batches.", minimum=1
    )
    document_masking: bool = setting(
        False, "Attention stays within a document and positions restart at its beginning, instead of running on."
    )


@dataclasses.dataclass(frozen=True)
class PrepareConfig(Settings):
    """What the `prepare` command does besides filling the cache."""

    title: ClassVar[str] = "Results"

    output_dir: str | None = setting(
        None, "Also put tokenizer, token shards and data card here: hard links to the cache, copies on another disk."
    )
