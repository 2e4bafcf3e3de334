"""Writer locks: one writer, named to the second one; nothing is left behind that blocks the next start."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import types

import pytest

from tfgpt.common import locks
from tfgpt.common.errors import UserError
from tfgpt.common.locks import DirectoryInUse, on_network_disk, waiting_writer_lock, writer_lock

HOLD = """
import sys, time
from tfgpt.common.locks import writer_lock
with writer_lock(sys.argv[1], "runs/x", "run_dir"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "lock"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture(params=["native", "lease"])
def means(request, monkeypatch):
    monkeypatch.setenv("TFGPT_LOCKS", request.param)
    return request.param


def test_a_second_writer_fails_at_once_with_the_name_of_the_holder(means, holder, tmp_path):
    began = time.monotonic()
    with pytest.raises(DirectoryInUse) as refused, writer_lock(tmp_path / "lock", "runs/x", "run_dir"):
        pass
    assert time.monotonic() - began < 2
    text = str(refused.value)
    assert f"--run_dir: runs/x is being written by process {holder.pid} on {os.uname().nodename} (-c" in text
    assert "choose another --run_dir" in text
    left = re.search(r"if it is dead, its lease ends in (\d+) s", text)
    assert (left is not None and 50 <= int(left[1]) <= 60) if means == "lease" else left is None


def test_the_lock_of_a_killed_process_does_not_block_the_next_start(means, holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with writer_lock(tmp_path / "lock", "runs/x"):
        pass


def test_a_lock_is_free_after_the_block(means, tmp_path):
    for _ in range(2):
        with writer_lock(tmp_path / "lock", "runs/x"):
            with pytest.raises(DirectoryInUse), writer_lock(tmp_path / "lock", "runs/x"):
                pass
    assert list(tmp_path.iterdir()) == []


def test_a_lease_of_another_host_is_free_a_minute_after_its_last_renewal(monkeypatch, holder, tmp_path):
    monkeypatch.setenv("TFGPT_LOCKS", "lease")
    # What a host leaves behind that was switched off: nobody here can tell whether its process lives.
    with writer_lock(tmp_path / "left", "runs/x"):
        marker = (tmp_path / "left.lease").read_text().replace(f"host={os.uname().nodename}", "host=elsewhere")
    (tmp_path / "left.lease").write_text(marker)
    for age, free in ((0, False), (50, False), (61, True)):
        then = time.time() - age
        os.utime(tmp_path / "left.lease", (then, then))
        if free:
            with writer_lock(tmp_path / "left", "runs/x"):
                pass
            continue
        with pytest.raises(DirectoryInUse, match=rf"lease ends in {60 - age}|{59 - age} s"):
            with writer_lock(tmp_path / "left", "runs/x"):
                pass


def test_a_lease_is_renewed_while_it_is_held(monkeypatch, tmp_path):
    monkeypatch.setenv("TFGPT_LOCKS", "lease")
    monkeypatch.setattr(locks, "RENEWAL_SECONDS", 0.1)
    with writer_lock(tmp_path / "lock", "runs/x"):
        os.utime(tmp_path / "lock.lease", (0, 0))
        deadline = time.monotonic() + 5
        while (tmp_path / "lock.lease").stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert locks.seconds_since_renewal(tmp_path / "lock.lease") < 5


def test_waiting_for_a_lock_prints_the_holder(means, holder, tmp_path, capfd):
    def killed_soon():
        time.sleep(0.5)
        holder.kill()
        holder.wait()

    threading.Thread(target=killed_soon).start()
    with waiting_writer_lock(tmp_path / "lock", "cache/x"):
        pass
    assert f"Waiting for process {holder.pid}" in capfd.readouterr().err


def test_network_disks_are_recognised(monkeypatch, tmp_path):
    import psutil

    monkeypatch.delenv("TFGPT_LOCKS", raising=False)

    def mount(place, kind):
        return types.SimpleNamespace(mountpoint=str(place), fstype=kind, opts="rw")

    local = mount("/", "ext4")
    for kind, remote in (("nfs4", True), ("lustre", True), ("fuse.sshfs", True), ("ext4", False), ("tmpfs", False)):
        mounts = [local, mount(tmp_path, kind)]
        monkeypatch.setattr(psutil, "disk_partitions", lambda all, mounts=mounts: mounts)
        assert on_network_disk(tmp_path / "runs") == remote
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: [local, mount(f"{tmp_path}/ru", "nfs")])
    assert not on_network_disk(tmp_path / "runs")


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write here"), writer_lock(tmp_path / "file" / "lock", "x"):
        pass
