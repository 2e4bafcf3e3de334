"""Settings of `evaluate`. Does not import TensorFlow."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from tfgpt.common.errors import SettingError
from tfgpt.common.model_paths import MODEL_HELP
from tfgpt.common.settings import Settings, setting


@dataclasses.dataclass(frozen=True)
class EvaluateConfig(Settings):
    """The model and the text to evaluate.

    Example:

    >>> EvaluateConfig(model="runs/quickstart", text=("book.txt",)).objective
    'auto'
    """

    title: ClassVar[str] = "Model and text"

    model: str = setting("", MODEL_HELP, path=True)
    text: tuple[str, ...] = setting(
        (),
        "Text to evaluate on, given as --train_text of train is: a file, a folder, a glob, tfds:… or sample:NAME. "
        "Several texts have a row each. Default: the text that the model's run held out.",
    )
    objective: str = setting(
        "auto",
        "Tokens that count. pretrain: all; chat: those of the assistant in conversations; auto: as in training.",
        choices=("auto", "pretrain", "chat"),
    )
    sequence_length: int = setting(
        0,
        "Tokens in a row: each token is predicted from those before it in its row. 0: as in training; if that is "
        "unknown, the model's positions, at most 1024.",
        minimum=0,
    )
    batch_size: int = setting(
        0, "Rows in a batch, over all devices; changes no result. 0: 8 for each device.", minimum=0
    )
    dtype: str = setting(
        "float32",
        "float32, or mixed_bfloat16: matrix products in bfloat16.",
        choices=("float32", "mixed_bfloat16"),
    )
    strict: bool = setting(False, "Stop at the first unreadable record, instead of skipping and counting it.")
    cache_dir: str | None = setting(
        None,
        "Folder for intermediate documents and token shards. Default: $TFGPT_CACHE_DIR or the system's cache folder.",
        path=True,
    )
    tfds_data_dir: str | None = setting(
        None, "Folder of prepared TensorFlow Datasets. Default: $TFDS_DATA_DIR or ~/tensorflow_datasets."
    )
    json: bool = setting(False, "Print one JSON object instead of the table.")

    def check(self) -> None:
        if not self.model:
            raise SettingError("model", "is missing; give a model, such as runs/quickstart")
        if any(not text.strip() for text in self.text):
            raise SettingError("text", "is empty; give a file, a folder, a glob, tfds:… or sample:…")
