"""Standard input, output and error, there in every process: services and `<&-` start programs without."""

from __future__ import annotations

import os
import sys


def open_standard_streams() -> None:
    """Opens what is closed of them on the null device.

    Else Python has None in the place of `sys.stdin`, and, worse, the next file that is opened gets the number 1 or 2:
    what a library writes to standard error would go into a checkpoint.
    """
    for place, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(place)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != place:
                os.dup2(opened, place)
                os.close(opened)
            os.set_inheritable(place, True)
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(place, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
