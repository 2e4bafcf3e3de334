"""Settings of `python -m tfgpt.export`."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from tfgpt.common.errors import SettingError
from tfgpt.common.model_paths import MODEL_HELP
from tfgpt.common.settings import Settings, setting

NOT_IN_EXPORTS = ("num_beams", "length_penalty", "stop", "num_samples", "add_end_of_text")
"""Settings of `SamplingConfig` that exports do not have; clients cut texts at stop strings."""


@dataclasses.dataclass(frozen=True)
class ExportConfig(Settings):
    """Settings of an export.

    Example:

    >>> ExportConfig(model="runs/quickstart", output="models/chat").precision
    'float32'
    """

    title: ClassVar[str] = "Export"

    model: str = setting("", MODEL_HELP, path=True)
    output: str = setting(
        "", "The served model's directory, such as models/chat; each export adds a version.", path=True
    )
    version: int = setting(0, "The version's number; 0 for one more than the highest version.", minimum=0)
    precision: str = setting(
        "float32",
        "The weights: float32; bfloat16 (half the size, fast if the CPU has avx512_bf16); int8 (a quarter of the size "
        "on disk; each call converts them to float32, so it is not faster).",
        choices=("float32", "bfloat16", "int8"),
    )
    max_new_tokens_limit: int = setting(2048, "The most new tokens of a request.", minimum=1)
    evaluation_text: str = setting(
        "",
        "A text file to measure bits per byte on; by default the text that the run held out.",
        path=True,
    )
    evaluation_bytes: int = setting(65_536, "The most bytes of that text; 0 measures nothing.", minimum=0)
    serving_files: bool = setting(
        False, "Also write the files that run TensorFlow Serving, into serving/ next to the versions."
    )
    overwrite: bool = setting(False, "Replace serving/ even if it holds other files; versions are never replaced.")
    serving_image: str = setting(
        "tensorflow/serving:latest", "The container image in those files; a fixed tag is better."
    )
    serving_cores: int = setting(2, "The number of the server's CPUs in those files.", minimum=1)

    def check(self) -> None:
        if not self.model:
            raise SettingError("model", "is missing; give a model, such as runs/quickstart")
        if not self.output:
            raise SettingError("output", "is missing; give a directory for the served model, such as models/chat")
