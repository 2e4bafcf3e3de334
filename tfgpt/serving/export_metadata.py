"""What exports say of themselves: the folder in `tfgpt.json`, a version in `assets.extra/tfgpt.json`. No TensorFlow."""

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
    """The description of an exported version.

    Args:
        version: the version's directory.

    Raises:
        UserError: there is none, it cannot be read, or the export is of another format.
    """
    path = version / EXPORT_METADATA
    if is_version(version):
        check_format(version.parent, "export")
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        found = described.get("format", FORMAT)  # Versions of before 2026-11-28 do not say it.
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: is no description of an export ({error})") from error
    if found != FORMAT:
        raise UserError(
            f"{version}: is an export of format {found}, and this tfgpt knows format {FORMAT}; use the version of "
            "tfgpt that wrote it, or export the model again"
        )
    return described


def is_version(path: Path) -> bool:
    """Whether a path has the name of a version, which TensorFlow Serving takes for one, too."""
    return path.name.isascii() and path.name.isdecimal()


def check_export_root(output: str) -> Path:
    """Refuses a folder that holds anything but an export, before any work.

    Args:
        output: the folder of the versions, as the person wrote it.

    Raises:
        SettingError: it is refused; nothing of it was touched.
    """
    path = Path(output).expanduser()
    if (path / "saved_model.pb").is_file():
        raise SettingError("output", f"{path} is a SavedModel; give the folder of its versions, such as {path.parent}")
    if path.is_dir() and not (path / DESCRIPTION).is_file():
        found = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
        ours = [entry for entry in found if is_version(entry) and (entry / EXPORT_METADATA).is_file()]
        if ours and all(entry in ours or entry.name == SERVING_FOLDER for entry in found):
            write_description(path, "export")  # Exports of before 2026-11-28 do not say what they are.
    return check_working_directory(path, "export", "output")
