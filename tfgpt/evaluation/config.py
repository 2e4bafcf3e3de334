"""What is evaluated on what. No TensorFlow."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from tfgpt.common.errors import SettingError
from tfgpt.common.model_paths import MODEL_HELP
from tfgpt.common.settings import Settings, setting


@dataclasses.dataclass(frozen=True)
class EvaluateConfig(Settings):
    """What `python -m tfgpt.evaluate` reads and how it prints."""

    title: ClassVar[str] = "Model and text"

    model: str = setting("", MODEL_HELP, path=True)
    text: tuple[str, ...] = setting(
        (),
        "Text to predict, written as --train_text of train is: a file, a folder, a glob, tfds:… or sample:NAME. Given "
        "several times, each has a row of its own. Not given: what the model's run held out.",
    )
    objective: str = setting(
        "auto",
        "What counts. pretrain: every token of the text; chat: what the assistant says in conversations; auto: as the "
        "model was trained.",
        choices=("auto", "pretrain", "chat"),
    )
    sequence_length: int = setting(
        0,
        "Tokens a row: within it, each token is predicted from all before it. 0: as the model was trained; of a model "
        "that does not say, its positions, at most 1024.",
        minimum=0,
    )
    batch_size: int = setting(
        0, "Rows at a time, over all devices; changes no figure. 0: 8 for each device.", minimum=0
    )
    dtype: str = setting(
        "float32",
        "float32, or mixed_bfloat16: matrix products in bfloat16.",
        choices=("float32", "mixed_bfloat16"),
    )
    strict: bool = setting(
        False, "Stop at the first record that cannot be read, instead of leaving it out, counting it and saying so."
    )
    cache_dir: str | None = setting(
        None,
        "Folder for documents and token shards made on the way. $TFGPT_CACHE_DIR or the system's place.",
        path=True,
    )
    tfds_data_dir: str | None = setting(
        None, "Folder of prepared TensorFlow Datasets. $TFDS_DATA_DIR or ~/tensorflow_datasets."
    )
    json: bool = setting(False, "Print one JSON object instead of the table.")

    def check(self) -> None:
        if not self.model:
            raise SettingError("model", "is missing; give a model, such as runs/quickstart")
        if any(not text.strip() for text in self.text):
            raise SettingError("text", "is empty; give a file, a folder, a glob, tfds:… or sample:…")
