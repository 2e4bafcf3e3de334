"""SavedModels in TensorFlow Serving's loader, the session loader. Imports TensorFlow only."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfgpt.common.errors import UserError
from tfgpt.common.model_paths import EXPORT_METADATA
from tfgpt.serving.export_metadata import read_description

TEXT_OPERATIONS = "core TensorFlow and tensorflow_text"


def register_operations(directory: Path) -> None:
    """Registers the operations that a version needs in addition to TensorFlow's own."""
    if not (directory / EXPORT_METADATA).is_file() or read_description(directory).get("operations") != TEXT_OPERATIONS:
        return
    if importlib.util.find_spec("tensorflow_text") is None:
        raise UserError(
            f"{directory}: needs tensorflow-text for the operations of its tokenizer (it does not exist for Windows)"
        )
    importlib.import_module("tensorflow_text")


class SessionModel:
    """A loaded version; a context manager that closes its session. `signatures` are without the initializer's."""

    def __init__(self, directory: str | os.PathLike):
        register_operations(Path(directory))
        graph = tf.Graph()
        self._session = tf.compat.v1.Session(graph=graph)
        try:
            with graph.as_default():
                loaded = tf.compat.v1.saved_model.load(self._session, ["serve"], str(directory))
        except BaseException:
            self._session.close()
            raise
        self.signatures = {
            name: signature for name, signature in loaded.signature_def.items() if not name.startswith("__saved_model")
        }

    def __call__(self, signature: str, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Runs a signature; inputs with defaults are optional; raises the server's tf.errors.OpError."""
        definition = self.signatures[signature]
        feeds = {definition.inputs[name].name: value for name, value in inputs.items()}
        return self._session.run({name: value.name for name, value in definition.outputs.items()}, feeds)

    def __enter__(self) -> SessionModel:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()
