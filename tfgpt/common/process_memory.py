"""The memory that processes hold, on Linux, macOS and Windows."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import psutil

PROC = Path("/proc")


def held_memory(process_id: int | None = None) -> int:
    """Bytes of RAM that a process holds now; None: this one. 0 when it is gone."""
    try:
        return psutil.Process(process_id).memory_info().rss
    except psutil.Error:
        return 0


def peak_memory() -> int:
    """The most bytes that this process held since `forget_peak` (or since it began); 0 where nobody knows."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # VmHWM, not getrusage: the latter is inherited from the parent and cannot be set back.
    with contextlib.suppress(OSError):
        for line in (PROC / "self" / "status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    return 0


def forget_peak() -> bool:
    """Begins a new peak for `peak_memory`; False where that is not possible and the old one stays (not on Linux)."""
    try:
        (PROC / "self" / "clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True
