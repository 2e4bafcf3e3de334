"""The settings of `python -m tfgpt.chat`."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from tfgpt.common.errors import SettingError
from tfgpt.common.model_paths import MODEL_HELP
from tfgpt.common.settings import Settings, setting
from tfgpt.generation.config import SamplingConfig


@dataclasses.dataclass(frozen=True)
class ChatConfig(Settings):
    """What `python -m tfgpt.chat` talks with and begins from."""

    title: ClassVar[str] = "Model and conversation"

    model: str = setting("", MODEL_HELP, path=True)
    system: str = setting("", "A system message to begin with.")
    load: str = setting(
        "", "A file of conversations, .jsonl or that as .gz or .zst; goes on with the last one in it.", path=True
    )
    dtype: str = setting("float32", "The type of weights and computation.", choices=("float32", "bfloat16"))

    def check(self) -> None:
        if not self.model:
            raise SettingError("model", "is missing; give a model, such as runs/quickstart")


@dataclasses.dataclass(frozen=True)
class ChatSamplingConfig(SamplingConfig):
    """As in `generate`, with room for longer replies; one text at a time."""

    max_new_tokens: int = setting(512, "The most tokens of a reply.", minimum=1)

    def check(self) -> None:
        super().check()
        if self.num_samples != 1:
            raise SettingError("num_samples", f"{self.num_samples}: a chat has one reply at a time")
