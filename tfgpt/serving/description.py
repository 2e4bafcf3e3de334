"""What an exported version says of itself, in `assets.extra/tfgpt.json`. No TensorFlow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tfgpt.common.errors import UserError

METADATA_FILE = Path("assets.extra", "tfgpt.json")
FORMAT = 1
"""The format of exports that this version of tfgpt writes and reads; those of before 2026-11-28 do not say it."""


def read_description(version: Path) -> dict[str, Any]:
    """The description of an exported version.

    Args:
        version: the version's directory.

    Raises:
        UserError: there is none, it cannot be read, or the export is of another format.
    """
    path = version / METADATA_FILE
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        found = described.get("format", FORMAT)
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: is no description of an export ({error})") from error
    if found != FORMAT:
        raise UserError(
            f"{version}: is an export of format {found}, this version of tfgpt reads format {FORMAT}; "
            "export the model again"
        )
    return described
