"""Memory and disk space of this machine: RAM, cgroup limits and GPUs."""

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
    """Memory that a run can use, in bytes, and the free part of it, including what this process holds."""

    total: int
    available: int
    source: str  # "RAM", "cgroup limit" (of a container or a batch job) or "GPU"


def main_memory() -> Memory:
    held, ram = held_memory(), psutil.virtual_memory()
    memory = Memory(ram.total, min(ram.total, ram.available + held), "RAM")
    for limit, used in cgroup_limits():
        total, source = (limit, "cgroup limit") if limit < memory.total else (memory.total, memory.source)
        memory = Memory(total, min(memory.available, limit - used + held), source)
    return memory


def cgroup_limits() -> list[tuple[int, int]]:
    """Returns (limit, used bytes without file cache) of the memory cgroups of this process, versions 1 and 2."""
    limits = []
    with contextlib.suppress(OSError):
        for line in (PROC / "self" / "cgroup").read_text(encoding="utf-8", errors="replace").splitlines():
            number, controllers, path = line.split(":", 2)
            if number == "0":
                root, limit_file, usage_file = CGROUPS, "memory.max", "memory.current"
            elif "memory" in controllers.split(","):
                root, limit_file, usage_file = CGROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            else:
                continue
            # In a container the path can be the host's, which does not exist there; its own root does.
            directory = root / path.strip("/")
            for cgroup in (directory, *(parent for parent in directory.parents if parent.is_relative_to(root))):
                # OSError: no such cgroup; ValueError: version 2 writes "max" for no limit.
                with contextlib.suppress(OSError, ValueError):
                    limit = int((cgroup / limit_file).read_text(encoding="ascii"))
                    used = int((cgroup / usage_file).read_text(encoding="ascii"))
                    statistics = {}
                    with contextlib.suppress(OSError):
                        lines = (cgroup / "memory.stat").read_text(encoding="ascii").splitlines()
                        statistics = dict(line.split() for line in lines)
                    cache = int(statistics.get("total_inactive_file", statistics.get("inactive_file", 0)))
                    # Version 1 writes 2**63 rounded down to a page for no limit.
                    if limit < 1 << 60:
                        limits.append((limit, max(used - cache, 0)))
    return limits


def gpu_memory() -> Memory | None:
    """Returns the memory that TensorFlow may use of the smallest GPU, or None if unknown. Initializes the GPUs."""
    try:
        from tensorflow.python.client import device_lib

        limits = [device.memory_limit for device in device_lib.list_local_devices() if device.device_type == "GPU"]
    except (ImportError, AttributeError):  # There is no public function; other releases may move this one.
        return None
    return Memory(min(limits), min(limits), "GPU") if limits else None


def free_disk(path: str | os.PathLike) -> int:
    """Returns the free bytes of the file system of `path`, which need not exist."""
    path = Path(path).absolute()
    return shutil.disk_usage(next(folder for folder in (path, *path.parents) if folder.exists())).free
