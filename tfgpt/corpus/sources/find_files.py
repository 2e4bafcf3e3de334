"""The files that a path, a folder or a glob stands for, and what of a folder is left out."""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tfgpt.common.did_you_mean import no_such_file
from tfgpt.common.errors import SettingError, UserError
from tfgpt.corpus.sources.unsupported_formats import is_media, unsupported_format

MOST_NAMED = 3
DESCRIPTIONS = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json")


class LeftOut:
    """What of a folder is not read, by reason."""

    def __init__(self) -> None:
        self.names: dict[str, list[str]] = {}

    def add(self, reason: str, path: Path, folder: Path) -> None:
        """Counts a file or folder below a folder."""
        self.names.setdefault(reason, []).append(str(path.relative_to(folder)))

    def in_words(self, spec: str) -> str | None:
        """A line about it, or None."""
        groups = (f"{len(names):,} {reason} ({some(names)})" for reason, names in sorted(self.names.items()))
        return f"{spec}: left out: {'; '.join(groups)}" if self.names else None


def some(names: Iterable[str]) -> str:
    """The first few names."""
    ordered = sorted(names)
    return ", ".join(ordered[:MOST_NAMED]) + (", …" if len(ordered) > MOST_NAMED else "")


def find_files(
    spec: str, flag: str, notes: list[str] | None = None, wanted: Callable[[Path], bool] | None = None
) -> list[Path]:
    """The files that a path, a folder or a glob stands for, sorted by name.

    A name that exists is that file or folder, whatever characters are in it; only what is left of a path may be a glob.
    Of a folder every file is taken, in folders within it too, links to folders followed, except what has a name that
    starts with a dot, pictures, sounds and films, a data set's card, and what a link leads back to. A glob is read as
    Python's `glob` does, `**` included; folders that it matches are passed over.

    Args:
        spec: what the user wrote.
        flag: the flag to name in error lines.
        notes: gets a line about what of a folder is left out.
        wanted: which of a folder's files are meant; None: all.

    Raises:
        UserError: nothing is there, or a file is in a format that is not read; the line says what to do with it.
    """
    path = Path(spec).expanduser()
    try:
        there = path.exists()
    except OSError as error:
        raise SettingError(flag, f"{spec}: cannot be looked up ({error.strerror})") from error
    if path.is_dir():
        left_out = LeftOut()
        found = sorted(files_under(path, left_out, wanted or (lambda file: True)))
        words = left_out.in_words(spec)
        if not found:
            raise SettingError(flag, f"{words} and nothing is left" if words else f"{spec}: no file in this folder")
        if notes is not None and words:
            notes.append(words)
    elif path.is_file():
        found = [path]
    elif there:
        raise SettingError(flag, f"{spec}: neither a file nor a folder")
    elif not glob.has_magic(spec):
        raise SettingError(flag, no_such_file(spec, "no such file or folder"))
    else:
        matches = sorted(Path(match) for match in glob.glob(pattern_of(path), recursive=True))
        found = each_once(match for match in matches if match.is_file())
        if not found:
            words = "matches folders only; add /** to take the files in them" if matches else "matches no file"
            raise SettingError(flag, f"{spec}: {words}")
    refused = {file: words for file in found if (words := unsupported_format(file))}
    for file, words in refused.items():
        others = len(refused) - 1
        more = f"; {others} more of these files {'is' if others == 1 else 'are'} of such formats" if others else ""
        raise SettingError(flag, f"{file}: {words}{more}")
    return found


def pattern_of(path: Path) -> str:
    """A glob in which the part of the path that exists stands for itself, with whatever brackets are in it."""
    there = next(parent for parent in path.parents if parent.exists())
    rest = path.relative_to(there)
    return str(Path(glob.escape(str(there)), rest))


def each_once(files: Iterable[Path]) -> list[Path]:
    """The files without those that are the same one under a longer name, as links to folders above make them."""
    shortest: dict[str, Path] = {}
    for file in files:
        known = shortest.setdefault(os.path.realpath(file), file)
        if len(file.parts) < len(known.parts):
            shortest[os.path.realpath(file)] = file
    return sorted(shortest.values())


def files_under(folder: Path, left_out: LeftOut, wanted: Callable[[Path], bool]) -> Iterator[Path]:
    """The files below a folder. Each real folder is visited once, where it has a name of its own here, under that."""
    root = Path(os.path.realpath(folder))
    visited: set[str] = set()
    waiting = [folder]
    while waiting:
        links: list[Path] = []
        for start in waiting:
            if start != folder and root.is_relative_to(os.path.realpath(start)):
                left_out.add("link to a folder above", start, folder)
                continue
            for parent, folders, names in os.walk(start, onerror=refuse):
                place, real = Path(parent), os.path.realpath(parent)
                if real in visited:
                    left_out.add("link to a folder read already", place, folder)
                    folders.clear()
                    continue
                visited.add(real)
                for path in (place / name for name in sorted(folders)):
                    if path.name.startswith("."):
                        left_out.add("hidden", path, folder)
                    elif path.is_symlink():
                        links.append(path)
                folders[:] = [name for name in folders if not name.startswith(".")]
                for path in (place / name for name in names):
                    reason = why_left_out(path, wanted)
                    if reason:
                        left_out.add(reason, path, folder)
                    else:
                        yield path
        waiting = links


def why_left_out(path: Path, wanted: Callable[[Path], bool]) -> str | None:
    """Why a file of a folder is not read, or None."""
    if path.name.startswith("."):
        return "hidden"
    if not path.is_file():
        return "link to nothing" if path.is_symlink() else "no file"
    if is_media(path):
        return "picture, sound or film"
    if describes_data(path):
        return "description of the data"
    return None if wanted(path) else "of another kind"


def describes_data(path: Path) -> bool:
    """Whether a file says what is in the others, as Hugging Face's data sets have them: no text to learn."""
    if path.name == "README.md":
        with contextlib.suppress(OSError), open(path, "rb") as file:
            return file.read(4) in (b"---\n", b"---\r")
    return path.name in DESCRIPTIONS


def refuse(error: OSError) -> None:
    """A folder that cannot be listed."""
    raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from error
