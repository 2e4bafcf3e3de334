"""KerasHub presets as a source."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from tfgpt.common.atomic_files import read_json
from tfgpt.common.errors import UserError
from tfgpt.common.tf_logging import import_tensorflow
from tfgpt.conversion.source import Source
from tfgpt.model.checkpoints.keras_hub import open_keras_hub_model
from tfgpt.tokenization.keras_hub_tokenizer import open_preset_tokenizer


def open_preset(directory: Path) -> Source:
    """A directory that KerasHub's `save_to_preset` wrote, with its model and its tokenizer.

    Raises:
        UserError: something is missing, damaged, or nothing that we can compute.
    """
    if importlib.util.find_spec("keras_hub") is None:
        raise UserError("the package keras-hub is missing, which reads presets; pip install keras-hub")
    metadata = read_json(directory / "metadata.json")
    tokenizer = open_preset_tokenizer(directory)
    import_tensorflow()
    checkpoint = open_keras_hub_model(directory)
    version = metadata.get("keras_hub_version", "?")
    class_name = read_json(directory / "config.json")["class_name"]
    provenance = {"format": "KerasHub", "class_name": class_name, "keras_hub_version": version}
    return Source(f"{directory} (KerasHub {version}, {class_name})", checkpoint, tokenizer, provenance)
