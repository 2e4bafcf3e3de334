"""The memory of processes, on Linux, macOS and Windows."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import psutil

PROC = Path("/proc/self")


def held_memory(process_id: int | None = None) -> int:
    """Returns the bytes of RAM that a process holds, by default this one; 0 when it has ended."""
    try:
        return psutil.Process(process_id).memory_info().rss
    except psutil.Error:
        return 0


def peak_memory() -> int:
    """Returns the most bytes that this process held since `forget_peak` (or its start); 0 where it is not known."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # VmHWM, not getrusage: a process inherits the latter from its parent and cannot reset it.
    with contextlib.suppress(OSError):
        for line in (PROC / "status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    return 0


def forget_peak() -> bool:
    """Resets the peak of `peak_memory`; returns False where that is not possible (not on Linux)."""
    try:
        (PROC / "clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True
