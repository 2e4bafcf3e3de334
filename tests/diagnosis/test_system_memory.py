"""Memory of a machine: RAM, cgroup limits of both versions, memory of this process."""

from pathlib import Path

import psutil
import pytest

from tfgpt.diagnosis import system_memory

GIB = 1 << 30


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 16 GiB with 12 GiB free, of which this process holds 1 GiB; no cgroup limits."""
    monkeypatch.setattr(system_memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path / "proc"))
    monkeypatch.setattr(system_memory, "held_memory", lambda: GIB)
    monkeypatch.setattr(system_memory, "CGROUPS", tmp_path / "cgroup")
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text(f"MemTotal: {16 << 20} kB\nMemFree: 1 kB\nMemAvailable: {12 << 20} kB\n")
    (tmp_path / "proc" / "self" / "cgroup").write_text("0::/\n")
    return tmp_path


def test_without_limits_ram_counts_and_what_the_process_holds_is_available_to_it(system: Path):
    assert system_memory.main_memory() == system_memory.Memory(16 * GIB, 13 * GIB, "RAM")


def test_the_limit_of_an_outer_cgroup_counts(system: Path):
    (system / "proc" / "self" / "cgroup").write_text("0::/batch/job7/task\n")
    job = system / "cgroup" / "batch" / "job7"
    (job / "task").mkdir(parents=True)
    (job / "task" / "memory.max").write_text("max\n")
    (job / "memory.max").write_text(f"{4 * GIB}\n")
    (job / "memory.current").write_text(f"{3 * GIB}\n")
    (job / "memory.stat").write_text(f"anon 5\ninactive_file {GIB}\n")
    # 4 GiB, of which 3 - 1 (cache) are used, 1 of them by this process.
    assert system_memory.main_memory() == system_memory.Memory(4 * GIB, 3 * GIB, "cgroup limit")


def test_version_1_limits_count_in_a_container_that_shows_the_hosts_path(system: Path):
    (system / "proc" / "self" / "cgroup").write_text("5:cpu:/docker/abc\n4:memory:/docker/abc\n")
    root = system / "cgroup" / "memory"
    root.mkdir(parents=True)
    (root / "memory.limit_in_bytes").write_text(f"{2 * GIB}\n")
    (root / "memory.usage_in_bytes").write_text(f"{GIB}\n")
    assert system_memory.main_memory() == system_memory.Memory(2 * GIB, 2 * GIB, "cgroup limit")
    (root / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert system_memory.main_memory().source == "RAM"


def test_a_release_that_does_not_tell_a_gpus_memory_is_no_error_but_a_gpu_that_fails_is(monkeypatch):
    from tensorflow.python.client import device_lib

    def fail() -> None:
        raise RuntimeError("CUDA_ERROR_ECC_UNCORRECTABLE")

    monkeypatch.setattr(device_lib, "list_local_devices", fail)
    with pytest.raises(RuntimeError):
        system_memory.gpu_memory()
    monkeypatch.delattr(device_lib, "list_local_devices")
    assert system_memory.gpu_memory() is None
