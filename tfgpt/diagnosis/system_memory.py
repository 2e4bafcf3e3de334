"""What memory this machine has: RAM, cgroups, GPUs."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from pathlib import Path

import psutil

from tfgpt.common.process_memory import held_memory

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")


@dataclasses.dataclass(frozen=True)
class Memory:
    """Memory that a run can use, in bytes.

    Attributes:
        total: all there is, or that a cgroup (a container, a batch system's job) allows.
        available: what is left of it now, this process's own included.
        source: "RAM", "cgroup limit" or "GPU".
    """

    total: int
    available: int
    source: str


def main_memory() -> Memory:
    """The machine's memory within the tightest cgroup limit."""
    own, machine = held_memory(), psutil.virtual_memory()
    best = Memory(machine.total, min(machine.total, machine.available + own), "RAM")
    for limit, used in cgroup_limits():
        available = limit - used + own
        if limit < best.total:
            best = Memory(limit, min(best.available, available), "cgroup limit")
        elif available < best.available:
            best = Memory(best.total, available, best.source)
    return best


def cgroup_limits() -> list[tuple[int, int]]:
    """(limit, used but for file cache) of every cgroup with a limit around this process; version 1 or 2."""
    found = []
    for directory, limit_file, usage_file in cgroup_directories():
        with contextlib.suppress(OSError, ValueError):
            limit = int((directory / limit_file).read_text(encoding="ascii"))
            used = int((directory / usage_file).read_text(encoding="ascii"))
            statistics = {}
            with contextlib.suppress(OSError):
                statistics = key_values(directory / "memory.stat")
            cache = statistics.get("total_inactive_file", statistics.get("inactive_file", 0))
            # Version 1 writes 2**63 rounded down to a page for "no limit", version 2 the word "max".
            if limit < 1 << 60:
                found.append((limit, max(used - cache, 0)))
    return found


def cgroup_directories() -> list[tuple[Path, str, str]]:
    """(directory, file of its limit, file of its use) of this process's memory cgroup and all those around it."""
    try:
        lines = (PROC / "self" / "cgroup").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            root, files = CGROUPS, ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            root, files = CGROUPS / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        parts = [part for part in path.split("/") if part]
        # Inside a container the path may be the host's, which is not there: its own root is, and is tried last.
        found += [(root.joinpath(*parts[:depth]), *files) for depth in range(len(parts), -1, -1)]
    return found


def key_values(path: Path) -> dict[str, int]:
    """A file of lines `name: number kB` or `name number`; {} when it is not there."""
    values = {}
    with contextlib.suppress(OSError):
        for line in path.read_text(encoding="ascii", errors="replace").splitlines():
            words = line.replace(":", " ").split()
            if len(words) >= 2 and words[1].isdigit():
                values[words[0]] = int(words[1])
    return values


def gpu_memory() -> Memory | None:
    """What TensorFlow may use of the smallest GPU, or None where it does not say. Starts the GPUs."""
    try:
        from tensorflow.python.client import device_lib

        limits = [device.memory_limit for device in device_lib.list_local_devices() if device.device_type == "GPU"]
    except (ImportError, AttributeError):  # No public function tells it: another release may have it elsewhere.
        return None
    return Memory(min(limits), min(limits), "GPU") if limits else None


def gpu_peak() -> int:
    """The most bytes that TensorFlow held on the first GPU since `forget_gpu_peak`."""
    import tensorflow as tf

    return int(tf.config.experimental.get_memory_info("GPU:0")["peak"])


def forget_gpu_peak() -> None:
    """Begins a new peak for `gpu_peak`."""
    import tensorflow as tf

    tf.config.experimental.reset_memory_stats("GPU:0")


def free_disk(path: str | os.PathLike) -> int:
    """Free bytes of the file system that `path` is on, or would be made on."""
    path = Path(path).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
