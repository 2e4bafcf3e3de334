"""Directories of PEFT adapters (adapter_config.json and adapter_model.safetensors), and the base models they name."""

from __future__ import annotations

import os
from pathlib import Path

from tfgpt.common.atomic_files import read_json
from tfgpt.common.errors import UserError

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def is_adapter(directory: str | os.PathLike) -> bool:
    """Returns whether a directory holds an adapter and no model.

    A config.json without weights belongs to the base; trainers copy it.
    """
    directory = Path(directory)
    if not (directory / ADAPTER_CONFIG).is_file():
        return False
    weights = next((name for name in WEIGHTS if (directory / name).is_file()), None)
    if weights and (directory / "config.json").is_file():
        if (directory / ADAPTER_WEIGHTS).is_file():
            raise UserError(
                f"{directory}: holds a whole model ({weights}) and an adapter ({ADAPTER_WEIGHTS}); which one is meant? "
                "Move the other elsewhere"
            )
        return False
    return True


def base_name(directory: str | os.PathLike) -> str:
    """Returns an adapter's `base_model_name_or_path`: a path or a name on the Hugging Face hub."""
    path = Path(directory) / ADAPTER_CONFIG
    content = read_json(path)
    name = content.get("base_model_name_or_path") if isinstance(content, dict) else None
    if not isinstance(name, str) or not name:
        raise UserError(f"{path}: has no base_model_name_or_path; write the path of the base model there")
    return name


def local_base(directory: str | os.PathLike) -> Path | None:
    """Returns the base's model directory, or None if it is not on this machine.

    Of a run, the base is `model/`. A relative path begins in the working directory or in the adapter's.
    """
    name = base_name(directory)
    for candidate in (Path(name).expanduser(), Path(directory) / name):
        for model in (candidate, candidate / "model"):
            if (model / "config.json").is_file():
                return model
    return None


def base_directory(directory: str | os.PathLike) -> Path:
    """Returns the directory with the config and the full weights: an adapter's base, or `directory` itself."""
    directory = Path(directory)
    if not is_adapter(directory):
        return directory
    base = local_base(directory)
    if base is None:
        path = directory / ADAPTER_CONFIG
        raise UserError(
            f"{path}: base_model_name_or_path is {base_name(directory)}, where there is no model; write the path of "
            "the base model there"
        )
    return base
