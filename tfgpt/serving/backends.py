"""Backends of the server: the model in this process or in TensorFlow Serving. Neither needs Keras or model code."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfgpt.common.errors import UserError
from tfgpt.common.model_paths import EXPORT_METADATA, find_export
from tfgpt.serving.client import DEFAULTS, Client, connect
from tfgpt.serving.export_metadata import read_description
from tfgpt.serving.serve_config import ServeConfig
from tfgpt.serving.tf_serving_transports import Outputs, ServingError
from tfgpt.tokenization.jinja_template import DEFAULT_TEMPLATE, ChatTemplate


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """The metadata of a served model."""

    name: str  # the name that clients use
    created: int  # when the version was written, in seconds since 1970; 0 if unknown
    context_length: int  # the most tokens of a prompt; 0 if unknown
    vocabulary_size: int  # the number of the tokenizer's ids; 0 if unknown
    defaults: Mapping[str, Any]  # the sampling inputs that a request does not set
    template: ChatTemplate = DEFAULT_TEMPLATE  # the chat template


class SavedModelTransport:
    """An export in this process, with the interface of the transports to TensorFlow Serving."""

    def __init__(self, version: Path, name: str):
        import tensorflow as tf

        from tfgpt.serving.saved_model_session import SessionModel

        self.address, self._name = str(version), name
        self._error: type[Exception] = tf.errors.OpError
        try:
            self._model = SessionModel(version)
        except (OSError, RuntimeError, tf.errors.OpError) as error:  # RuntimeError: no graph has the tag "serve".
            raise UserError(f"--model: {version} cannot be loaded: {error}") from error

    def predict(self, name: str, inputs: Mapping[str, list[Any]], seconds: float) -> Outputs:
        """Runs a signature; a call that has started is not interrupted after `seconds`."""
        try:
            return {key: value.tolist() for key, value in self._model(name, inputs).items()}
        except self._error as error:
            # TensorFlow names its error classes after gRPC's codes: InvalidArgumentError.
            kind = type(error).__name__.removesuffix("Error")
            code = "".join(f"_{letter}" if letter.isupper() else letter.upper() for letter in kind).lstrip("_")
            raise ServingError(self.address, self._name, name, code, getattr(error, "message", "")) from error

    def close(self) -> None:
        self._model.__exit__()


def load_model_info(config: ServeConfig, version: Path | None) -> ModelInfo:
    """Returns a description of the served model, without an export from the flags alone."""
    if version is None:
        return ModelInfo(config.model_name, 0, config.context_length, 0, DEFAULTS)
    metadata = read_description(version)
    folder = Path(os.path.abspath(version))
    try:
        return ModelInfo(
            name=config.model_name or (folder.parent.name if folder.name.isdigit() else folder.name),
            created=int((version / EXPORT_METADATA).stat().st_mtime),
            context_length=config.context_length or int(metadata["decoder"]["max_sequence_length"]),
            vocabulary_size=int(metadata["tokenizer"]["vocabulary_size"]),
            defaults={name: metadata["defaults"].get(name, value) for name, value in DEFAULTS.items()},
            # Exports made before 2026-11-25 have our template and do not record it.
            template=ChatTemplate.from_dict(metadata["chat_template"])
            if "chat_template" in metadata
            else DEFAULT_TEMPLATE,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{version / EXPORT_METADATA}: not a description of an export ({error!r})") from error


def open_backend(config: ServeConfig) -> tuple[Client, ModelInfo]:
    """Connects to the backend, or loads the model into this process."""
    version = find_export(config.model) if config.model else None
    info = load_model_info(config, version)
    if config.backend:
        address, seconds = config.backend.removeprefix("grpc://"), config.backend_seconds
        return connect(address, model=info.name, label=config.label, seconds=seconds, template=info.template), info
    assert version is not None  # `ServeConfig.check` requires a model or a backend.
    return Client(SavedModelTransport(version, info.name), config.backend_seconds, info.template), info
