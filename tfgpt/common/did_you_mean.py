"""Suggestions for misspelled flags, choices, commands, presets, samples and files."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path

SMALLEST_RATIO, LARGEST_DIFFERENCE = 0.7, 0.08
MAX_NAMES_SHOWN = 8


def closest_names(name: str, names: Iterable[str]) -> list[str]:
    """Returns at most three of `names` that are spelled like `name`, ignoring case, the closest first."""
    by_lower: dict[str, str] = {}
    for known in names:
        by_lower.setdefault(known.lower(), known)
    close = difflib.get_close_matches(name.lower(), by_lower, 3, SMALLEST_RATIO)
    ratios = [difflib.SequenceMatcher(None, found, name.lower()).ratio() for found in close]
    return [by_lower[found] for found, ratio in zip(close, ratios) if ratio > ratios[0] - LARGEST_DIFFERENCE]


def did_you_mean(name: str, names: Iterable[str], prefix: str = "") -> str:
    """Returns the end of an error message, "; did you mean --learning_rate?", or "" when no name is close.

    `prefix`, such as "--", is written before each name.
    """
    found = [f"{prefix}{known}" for known in closest_names(name, names)]
    return f"; did you mean {' or '.join(found)}?" if found else ""


def cannot_read(path: str | os.PathLike, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return no_such_file(path)
    return f"{path}: cannot be read ({error.strerror})"


def no_such_file(path: str | os.PathLike, problem: str = "no such file") -> str:
    """Returns the message for a path that does not exist, with the closest names or the content of its folder."""
    wanted = Path(path).expanduser()
    try:
        folder = next(parent for parent in wanted.parents if parent.is_dir())
        missing = wanted.relative_to(folder).parts[0]
        names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    except (StopIteration, OSError, IndexError):
        return f"{path}: {problem}"
    if folder != wanted.parent:
        problem += f" (there is no {folder / missing})"
    if close := closest_names(missing, names):
        return f"{path}: {problem}; did you mean {' or '.join(str(folder / name) for name in close)}?"
    more = f" and {len(names) - MAX_NAMES_SHOWN} more" if len(names) > MAX_NAMES_SHOWN else ""
    content = f"has {', '.join(names[:MAX_NAMES_SHOWN])}{more}" if names else "is empty"
    return f"{path}: {problem}; the folder {folder if str(folder) != '.' else Path.cwd()} {content}"
