"""TensorFlow without its notices: standard error passes through a filter, and real warnings pass the filter.

TensorFlow 2.21 writes some notices before it has read TF_CPP_MIN_LOG_LEVEL, and some of level ERROR while nothing is
wrong; the level that hides those hides every error of C++ too. So the level is 1 (no INFO), and descriptor 2 is a pipe
to a small process, `tfgpt.common.library_warnings`, that leaves out the lines it knows. It is a process and no thread
because what is written last, when C++ ends the process, must be read as well. It stands from before the import to the
end; nothing is kept back, so that other threads may write meanwhile. Python's own `sys.stderr` does not pass through it
and stays a terminal where it was one. `--verbosity=1`, or TF_CPP_MIN_LOG_LEVEL=0, shows everything.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tfgpt.common import library_warnings

LEVEL = "TF_CPP_MIN_LOG_LEVEL"


def import_tensorflow() -> None:
    """Imports TensorFlow and lets it look for devices, without notices."""
    hide_notices()
    give_libraries_a_home()
    import tensorflow

    # Looking for GPUs where there is no driver writes an error line of its own; afterwards the answer is known.
    tensorflow.config.list_physical_devices()


def give_libraries_a_home() -> None:
    """Gives Keras, matplotlib and the hub's client a temporary folder where the user has no home (some containers).

    Keras and the hub's client would make a folder named "~" in the current one.
    """
    if os.path.expanduser("~") == "~":
        folder = tempfile.mkdtemp(prefix="tfgpt-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        for name in ("KERAS_HOME", "MPLCONFIGDIR", "HF_HOME"):
            os.environ.setdefault(name, folder)


def show_notices() -> None:
    """What --verbosity=1 does, for this process and those it starts."""
    os.environ[LEVEL] = "0"


def hide_notices() -> None:
    """Call before TensorFlow is imported; does nothing in a program that has imported it already."""
    if os.environ.get(LEVEL) == "0" or "tensorflow" in sys.modules:
        return
    os.environ.setdefault(LEVEL, "1")
    for name in ("tensorflow", "absl"):
        logging.getLogger(name).addFilter(is_worth_reading)
    filter_standard_error()


def is_worth_reading(record: logging.LogRecord) -> bool:
    """A filter for TensorFlow's Python loggers."""
    return record.levelno >= logging.WARNING and not library_warnings.is_notice(record.getMessage())


def filter_standard_error() -> None:
    """Puts the filter between descriptor 2 and where it leads, until this process ends."""
    try:
        screen = os.dup(2)
    except OSError:
        return  # Standard error is closed.
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(library_warnings.__file__))],
            stdin=subprocess.PIPE,
            stdout=screen,
            stderr=subprocess.DEVNULL,
        )
    except OSError:
        os.close(screen)
        return  # No further process may be started here: notices are the lesser evil.
    assert process.stdin is not None
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.flush()
        if sys.stderr.fileno() == 2:
            sys.stderr = os.fdopen(screen, "w", 1, encoding=sys.stderr.encoding, errors=sys.stderr.errors)
    os.dup2(process.stdin.fileno(), 2)
    process.stdin.close()
    atexit.register(end_filter, process, screen)


def end_filter(process: subprocess.Popen, screen: int) -> None:
    """Lets the filter write what it has before this process is gone."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        os.dup2(screen, 2)
        process.wait(timeout=1.0)


def redirect_output(file: int) -> None:
    """Sends everything that this process writes from now on, C++ included, to an open file instead of the screen."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.dup2(file, 1)
    os.dup2(file, 2)
    # On Windows a console is not written to through its descriptor.
    sys.stdout, sys.stderr = (
        os.fdopen(number, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False) for number in (1, 2)
    )
