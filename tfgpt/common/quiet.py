"""Importing TensorFlow without its notices about oneDNN and CUDA, which stand before every output otherwise."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator


def import_tensorflow() -> None:
    """Imports TensorFlow and lets it look for devices, without what its libraries write to standard error meanwhile.

    That is shown only if the import fails.

    TensorFlow 2.21 writes two notices a shared library whatever TF_CPP_MIN_LOG_LEVEL says, because it logs before
    it has read it. Set TF_CPP_MIN_LOG_LEVEL=0 to see everything.
    """
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "0":
        return
    # 3 hides C++ lines of level ERROR too: on CPUs TensorFlow 2.21 writes such lines about what it then does otherwise
    # (no GPU driver; no oneDNN kernel for an integer product). What fails raises a Python exception besides.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with captured_standard_error():
        import tensorflow

        # Looking for GPUs where there is no driver writes an error line of its own; afterwards the answer is known.
        tensorflow.config.list_physical_devices()


@contextlib.contextmanager
def captured_standard_error() -> Iterator[None]:
    """Keeps what C++ and Python write to file descriptor 2 inside the block, and writes it out if the block raises."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as kept:
        before = os.dup(2)
        try:
            os.dup2(kept.fileno(), 2)
            yield
        except BaseException:
            os.dup2(before, 2)
            kept.seek(0)
            os.write(2, kept.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(before, 2)
            os.close(before)
