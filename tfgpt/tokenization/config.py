"""Settings of the tokenizer."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar

from tfgpt.common.did_you_mean import did_you_mean, no_such_file
from tfgpt.common.errors import SettingError
from tfgpt.common.settings import Settings, setting
from tfgpt.tokenization.special_tokens import SPECIAL_TOKENS

SMALLEST_VOCABULARY = 256 + len(SPECIAL_TOKENS)
"""One entry for each byte and each special token."""


@dataclasses.dataclass(frozen=True)
class TokenizerConfig(Settings):
    """Settings of the tokenizer: an existing one, or one to train.

    Example:

    >>> TokenizerConfig(vocabulary_size=512).to_dict()["vocabulary_size"]
    512
    """

    title: ClassVar[str] = "Tokenizer"

    tokenizer: str = setting(
        "bpe",
        "bpe: train byte-level BPE on the training text; bytes: one id a byte; or the path of an existing "
        "tokenizer.json (byte-level BPE), of a directory that holds one or of a run.",
        path=True,
    )
    vocabulary_size: int = setting(
        4096,
        "Number of entries of the trained tokenizer, including special tokens; multiples of 64 are fastest. "
        "Not used with bytes or a path.",
        minimum=SMALLEST_VOCABULARY,
        maximum=1 << 20,
    )
    tokenizer_sample_bytes: int = setting(
        100_000_000,
        "Bytes of training text that the tokenizer is trained on; a larger corpus is sampled evenly.",
        minimum=1,
        maximum=2**63 - 1,
    )

    def check(self) -> None:
        if self.tokenizer not in ("bpe", "bytes") and not Path(self.tokenizer).expanduser().exists():
            problem = "is neither bpe nor bytes nor an existing tokenizer.json or directory"
            near = did_you_mean(self.tokenizer, ("bpe", "bytes"))
            line = f"{self.tokenizer}: {problem}{near}" if near else no_such_file(self.tokenizer, problem)
            raise SettingError("tokenizer", line)
