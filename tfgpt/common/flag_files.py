"""Flag files: a flag a line, `--name=value`, as absl writes them, and quoted where a line could not hold the value."""

from __future__ import annotations

import json
from pathlib import Path

from tfgpt.common.did_you_mean import no_such_file
from tfgpt.common.errors import UserError


def flag_line(name: str, value: str) -> str:
    """The line that `read_flag_file` reads as this flag and value, whatever characters the value has.

    A value with line breaks, with blanks around it, or in double quotes is written as a JSON string.
    """
    try:
        value.encode()
        ascii_only = False
    except UnicodeEncodeError:
        ascii_only = True  # Bytes of a file name that are not UTF-8: JSON has a spelling for them, UTF-8 has none.
    plain = value == value.strip() and "\n" not in value and "\r" not in value and not is_quoted(value)
    return f"--{name}={value if plain and not ascii_only else json.dumps(value, ensure_ascii=ascii_only)}"


def is_quoted(value: str) -> bool:
    """Whether a value in a flag file is read as a JSON string."""
    return len(value) >= 2 and value[0] == value[-1] == '"'


def read_flag_file(path: str, within: tuple[Path, ...] = ()) -> list[str]:
    """The flags of a flag file and of those that it names, as arguments. Lines that begin with # or // are comments.

    Args:
        path: the file.
        within: the files that name it.

    Raises:
        UserError: the file is missing, is not UTF-8, names itself, or has a quoted value that is no JSON string.
    """
    file = Path(path).expanduser()
    if not path or not file.is_file():
        raise UserError(f"--flagfile: {no_such_file(path, 'is not a file') if path else 'a file is needed'}")
    if file.resolve() in within:
        raise UserError(f"--flagfile: {path}: names itself")
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"--flagfile: {path}: {error}") from error
    flags: list[str] = []
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith(("#", "//")):
            continue
        name, equals, value = line.partition("=")
        if is_quoted(value):
            try:
                value = json.loads(value, strict=False)
            except json.JSONDecodeError as error:
                raise UserError(
                    f"--flagfile: {path}, line {number}: a value in quotes is read as a JSON string ({error.msg}); "
                    "without the quotes it is taken as it stands"
                ) from error
        if name.lstrip("-") == "flagfile":
            flags += read_flag_file(value, (*within, file.resolve()))
        else:
            flags.append(name + equals + value)
    return flags
