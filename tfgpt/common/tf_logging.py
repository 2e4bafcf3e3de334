"""Imports TensorFlow without its notices; its warnings and errors are shown.

TensorFlow 2.21 writes some notices before it reads TF_CPP_MIN_LOG_LEVEL, and some at level ERROR; a level that hides
those hides every error of C++ too. So the level is 1 (no INFO), and descriptor 2 is a pipe to a small process,
`tfgpt.common.library_warnings`, that leaves out known notices. It is a process because it must also read what C++
writes when it ends this process. Python's `sys.stderr` is not filtered and stays a terminal. `--verbosity=1`, or
TF_CPP_MIN_LOG_LEVEL=0, shows everything.
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
    """Imports TensorFlow and lists devices, without notices."""
    hide_notices()
    make_library_home()
    import tensorflow

    # The search for GPUs writes an error line where there is no driver; it runs only once.
    tensorflow.config.list_physical_devices()


def make_library_home() -> None:
    """Gives libraries a temporary folder where the user has no home; some would make a folder named "~" here."""
    if os.path.expanduser("~") == "~":
        folder = tempfile.mkdtemp(prefix="tfgpt-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        for name in ("KERAS_HOME", "MPLCONFIGDIR", "HF_HOME"):
            os.environ.setdefault(name, folder)


def hide_notices() -> None:
    """Hides notices of TensorFlow; does nothing where TensorFlow is imported already."""
    if os.environ.get(LEVEL) == "0" or "tensorflow" in sys.modules:
        return
    os.environ.setdefault(LEVEL, "1")
    for name in ("tensorflow", "absl"):
        logging.getLogger(name).addFilter(
            lambda record: record.levelno >= logging.WARNING and not library_warnings.is_notice(record.getMessage())
        )
    with contextlib.suppress(OSError):  # Standard error is closed, or no process may be started here.
        filter_standard_error()


def filter_standard_error() -> None:
    screen = os.dup(2)
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(library_warnings.__file__))],
            stdin=subprocess.PIPE,
            stdout=screen,
            stderr=subprocess.DEVNULL,
        )
    except OSError:
        os.close(screen)
        raise
    assert process.stdin is not None
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.flush()
        if sys.stderr.fileno() == 2:
            sys.stderr = os.fdopen(screen, "w", 1, encoding=sys.stderr.encoding, errors=sys.stderr.errors)
    os.dup2(process.stdin.fileno(), 2)
    process.stdin.close()
    atexit.register(end_filter, process, screen)


def end_filter(process: subprocess.Popen, screen: int) -> None:
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        os.dup2(screen, 2)
        process.wait(timeout=1.0)
