"""Standard input, output and error of this process."""

from __future__ import annotations

import os
import sys


def open_standard_streams() -> None:
    """Opens closed standard streams on the null device; services and `<&-` start programs without them.

    Otherwise the next file that is opened gets the descriptor 1 or 2, and the messages of a library go into it.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
            os.set_inheritable(descriptor, True)
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def redirect_output(file: int) -> None:
    """Redirects standard output and error of this process, including those of C++, to an open file."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.dup2(file, 1)
    os.dup2(file, 2)
    # On Windows a console is not written to through its descriptor.
    sys.stdout, sys.stderr = (
        os.fdopen(descriptor, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)
        for descriptor in (1, 2)
    )
