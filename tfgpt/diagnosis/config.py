"""Settings of `doctor` and of `convert --suggest`. Does not import TensorFlow."""

from __future__ import annotations

import dataclasses
import re
from typing import ClassVar

from tfgpt.common.errors import SettingError, UserError
from tfgpt.common.settings import Settings, setting
from tfgpt.diagnosis.pretrained_models import OPEN_LICENCES, load_pretrained_models
from tfgpt.diagnosis.system_memory import main_memory

UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12} | {
    f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)
}


@dataclasses.dataclass(frozen=True)
class DoctorConfig(Settings):
    """Output and duration of the checks; all other flags are train's.

    Example:

    >>> DoctorConfig(overfit_steps=10).preview_rows
    2
    """

    title: ClassVar[str] = "Doctor"

    overfit_steps: int = setting(
        120, "Most updates on one small batch, to check that it can be overfitted; 0: do not try.", minimum=0
    )
    max_probe_seconds: float = setting(
        60.0, "About the longest time of each trial, overfitting and speed, in seconds.", minimum=1.0, maximum=1e9
    )
    preview_rows: int = setting(2, "Rows of the first training batch that are shown decoded; 0: none.", minimum=0)
    json: bool = setting(False, "Print everything once more at the end, as one line with a JSON object.")


@dataclasses.dataclass(frozen=True)
class SuggestConfig(Settings):
    """The task, the text and the devices.

    Example:

    >>> SuggestConfig(data_size="20MB").data_bytes()
    20000000
    """

    title: ClassVar[str] = "Suggestion (with --suggest)"

    task: str = setting(
        "chat",
        "chat: answer people; languages: the same in languages other than English; text: continue texts like yours; "
        "code: continue programs.",
        choices=("chat", "text", "code", "languages"),
    )
    language: str = setting("", "Language of the text, in English, such as Chinese; empty: English or any.")
    data_size: str = setting("10MB", "Amount of text to tune on: 800KB, 20MB, 3GB.")
    memory: str = setting("", "Memory of the device that tunes and serves, such as 16GiB; empty: this machine's.")
    device: str = setting("cpu", "Device that tunes and serves.", choices=("cpu", "gpu", "tpu"))
    cores: int = setting(2, "CPU cores, with --device=cpu; or GPUs, or TPU chips, of --memory each.", minimum=1)
    days: float = setting(1.0, "Longest time for one epoch, in days.", minimum=0.001, maximum=1e6)
    context: int = setting(0, "Shortest context of the model, in tokens; 0: any.", minimum=0)
    licence: str = setting(
        "any", f"open: {' or '.join(OPEN_LICENCES)} only; any: the makers' own licences too.", choices=("any", "open")
    )

    def check(self) -> None:
        known = {language for model in load_pretrained_models() for language in model.languages}
        if self.language and self.language.title() not in known:
            raise SettingError(
                "language",
                f"{self.language!r} is not named by the maker of any model in the table; they name "
                f"{', '.join(sorted(known))} (Qwen3's counts 119: leave --language out and try it)",
            )
        self.data_bytes()
        if self.memory:
            parse_size("memory", self.memory)

    def data_bytes(self) -> int:
        return parse_size("data_size", self.data_size)

    def memory_bytes(self) -> int:
        if self.memory:
            return parse_size("memory", self.memory)
        if self.device != "cpu":
            raise UserError(f"--memory: is missing; the memory of the {self.device} is unknown here")
        return main_memory().total


def parse_size(name: str, text: str) -> int:
    """Converts "20MB" to 20000000 and "16GiB" to 17179869184; `name` is the flag in errors."""
    match = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([a-z]*)", text.strip().lower())
    if not match or match[2] not in UNITS or float(match[1]) <= 0:
        raise SettingError(name, f"{text!r} is not a size; write it as 800KB, 20MB or 16GiB")
    return int(float(match[1]) * UNITS[match[2]])
