"""Settings of `python -m tfgpt.chat`."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from tfgpt.common.errors import SettingError
from tfgpt.common.model_paths import MODEL_HELP
from tfgpt.common.settings import Settings, setting
from tfgpt.generation.config import SamplingConfig


@dataclasses.dataclass(frozen=True)
class ChatConfig(Settings):
    """The model and the first messages of a chat.

    Example:

    >>> ChatConfig(model="runs/quickstart", system="Be brief.").dtype
    'float32'
    """

    title: ClassVar[str] = "Model and conversation"

    model: str = setting("", MODEL_HELP, path=True)
    system: str = setting("", "The system message.")
    load: str = setting("", "A file of conversations (.jsonl, also .gz or .zst); continues its last one.", path=True)
    dtype: str = setting("float32", "The type of weights and computation.", choices=("float32", "bfloat16"))

    def check(self) -> None:
        if not self.model:
            raise SettingError("model", "is missing; give a model, such as runs/quickstart")


@dataclasses.dataclass(frozen=True)
class ChatSamplingConfig(SamplingConfig):
    """The settings of `generate` with longer replies and one text at a time.

    Example:

    >>> ChatSamplingConfig(temperature=0.5).max_new_tokens
    512
    """

    max_new_tokens: int = setting(512, "The most tokens of a reply.", minimum=1)

    def check(self) -> None:
        super().check()
        if self.num_samples != 1:
            raise SettingError("num_samples", f"{self.num_samples}: a chat has one reply at a time")
