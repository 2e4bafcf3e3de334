"""Metadata of exports: `tfgpt.json` in the folder, `assets.extra/tfgpt.json` in a version. No TensorFlow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tfgpt.common.errors import SettingError, UserError
from tfgpt.common.model_paths import EXPORT_METADATA
from tfgpt.common.output_directories import (
    DESCRIPTION,
    FORMATS,
    check_format,
    check_working_directory,
    write_description,
)

SERVING_FOLDER = "serving"
FORMAT = FORMATS["export"]


def read_description(version: Path) -> dict[str, Any]:
    path = version / EXPORT_METADATA
    if is_version(version):
        check_format(version.parent, "export")
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
        found = metadata.get("format", FORMAT)  # Versions written before 2026-11-28 have none.
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: not a description of an export ({error})") from error
    if found != FORMAT:
        raise UserError(
            f"{version}: is an export of format {found}, and this tfgpt knows format {FORMAT}; use the version of "
            "tfgpt that wrote it, or export the model again"
        )
    return metadata


def is_version(path: Path) -> bool:
    """Returns whether TensorFlow Serving would treat a path as a version."""
    return path.name.isascii() and path.name.isdecimal()


def check_export_root(output: str) -> Path:
    """Returns the folder of the versions; raises a SettingError if it holds files that are not part of an export."""
    path = Path(output).expanduser()
    if (path / "saved_model.pb").is_file():
        raise SettingError("output", f"{path} is a SavedModel; give the folder of its versions, such as {path.parent}")
    if path.is_dir() and not (path / DESCRIPTION).is_file():
        entries = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
        exports = [entry for entry in entries if is_version(entry) and (entry / EXPORT_METADATA).is_file()]
        if exports and all(entry in exports or entry.name == SERVING_FOLDER for entry in entries):
            write_description(path, "export")  # Exports made before 2026-11-28 have none.
    return check_working_directory(path, "export", "output")
