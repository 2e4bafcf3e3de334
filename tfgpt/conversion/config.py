"""What `python -m tfgpt.convert` reads and writes, as settings."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from tfgpt.common.errors import SettingError
from tfgpt.common.settings import Settings, setting


@dataclasses.dataclass(frozen=True)
class ConvertConfig(Settings):
    """Where from, where to."""

    title: ClassVar[str] = "Conversion"

    source: str = setting(
        "",
        "What to convert: a Hugging Face directory (a run, a model directory of ours is one), an adapter, which is "
        "merged, a .gguf file, a KerasHub preset's directory, or a model's name on the Hugging Face hub, such as "
        "HuggingFaceTB/SmolLM2-135M-Instruct.",
        path=True,
    )
    output: str = setting(
        "",
        "The model directory to write. One that an earlier conversion wrote is replaced by a whole new one; a folder "
        "with other files is refused.",
        path=True,
    )
    overwrite: bool = setting(False, "Replace --output whatever it holds.")
    weights: str = setting(
        "as_stored",
        "The type of the written weights; quantized ones become float32 where it is not said.",
        choices=("as_stored", "float32", "bfloat16", "float16"),
    )

    suggest: bool = setting(
        False, "Convert nothing; rank the models that can be converted for a task, a text and a machine, and say why."
    )

    def check(self) -> None:
        if self.suggest:
            return
        if not self.source:
            raise SettingError("source", "is missing; give a directory, a .gguf file or a hub name")
        if not self.output:
            raise SettingError("output", "is missing; give the model directory to write, such as models/smollm2")
