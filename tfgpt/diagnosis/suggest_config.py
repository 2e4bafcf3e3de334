"""What `convert --suggest` is asked, as settings. No TensorFlow."""

from __future__ import annotations

import dataclasses
import re
from typing import ClassVar

from tfgpt.common.errors import SettingError, UserError
from tfgpt.common.settings import Settings, setting
from tfgpt.diagnosis.pretrained_models import FAMILIES, OPEN_LICENCES
from tfgpt.diagnosis.system_memory import main_memory

UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12} | {
    f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)
}


@dataclasses.dataclass(frozen=True)
class SuggestConfig(Settings):
    """What the model is for, and what there is to make it with."""

    title: ClassVar[str] = "Suggestion (with --suggest)"

    task: str = setting(
        "chat",
        "chat: answer people; languages: the same, in other languages than English too; text: go on with texts like "
        "yours; code: go on with programs.",
        choices=("chat", "text", "code", "languages"),
    )
    language: str = setting("", "The language of it, in English, such as Chinese; empty: English or any.")
    data_size: str = setting("10MB", "How much text there is to tune on: 800KB, 20MB, 3GB.")
    memory: str = setting("", "Memory of the device that tunes and serves, such as 16GiB; empty: this machine's.")
    device: str = setting("cpu", "What tunes and serves.", choices=("cpu", "gpu", "tpu"))
    cores: int = setting(2, "CPU cores, where --device=cpu; or GPUs, or TPU chips, of --memory each.", minimum=1)
    days: float = setting(1.0, "Days that a pass over the text may take.", minimum=0.001, maximum=1e6)
    context: int = setting(0, "Tokens that the model must be able to read at once; 0: any.", minimum=0)
    licence: str = setting(
        "any", f"open: {' or '.join(OPEN_LICENCES)} only; any: the makers' own licences too.", choices=("any", "open")
    )

    def check(self) -> None:
        known = {language for model in FAMILIES for language in model.languages}
        if self.language and self.language.title() not in known:
            raise SettingError(
                "language",
                f"{self.language!r} is named by no maker of a model that is read here; they name "
                f"{', '.join(sorted(known))} (Qwen3's counts 119: leave --language out and try it)",
            )
        self.data_bytes()
        if self.memory:
            size_of("memory", self.memory)

    def data_bytes(self) -> int:
        """--data_size in bytes."""
        return size_of("data_size", self.data_size)

    def memory_bytes(self) -> int:
        """--memory, or this machine's, in bytes.

        Raises:
            UserError: it has to be given.
        """
        if self.memory:
            return size_of("memory", self.memory)
        found = main_memory() if self.device == "cpu" else None
        if found is None:
            raise UserError(f"--memory: is missing; how much memory the {self.device} has cannot be known here")
        return found.total


def size_of(name: str, text: str) -> int:
    """`20MB` → 20,000,000; `16GiB` → 17,179,869,184.

    Raises:
        SettingError: no such size; it names the flag.
    """
    match = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([a-z]*)", text.strip().lower())
    if not match or match[2] not in UNITS or float(match[1]) <= 0:
        raise SettingError(name, f"{text!r} is no size; write it as 800KB, 20MB or 16GiB")
    return int(float(match[1]) * UNITS[match[2]])
