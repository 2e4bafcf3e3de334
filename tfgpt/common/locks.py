"""Writer locks: one process at a time writes a directory; readers are never blocked.

On a local disk the lock is the operating system's (`filelock.FileLock`): it ends with the process that holds it, also
after `kill -9`. A network disk cannot promise that, so there the lock is a lease (`filelock.SoftFileLease`): a file
that its holder touches every `RENEWAL_SECONDS` and that is free `LEASE_SECONDS` after it was touched last.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock

from tfgpt.common.atomic_files import readable_write_errors
from tfgpt.common.errors import UserError

LEASE_SECONDS, RENEWAL_SECONDS = 60.0, 10.0
NETWORK_FILE_SYSTEMS = (
    "9p", "afs", "beegfs", "ceph", "cifs", "fuse.", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "ocfs2",
    "smb", "virtiofs", "webdav",
)  # fmt: skip


class DirectoryInUse(UserError):
    """Another process writes the directory."""


@contextlib.contextmanager
def writer_lock(lock_file: str | os.PathLike, directory: str | os.PathLike, flag: str | None = None) -> Iterator[None]:
    """Holds the right to write `directory` for the time of the block.

    Beside `lock_file`, a file with the suffix `.json` names the holder (process, host, command, start).

    Args:
        lock_file: the file that stands for the lock; its folder is made when it is missing.
        directory: what is written, as error messages call it.
        flag: the flag that names the directory, such as "run_dir"; error messages tell to change it.

    Raises:
        DirectoryInUse: another process holds the lock; the line names it and what to do.
        UserError: the lock file cannot be written.
    """
    lock_file = Path(lock_file)
    record = record_of(lock_file)
    with contextlib.ExitStack() as stack:
        with readable_write_errors(lock_file.parent):
            lock_file.parent.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(acquired(lock_file))
            except filelock.Timeout:
                raise DirectoryInUse(in_use(Path(directory), lock_file, record, flag)) from None
            write_record(record)
        try:
            yield
        finally:
            # Removed while it is held: a newcomer that has opened it already sees that and opens another one.
            for path in (record, lock_file):
                with contextlib.suppress(OSError):
                    path.unlink()


@contextlib.contextmanager
def waiting_writer_lock(lock_file: str | os.PathLike, directory: str | os.PathLike) -> Iterator[None]:
    """Like `writer_lock`, but waits for another holder instead of failing, and says so once on standard error."""
    said = False
    while True:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(writer_lock(lock_file, directory))
            except DirectoryInUse:
                if not said:
                    by = holder(record_of(Path(lock_file)))
                    print(f"Waiting for {by}, which makes {directory}", file=sys.stderr, flush=True)
                said = True
                time.sleep(0.2)
                continue
            yield
            return


def acquired(lock_file: Path) -> filelock.BaseFileLock | filelock.AcquireReturnProxy:
    """The lock, held. Raises `filelock.Timeout` at once when another process holds it."""
    if not on_network_disk(lock_file.parent):
        try:
            return filelock.FileLock(lock_file, timeout=0, thread_local=False, fallback_to_soft=False).acquire()
        except filelock.Timeout:
            raise
        except OSError as error:
            # A file system without native locks is treated as a network disk.
            if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK):
                raise
    lease_file = lock_file.with_name(f"{lock_file.name}.lease")
    try:
        return lease(lease_file).acquire()
    except filelock.Timeout:
        if seconds_since_renewal(lease_file) < LEASE_SECONDS:
            raise
    # Expired. filelock would watch it for another minute; the file server's clock has watched it already. The second
    # lease keeps two newcomers from removing each other's files.
    with lease(lease_file.with_name(f"{lease_file.name}.expired")):
        if seconds_since_renewal(lease_file) >= LEASE_SECONDS:
            lease_file.unlink(missing_ok=True)
        return lease(lease_file).acquire()


def lease(path: Path) -> filelock.SoftFileLease:
    """A lease that ends this process when another one has taken it over."""
    return filelock.SoftFileLease(
        path,
        timeout=0,
        thread_local=False,
        lease_duration=LEASE_SECONDS,
        heartbeat_interval=RENEWAL_SECONDS,
        on_compromise=end_process,
    )


def end_process(loss: filelock.LeaseCompromise) -> None:
    """Ends the process at once: another one writes the same directory now, and every file is replaced as a whole."""
    print(
        f"tfgpt: {loss.lock_file}: the lease was lost ({loss.reason}): this process was suspended or cut off from the "
        f"disk for more than {LEASE_SECONDS:.0f} s; another one may write here now, so this one ends",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)


def seconds_since_renewal(lease_file: Path) -> float:
    """Seconds since a lease was renewed, by the clock of the file server, whatever this machine's says."""
    try:
        with tempfile.NamedTemporaryFile(dir=lease_file.parent, prefix=".clock.") as now:
            return os.stat(now.name).st_mtime - lease_file.stat().st_mtime
    except FileNotFoundError:
        return LEASE_SECONDS


def on_network_disk(directory: Path) -> bool:
    """Whether a directory lies on a network file system; $TFGPT_LOCKS (native, lease) decides where that is wrong."""
    wish = os.environ.get("TFGPT_LOCKS")
    if wish in ("native", "lease"):
        return wish == "lease"
    try:
        import psutil

        mounts = psutil.disk_partitions(all=True)
    except (ImportError, OSError):
        return False
    place = os.path.realpath(directory)
    around = [
        mount for mount in mounts if place == mount.mountpoint or place.startswith(os.path.join(mount.mountpoint, ""))
    ]
    nearest = max(around, key=lambda mount: len(mount.mountpoint), default=None)
    if nearest is None:
        return place.startswith("\\\\")
    return nearest.fstype.lower().startswith(NETWORK_FILE_SYSTEMS) or "remote" in nearest.opts.split(",")


def record_of(lock_file: Path) -> Path:
    """The file that names a lock's holder."""
    return lock_file.with_name(f"{lock_file.name}.json")


def write_record(path: Path) -> None:
    """Writes who holds the lock. Only a help for people: a missing record never hinders."""
    program = Path(sys.argv[0] or "python")
    name = f"tfgpt.{program.stem}" if program.parent.name == "tfgpt" else program.name
    command = " ".join([name, *sys.argv[1:2]])
    content = {
        "process": os.getpid(),
        "host": platform.node(),
        "command": command[:100],
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    with contextlib.suppress(OSError):
        path.write_text(json.dumps(content), encoding="utf-8")


def holder(record: Path) -> str:
    """The holder of a lock in words."""
    content: Any = None
    with contextlib.suppress(OSError, ValueError):
        content = json.loads(record.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        return "another process"
    return "process {process} on {host} ({command}, since {since})".format(
        **{name: content.get(name, "?") for name in ("process", "host", "command", "since")}
    )


def in_use(directory: Path, lock_file: Path, record: Path, flag: str | None) -> str:
    """The line that refuses a second writer."""
    lease_file = lock_file.with_name(f"{lock_file.name}.lease")
    other = f", or choose another --{flag}" if flag else ""
    prefix = f"--{flag}: " if flag else ""
    wait = ""
    if lease_file.exists() and on_network_disk(lock_file.parent):
        left = max(0.0, LEASE_SECONDS - seconds_since_renewal(lease_file))
        wait = f" (if it is dead, its lease ends in {left:.0f} s)"
    return f"{prefix}{directory} is being written by {holder(record)}; wait until it has ended{wait}{other}"
