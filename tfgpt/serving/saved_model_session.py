"""A SavedModel as TensorFlow Serving opens it: the session loader, signatures called by name. TensorFlow only."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfgpt.common.errors import UserError
from tfgpt.common.model_paths import EXPORT_METADATA
from tfgpt.serving.export_metadata import read_description

TEXT_OPERATIONS = "core TensorFlow and tensorflow_text"
"""What `assets.extra/tfgpt.json` says of a model whose tokenizer is a SentencePiece model."""


def register_operations(directory: Path) -> None:
    """Registers the operations that a version needs beside TensorFlow's own.

    Raises:
        UserError: tensorflow_text is needed and not installed, or the export is of another format.
    """
    if not (directory / EXPORT_METADATA).is_file() or read_description(directory).get("operations") != TEXT_OPERATIONS:
        return
    if importlib.util.find_spec("tensorflow_text") is None:
        raise UserError(
            f"{directory}: needs tensorflow-text, whose operations its tokenizer is made of (there is none for Windows)"
        )
    importlib.import_module("tensorflow_text")


class SessionModel:
    """A loaded SavedModel; a context manager that closes its session.

    Args:
        directory: the version's directory.

    Attributes:
        signatures: by name, as `meta_graph.signature_def` has them, the initializer's left out.
    """

    def __init__(self, directory: str | os.PathLike):
        register_operations(Path(directory))
        graph = tf.Graph()
        self._session = tf.compat.v1.Session(graph=graph)
        try:
            with graph.as_default(), without_warnings():
                loaded = tf.compat.v1.saved_model.load(self._session, ["serve"], str(directory))
        except BaseException:
            self._session.close()
            raise
        self.signatures = {
            name: signature for name, signature in loaded.signature_def.items() if not name.startswith("__saved_model")
        }

    def __call__(self, signature: str, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Runs a signature; inputs that have defaults may be left out.

        Raises:
            tf.errors.OpError: as the server would answer.
        """
        definition = self.signatures[signature]
        feeds = {definition.inputs[name].name: value for name, value in inputs.items()}
        return self._session.run({name: value.name for name, value in definition.outputs.items()}, feeds)

    def __enter__(self) -> SessionModel:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Keeps TensorFlow's advice to use another loader to itself: this one is meant."""
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel("ERROR")
    try:
        yield
    finally:
        logger.setLevel(level)
