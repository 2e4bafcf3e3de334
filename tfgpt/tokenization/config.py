"""The tokenizer's settings: which one, and how large when it is trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar

from tfgpt.common.did_you_mean import did_you_mean, no_such_file
from tfgpt.common.errors import SettingError
from tfgpt.common.settings import Settings, setting

SPECIAL_TOKENS = ("<|endoftext|>", "<|padding|>", "<|im_start|>", "<|im_end|>")
"""The names of our special tokens, in the order of their ids: the last four of a vocabulary that we make."""

SMALLEST_VOCABULARY = 256 + len(SPECIAL_TOKENS)
"""Every byte and every special token: what any byte-level tokenizer has."""


@dataclasses.dataclass(frozen=True)
class TokenizerConfig(Settings):
    """Where ids come from.

    Attributes:
        tokenizer: "bpe", "bytes", or the path of a `tokenizer.json` or of a directory that holds one.
        vocabulary_size: entries of a trained tokenizer, special tokens included.
        tokenizer_sample_bytes: at most so much text trains the tokenizer.
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
        "Entries of the trained tokenizer, special tokens included; multiples of 64 multiply fastest. "
        "Not used with bytes or a path.",
        minimum=SMALLEST_VOCABULARY,
        maximum=1 << 20,
    )
    tokenizer_sample_bytes: int = setting(
        100_000_000,
        "Bytes of training text that the tokenizer is trained on; of a larger corpus, documents spread over it.",
        minimum=1,
        maximum=2**63 - 1,
    )

    def check(self) -> None:
        """Refuses a tokenizer that is neither a known name nor an existing path."""
        if self.tokenizer not in ("bpe", "bytes") and not Path(self.tokenizer).expanduser().exists():
            problem = "is neither bpe nor bytes nor an existing tokenizer.json or directory"
            near = did_you_mean(self.tokenizer, ("bpe", "bytes"))
            line = f"{self.tokenizer}: {problem}{near}" if near else no_such_file(self.tokenizer, problem)
            raise SettingError("tokenizer", line)
