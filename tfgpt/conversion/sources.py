"""Opens a source of any kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tfgpt.common.adapters import is_adapter
from tfgpt.common.model_paths import FoundModel, no_weights_error
from tfgpt.conversion.adapter_source import open_adapter
from tfgpt.conversion.gguf_source import open_gguf
from tfgpt.conversion.hugging_face_source import download, open_hugging_face
from tfgpt.conversion.keras_hub_source import open_preset
from tfgpt.conversion.source import Source


def open_source(found: FoundModel, flag: str, converted: Callable[[str, str], Path]) -> Source:
    """Opens whatever a flag names, without reading it in full.

    Args:
        found: what it is.
        flag: the flag's name, for messages.
        converted: as `open_adapter`'s.

    Raises:
        UserError: it is nothing that we can read.
    """
    if found.kind == "export":
        raise no_weights_error(found, flag)
    if found.kind == "GGUF file":
        return open_gguf(found.path)
    if found.kind == "KerasHub preset":
        return open_preset(found.path)
    path, provenance = found.path, {}
    if found.kind == "hub name":
        path = download(found.path.as_posix(), flag)
        provenance = {"hub": found.path.as_posix(), "revision": path.name}
    return open_adapter(path, converted) if is_adapter(path) else open_hugging_face(path, provenance)
