"""What a misspelled name was meant to be: one helper for flags, choices, commands, presets, samples and files."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path

ALIKE, MUCH_LESS_ALIKE = 0.7, 0.08  # of 1
SHOWN = 8  # names of a folder in one line


def closest_names(name: str, names: Iterable[str], count: int = 3) -> list[str]:
    """At most `count` of `names` that are spelled like `name`, the nearest first; upper and lower case are the same."""
    by_lower: dict[str, str] = {}
    for known in names:
        by_lower.setdefault(known.lower(), known)
    near = difflib.get_close_matches(name.lower(), by_lower, count, ALIKE)
    likeness = [difflib.SequenceMatcher(None, found, name.lower()).ratio() for found in near]
    return [by_lower[found] for found, like in zip(near, likeness) if like > likeness[0] - MUCH_LESS_ALIKE]


def did_you_mean(name: str, names: Iterable[str], prefix: str = "") -> str:
    """The end of a line that refuses `name`: "; did you mean --learning_rate?", or nothing when none is near.

    Args:
        name: what was given.
        names: what there is.
        prefix: stands before each name, such as "--".
    """
    found = [f"{prefix}{known}" for known in closest_names(name, names)]
    return f"; did you mean {' or '.join(found)}?" if found else ""


def cannot_read(path: str | os.PathLike, error: OSError) -> str:
    """A line for a file that cannot be opened: `no_such_file`, or the system's reason."""
    if isinstance(error, FileNotFoundError):
        return no_such_file(path)
    return f"{path}: cannot be read ({error.strerror})"


def no_such_file(path: str | os.PathLike, what: str = "no such file") -> str:
    """A line for a path that does not exist: which name is near, or what the folder has.

    Args:
        path: what was given.
        what: "no such file", or what else is missing ("no such file or folder").
    """
    wanted = Path(path).expanduser()
    try:
        folder = next(parent for parent in wanted.parents if parent.is_dir())
        missing = wanted.relative_to(folder).parts[0]
        names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    except (StopIteration, OSError, IndexError):
        return f"{path}: {what}"
    where = f"the folder {folder if str(folder) != '.' else Path.cwd()}"
    absent = "" if folder == wanted.parent else f" (there is no {folder / missing})"
    if near := closest_names(missing, names):
        return f"{path}: {what}{absent}; did you mean {' or '.join(str(folder / name) for name in near)}?"
    if not names:
        return f"{path}: {what}{absent}; {where} is empty"
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{path}: {what}{absent}; {where} has {', '.join(names[:SHOWN])}{more}"
