"""Settings of `python -m tfgpt.convert`."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from tfgpt.common.errors import SettingError
from tfgpt.common.settings import Settings, setting


@dataclasses.dataclass(frozen=True)
class ConvertConfig(Settings):
    """Source and output of a conversion.

    Example:

    >>> ConvertConfig(source="model.gguf", output="models/llama").weights
    'as_stored'
    """

    title: ClassVar[str] = "Conversion"

    source: str = setting(
        "",
        "The model to convert: a run, a model directory, a Hugging Face directory, an adapter, which is merged, a "
        ".gguf file, a KerasHub preset's directory, or a name on the Hugging Face hub, such as "
        "HuggingFaceTB/SmolLM2-135M-Instruct.",
        path=True,
    )
    output: str = setting(
        "",
        "The model directory to write. An earlier result there is replaced; a folder with other files is refused.",
        path=True,
    )
    overwrite: bool = setting(False, "Replace --output, even if it holds other files.")
    weights: str = setting(
        "as_stored",
        "The type of the written weights; as_stored turns quantized weights into float32.",
        choices=("as_stored", "float32", "bfloat16", "float16"),
    )

    suggest: bool = setting(
        False, "Convert nothing; rank the models that can be converted by task, text and machine, with the reasons."
    )

    def check(self) -> None:
        if self.suggest:
            return
        if not self.source:
            raise SettingError("source", "is missing; give a directory, a .gguf file or a hub name")
        if not self.output:
            raise SettingError("output", "is missing; give the model directory to write, such as models/smollm2")
