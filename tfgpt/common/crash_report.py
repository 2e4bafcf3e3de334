"""Crash files: traceback, versions and flags of an unforeseen exception, without secrets."""

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
# Credentials in an address, in its parameters, with the prefixes of known services, and after "Bearer".
SECRETS = re.compile(
    r"(?<=://)[^\s/@'\"]+(?=@)"
    r"|(?P<parameter>[?&][^=\s&]*(?:token|key|secret|sig|password)[^=\s&]*=)[^\s&'\"]+"
    r"|\b(?-i:sk|hf|ghp|gho|github_pat|glpat|xox[abp])[-_][\w-]{8,}"
    r"|(?P<bearer>Bearer\s+)[\w.~+/=-]{8,}",
    re.IGNORECASE,
)
SHORTEST_SECRET = 6  # characters; a shorter value of a variable, such as KEY_COUNT=3, is not a secret


def write_crash_file(command: str, arguments: Sequence[str], error: BaseException) -> Path | None:
    """Writes traceback, versions and flags into the user's log folder, or else the system's temporary one.

    Returns:
        The file, readable by this user only; None where no folder can be written.
    """
    now = datetime.datetime.now().astimezone()
    lines = [
        f"tfgpt.{command}: {type(error).__name__}, {now.isoformat(timespec='seconds')}",
        "",
        f"Python {platform.python_version()}, {platform.platform()}",
        *(f"{name} {installed_version(name)}" for name in PACKAGES),
        "",
        f"python -m tfgpt.{command} {shlex.join(arguments)}",
        "",
        *traceback.format_exception(error),
    ]
    content = redact_secrets("\n".join(lines), arguments).encode("utf-8", "backslashreplace")
    folders = [Path(tempfile.gettempdir())]
    with contextlib.suppress(RuntimeError):  # The user has no home folder.
        folders.insert(0, platformdirs.user_log_path("tfgpt", appauthor=False))
    for folder in folders:
        path = folder / f"crash-{command}-{now:%Y%m%d-%H%M%S}-{os.getpid()}.txt"
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(content)
            return path
    return None


def installed_version(package: str) -> str:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return "not installed"


def redact_secrets(text: str, arguments: Sequence[str] = ()) -> str:
    """Returns the text with *** for credentials, recognized by their form or as values of environment variables.

    Args:
        arguments: a command line; a variable named by a flag such as --api_keys_env is secret too.
    """
    named = [argument.split("=", 1)[1] for argument in arguments if re.match(r"--?\w+_env=", argument)]
    for name, value in os.environ.items():
        if name in named or SECRET_NAMES.search(name):
            for part in {value, *value.split(",")}:
                if len(part.strip()) >= SHORTEST_SECRET:
                    text = text.replace(part.strip(), "***")
    return SECRETS.sub(lambda match: f"{match['parameter'] or match['bearer'] or ''}***", text)
