"""Finds the files of a path, a folder or a glob, and refuses unsupported formats."""

from __future__ import annotations

import collections
import contextlib
import glob
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from tfgpt.common.did_you_mean import no_such_file
from tfgpt.common.errors import SettingError, UserError
from tfgpt.corpus.sources.compressed import format_suffix

MAX_NAMES_SHOWN = 3
DESCRIPTIONS = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json")
PANDAS_READERS = {
    **{".csv": "read_csv", ".tsv": "read_table", ".parquet": "read_parquet"},
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "read_excel"),
    **dict.fromkeys((".arrow", ".feather"), "read_feather"),
}
DOCUMENTS = {
    **dict.fromkeys((".html", ".htm", ".xhtml"), ("a web page", "trafilatura")),
    ".pdf": ("a PDF document", "pdftotext"),
    ".docx": ("a Word document", "pandoc -t plain"),
    ".doc": ("a Word document", "libreoffice --convert-to txt"),
    ".odt": ("an OpenDocument text", "pandoc -t plain"),
    ".rtf": ("a Rich Text document", "pandoc -t plain"),
    ".epub": ("an e-book", "pandoc -t plain"),
    ".ipynb": ("a notebook", "jupyter nbconvert --to markdown"),
}
ARCHIVES = (".zip", ".tar", ".tgz", ".7z", ".rar")
UNKNOWN_COMPRESSIONS = (".bz2", ".xz", ".lz4", ".br")
PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".svg", ".ico")
SOUNDS_AND_FILMS = (".mp3", ".wav", ".flac", ".ogg", ".m4a", ".mp4", ".mov", ".mkv", ".avi", ".webm")


def find_files(
    spec: str, flag: str, notes: list[str] | None = None, wanted: Callable[[Path], bool] | None = None
) -> list[Path]:
    """Returns the files of a path, a folder or a glob, sorted by name.

    A name that exists is that file or folder, even with the characters of a glob in it. A folder stands for all files
    in it and in the folders below, links to folders included, except hidden files, pictures, sounds, films,
    descriptions of a dataset, and links to a folder that is read already. A glob works as Python's `glob`, `**`
    included; it takes files only.

    Args:
        notes: receives a line about the files of a folder that are left out.
        wanted: selects files of a folder; None selects all.
    """
    path = Path(spec).expanduser()
    try:
        exists = path.exists()
    except OSError as error:
        raise SettingError(flag, f"{spec}: cannot be looked up ({error.strerror})") from error
    if path.is_dir():
        left_out: dict[str, list[str]] = collections.defaultdict(list)
        found = sorted(files_under(path, left_out, wanted or (lambda file: True)))
        note = f"{spec}: left out: {describe_left_out(left_out)}" if left_out else ""
        if not found:
            raise SettingError(flag, f"{note} and nothing is left" if note else f"{spec}: no file in this folder")
        if notes is not None and note:
            notes.append(note)
    elif path.is_file():
        found = [path]
    elif exists:
        raise SettingError(flag, f"{spec}: neither a file nor a folder")
    elif not glob.has_magic(spec):
        raise SettingError(flag, no_such_file(spec, "no such file or folder"))
    else:
        found = match_glob(path, spec, flag)
    refused = {file: problem for file in found if (problem := unsupported_format(file))}
    for file, problem in refused.items():
        others = len(refused) - 1
        more = f"; {others} more of these files {'is' if others == 1 else 'are'} of such formats" if others else ""
        raise SettingError(flag, f"{file}: {problem}{more}")
    return found


def match_glob(path: Path, spec: str, flag: str) -> list[Path]:
    """Returns the files of a glob. A file that links reach by several names is returned once, by its shortest name."""
    # The part of the path that exists stands for itself, with the brackets in it.
    existing = next(parent for parent in path.parents if parent.exists())
    matches = sorted(
        Path(existing, match) for match in glob.glob(str(path.relative_to(existing)), root_dir=existing, recursive=True)
    )
    shortest: dict[str, Path] = {}
    for file in sorted((match for match in matches if match.is_file()), key=lambda file: len(file.parts)):
        shortest.setdefault(os.path.realpath(file), file)
    if not shortest:
        problem = "matches folders only; add /** to take the files in them" if matches else "matches no file"
        raise SettingError(flag, f"{spec}: {problem}")
    return sorted(shortest.values())


def describe_left_out(left_out: Mapping[str, Iterable[str]]) -> str:
    groups = []
    for reason, names in sorted(left_out.items()):
        ordered = sorted(names)
        more = ", …" if len(ordered) > MAX_NAMES_SHOWN else ""
        groups.append(f"{len(ordered):,} {reason} ({', '.join(ordered[:MAX_NAMES_SHOWN])}{more})")
    return "; ".join(groups)


def files_under(folder: Path, left_out: dict[str, list[str]], wanted: Callable[[Path], bool]) -> Iterator[Path]:
    """Yields the files below a folder, each real folder once; collects the others by reason."""

    def leave_out(reason: str, path: Path) -> None:
        left_out[reason].append(str(path.relative_to(folder)))

    root = Path(os.path.realpath(folder))
    visited: set[str] = set()
    waiting = [folder]
    while waiting:
        links: list[Path] = []
        for start in waiting:
            if start != folder and root.is_relative_to(os.path.realpath(start)):
                leave_out("link to a folder above", start)
                continue
            for parent, folders, names in os.walk(start, onerror=raise_unreadable):
                real = os.path.realpath(parent)
                if real in visited:
                    leave_out("link to a folder read already", Path(parent))
                    folders.clear()
                    continue
                visited.add(real)
                for path in (Path(parent, name) for name in sorted(folders)):
                    if path.name.startswith("."):
                        leave_out("hidden", path)
                    elif path.is_symlink():
                        links.append(path)
                folders[:] = [name for name in folders if not name.startswith(".")]
                for path in (Path(parent, name) for name in names):
                    if reason := reason_to_leave_out(path, wanted):
                        leave_out(reason, path)
                    else:
                        yield path
        waiting = links


def reason_to_leave_out(path: Path, wanted: Callable[[Path], bool]) -> str | None:
    if path.name.startswith("."):
        return "hidden"
    if not path.is_file():
        return "link to nothing" if path.is_symlink() else "not a file"
    if is_media(path):
        return "picture, sound or film"
    if describes_dataset(path):
        return "description of the data"
    return None if wanted(path) else "of another kind"


def describes_dataset(path: Path) -> bool:
    if path.name == "README.md":
        with contextlib.suppress(OSError), open(path, "rb") as file:
            return file.read(4) in (b"---\n", b"---\r")
    return path.name in DESCRIPTIONS


def raise_unreadable(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from error


def is_media(path: Path) -> bool:
    return path.suffix.lower() in (*PICTURES, *SOUNDS_AND_FILMS)


def unsupported_format(path: Path) -> str | None:
    """Returns the format of a file that is not read, by its name, and how to convert it; None for a supported one."""
    suffix = format_suffix(path)
    if suffix in PANDAS_READERS:
        call = f"pandas.{PANDAS_READERS[suffix]}({path.name!r})"
        made = path.name.split(".")[0] + ".jsonl"
        problem = (
            "a table, not text; make it JSON Lines first (one record per line, with text or a dialogue), for example "
            f"with {call}.to_json({made!r}, orient='records', lines=True)"
        )
    elif suffix in DOCUMENTS:
        kind, tool = DOCUMENTS[suffix]
        problem = f"{kind}, not text; take the text out first, for example with {tool}"
    elif suffix in ARCHIVES:
        return "an archive; unpack it and give the folder"
    elif suffix in UNKNOWN_COMPRESSIONS:
        return "compressed in a way that is not read here; unpack it, or compress it with gzip or zstd"
    elif is_media(path):
        return "a picture, a sound or a film, not text; leave it out"
    else:
        return None
    return f"{problem} (or, to learn it as it stands, name it {path.name}.txt)" if path.suffix == suffix else problem
