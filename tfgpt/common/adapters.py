"""Adapter directories in PEFT's layout (adapter_config.json beside adapter_model.safetensors) and the model below."""

from __future__ import annotations

import os
from pathlib import Path

from tfgpt.common.atomic_files import read_json
from tfgpt.common.errors import UserError

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def is_adapter(directory: str | os.PathLike) -> bool:
    """Whether a directory holds an adapter and no model of its own.

    A config.json without weights is the base's, which trainers leave beside the adapter.

    Raises:
        UserError: it holds both: some programs apply the adapter to the model beside it, others have merged it.
    """
    directory = Path(directory)
    if not (directory / ADAPTER_CONFIG).is_file():
        return False
    whole = next((name for name in WEIGHTS if (directory / name).is_file()), None)
    if whole and (directory / "config.json").is_file():
        if (directory / ADAPTER_WEIGHTS).is_file():
            raise UserError(
                f"{directory}: holds a whole model ({whole}) and an adapter ({ADAPTER_WEIGHTS}); which one is meant? "
                "Move the other elsewhere"
            )
        return False
    return True


def named_base(directory: str | os.PathLike) -> str:
    """What an adapter says its base is (`base_model_name_or_path`): a path or a name on the Hugging Face hub.

    Raises:
        UserError: it says nothing.
    """
    path = Path(directory) / ADAPTER_CONFIG
    content = read_json(path)
    name = content.get("base_model_name_or_path") if isinstance(content, dict) else None
    if not isinstance(name, str) or not name:
        raise UserError(f"{path}: has no base_model_name_or_path; write the directory of the model below there")
    return name


def local_base(directory: str | os.PathLike) -> Path | None:
    """The model directory below an adapter, where it is here as one: a run stands for its `model/`, and a relative path
    begins here or in the adapter's directory.

    Raises:
        UserError: as `named_base`.
    """
    name = named_base(directory)
    for candidate in (Path(name).expanduser(), Path(directory) / name):
        for model in (candidate, candidate / "model"):
            if (model / "config.json").is_file():
                return model
    return None


def base_directory(directory: str | os.PathLike) -> Path:
    """The model directory that an adapter belongs to (`base_model_name_or_path`); any other directory is its own.

    Raises:
        UserError: the adapter names none, or one that is not there.
    """
    directory = Path(directory)
    if not is_adapter(directory):
        return directory
    base = local_base(directory)
    if base is None:
        path = directory / ADAPTER_CONFIG
        raise UserError(
            f"{path}: base_model_name_or_path is {named_base(directory)}, where there is no model; write its directory "
            "there"
        )
    return base
