"""Where the model runs: in this process, or in TensorFlow Serving. Neither needs Keras or the model's code."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfgpt.common.errors import UserError
from tfgpt.common.model_paths import EXPORT_METADATA, find_export
from tfgpt.serving.client import DEFAULTS, Answer, Client, Transport, connect, failed, input_types
from tfgpt.serving.export_metadata import read_description
from tfgpt.serving.serve_config import ServeConfig
from tfgpt.serving.tf_serving_transports import as_bytes, with_text
from tfgpt.tokenization.jinja_template import DEFAULT_TEMPLATE, ChatTemplate


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """What the front end knows of the model.

    Attributes:
        name: what clients call it.
        created: when the version was made, in seconds since 1970; 0 where that is not known.
        context_length: tokens that a prompt may have; 0 where that is not known.
        vocabulary_size: the tokenizer's ids; 0 where that is not known.
        defaults: the sampling inputs of a request that does not say otherwise.
        template: how conversations are written.
    """

    name: str
    created: int
    context_length: int
    vocabulary_size: int
    defaults: Mapping[str, Any]
    template: ChatTemplate = DEFAULT_TEMPLATE


class SavedModelTransport:
    """An export in this process, behind the interface of the transports to TensorFlow Serving.

    Args:
        version: the version's directory.
        name: the model's name, for error messages.
    """

    def __init__(self, version: Path, name: str):
        import tensorflow as tf

        from tfgpt.serving.saved_model_session import SessionModel

        self.address, self._name = str(version), name
        self._error: type[Exception] = tf.errors.OpError
        try:
            self._model = SessionModel(version)
        except (OSError, RuntimeError, tf.errors.OpError) as error:  # RuntimeError: nothing in it is tagged "serve".
            raise UserError(f"--model: {version} cannot be loaded: {error}") from error

    def predict(self, name: str, inputs: Mapping[str, list[Any]], seconds: float) -> Answer:
        """As `Transport.predict`; a call that has begun is not cut short, whatever `seconds` says."""
        import numpy as np

        types = input_types(name)
        arrays = {
            key: np.array([as_bytes(item) for item in value], object)
            if types[key] == "string"
            else np.array(value, types[key])
            for key, value in inputs.items()
        }
        try:
            outputs = self._model(name, arrays)
        except self._error as error:
            # The classes of TensorFlow's errors are named as gRPC's codes are: InvalidArgumentError.
            kind = type(error).__name__.removesuffix("Error")
            code = "".join(f"_{letter}" if letter.isupper() else letter.upper() for letter in kind).lstrip("_")
            raise failed(self.address, self._name, name, code, getattr(error, "message", "")) from error
        return with_text(name, {key: value.tolist() for key, value in outputs.items()})

    def close(self) -> None:
        """Ends the session."""
        self._model.__exit__()


def load_model_info(config: ServeConfig, version: Path | None) -> ModelInfo:
    """What is known of the model.

    Args:
        config: the flags.
        version: the export, where there is one.

    Raises:
        UserError: the export's own description cannot be read.
    """
    name, created, context, defaults = config.model_name, 0, config.context_length, dict(DEFAULTS)
    template, vocabulary = DEFAULT_TEMPLATE, 0
    if version is not None:
        described = read_description(version)
        try:
            context = context or int(described["decoder"]["max_sequence_length"])
            vocabulary = int(described["tokenizer"]["vocabulary_size"])
            defaults.update({key: value for key, value in described["defaults"].items() if key in DEFAULTS})
            # Exports of before 2026-11-25 have ours, and say nothing of it.
            template = (
                ChatTemplate.from_dict(described["chat_template"]) if "chat_template" in described else DEFAULT_TEMPLATE
            )
            created = int((version / EXPORT_METADATA).stat().st_mtime)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{version / EXPORT_METADATA}: is no description of an export ({error!r})") from error
        folder = Path(os.path.abspath(version))
        name = name or (folder.parent.name if folder.name.isdigit() else folder.name)
    return ModelInfo(name, created, context, vocabulary, defaults, template)


def open_backend(config: ServeConfig) -> tuple[Client, ModelInfo]:
    """Connects to the backend, or loads the model into this process.

    Raises:
        UserError: the export is not there or cannot be loaded.
    """
    version = find_export(config.model) if config.model else None
    info = load_model_info(config, version)
    if config.backend:
        address = config.backend.removeprefix("grpc://")
        client = connect(
            address, model=info.name, label=config.label, seconds=config.backend_seconds, template=info.template
        )
        return client, info
    assert version is not None  # The settings see to it.
    transport: Transport = SavedModelTransport(version, info.name)
    return Client(transport, config.backend_seconds, info.template), info
