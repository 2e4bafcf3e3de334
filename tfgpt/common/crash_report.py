"""Crash files: what a report of an unforeseen exception needs, without secrets."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import re
import shlex
import tempfile
import traceback
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import platformdirs

PACKAGES = ("tfgpt", "tensorflow", "keras", "numpy", "tokenizers", "safetensors", "tensorflow-text", "keras-tuner")
SECRET_NAMES = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL|AUTH", re.IGNORECASE)
# Credentials by their look: in an address, as an address's parameter, and the prefixes that services give their keys.
SECRET_LOOKS = (
    (re.compile(r"(?<=://)[^\s/@'\"]+@"), "***@"),
    (re.compile(r"([?&][^=\s&]*(?:token|key|secret|sig|password)[^=\s&]*=)[^\s&'\"]+", re.IGNORECASE), r"\1***"),
    (re.compile(r"\b(?:sk|hf|ghp|gho|github_pat|glpat|xox[abp])[-_][\w-]{8,}"), "***"),
    (re.compile(r"(Bearer\s+)[\w.~+/=-]{8,}", re.IGNORECASE), r"\1***"),
)  # fmt: skip
SHORTEST_SECRET = 6  # characters; a shorter value of a variable such as KEY_COUNT=3 is no secret


def write_crash_file(command: str, arguments: Sequence[str], error: BaseException) -> Path | None:
    """Writes traceback, versions and flags into the user's log folder, or the system's temporary one.

    Args:
        command: the command's name.
        arguments: its command line.
        error: the exception.

    Returns:
        The file, readable by this user only; None where no folder can be written.
    """
    now = datetime.datetime.now().astimezone()
    text = "\n".join(
        [
            f"tfgpt.{command}: {type(error).__name__}, {now.isoformat(timespec='seconds')}",
            "",
            f"Python {platform.python_version()}, {platform.platform()}",
            *(f"{name} {version(name)}" for name in PACKAGES),
            "",
            f"python -m tfgpt.{command} {shlex.join(arguments)}",
            "",
            "".join(traceback.format_exception(error)),
        ]
    )
    content = redact_secrets(text, arguments).encode("utf-8", "backslashreplace")
    folders = [Path(tempfile.gettempdir())]
    with contextlib.suppress(RuntimeError):  # raised where the user has no home folder
        folders.insert(0, platformdirs.user_log_path("tfgpt", appauthor=False))
    for folder in folders:
        path = folder / f"crash-{command}-{now:%Y%m%d-%H%M%S}-{os.getpid()}.txt"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(content)
        except OSError:
            continue
        return path
    return None


def version(package: str) -> str:
    """An installed package's version."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def redact_secrets(text: str, arguments: Sequence[str] = ()) -> str:
    """The text with *** for what looks like a credential and for what the environment keeps under such a name.

    Args:
        text: any text.
        arguments: a command line; a variable that a flag such as --api_keys_env names is secret too.
    """
    named = [argument.split("=", 1)[1] for argument in arguments if re.match(r"--?\w+_env=", argument)]
    for name, value in os.environ.items():
        if name in named or SECRET_NAMES.search(name):
            for part in {value, *value.split(",")}:
                if len(part.strip()) >= SHORTEST_SECRET:
                    text = text.replace(part.strip(), "***")
    for look, instead in SECRET_LOOKS:
        text = look.sub(instead, text)
    return text
