"""What `python -m tfgpt.export` writes."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from tfgpt.common.errors import SettingError
from tfgpt.common.model_paths import MODEL_HELP
from tfgpt.common.settings import Settings, setting

NOT_IN_EXPORTS = ("num_beams", "length_penalty", "stop", "num_samples", "add_end_of_text")
"""Settings of `SamplingConfig` that an exported model does not have; clients cut at stop strings."""


@dataclasses.dataclass(frozen=True)
class ExportConfig(Settings):
    """The model, the place and the precision."""

    title: ClassVar[str] = "Export"

    model: str = setting("", MODEL_HELP, path=True)
    output: str = setting(
        "", "The served model's directory, such as models/chat; each export is a version in it.", path=True
    )
    version: int = setting(0, "The version's number; 0 for one more than the highest there is.", minimum=0)
    precision: str = setting(
        "float32",
        "The weights: float32; bfloat16 (half the size, quick where the CPU has avx512_bf16); int8 (a quarter of the "
        "size on disk; made into float32 once a call, so not quicker).",
        choices=("float32", "bfloat16", "int8"),
    )
    max_new_tokens_limit: int = setting(2048, "The most tokens that a request gets, whatever it asks for.", minimum=1)
    evaluation_text: str = setting(
        "",
        "A text file on which bits per byte are measured; without it, the run's own held-out text.",
        path=True,
    )
    evaluation_bytes: int = setting(65_536, "Bytes of that text to read; 0 measures nothing.", minimum=0)
    serving_files: bool = setting(
        False, "Also write what TensorFlow Serving and its operators need, into serving/ beside the versions."
    )
    overwrite: bool = setting(False, "Replace serving/ whatever it holds; a version is never replaced.")
    serving_image: str = setting("tensorflow/serving:latest", "The container image in those files; better a fixed one.")
    serving_cores: int = setting(2, "CPUs that the server gets in those files.", minimum=1)

    def check(self) -> None:
        if not self.model:
            raise SettingError("model", "is missing; give a model, such as runs/quickstart")
        if not self.output:
            raise SettingError("output", "is missing; give a directory for the served model, such as models/chat")
