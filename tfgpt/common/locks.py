"""Writer locks: one process at a time writes a directory; readers are never blocked.

On a local disk the lock is the operating system's (`filelock.FileLock`), which ends with its process, even after
`kill -9`. On a network disk it is a lease (`filelock.SoftFileLease`): a file that its holder touches every
`RENEWAL_SECONDS` and that is free `LEASE_SECONDS` after the last touch.
"""

from __future__ import annotations

import collections
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
import psutil

from tfgpt.common.atomic_files import readable_write_errors
from tfgpt.common.errors import UserError

LEASE_SECONDS, RENEWAL_SECONDS = 60.0, 10.0
NETWORK_FILE_SYSTEMS = tuple(
    "9p afs beegfs ceph cifs fuse. gfs2 glusterfs gpfs lustre ncpfs nfs ocfs2 smb virtiofs webdav".split()
)


class DirectoryInUse(UserError):
    """Another process writes the directory."""


@contextlib.contextmanager
def writer_lock(lock_file: str | os.PathLike, directory: str | os.PathLike, flag: str | None = None) -> Iterator[None]:
    """Holds the lock of a directory during the block.

    The file `lock_file` + `.json` names the holder (process, host, command, start).

    Raises:
        DirectoryInUse: another process holds the lock.
    """
    lock_file = Path(lock_file)
    holder_file = lock_file.with_name(f"{lock_file.name}.json")
    with contextlib.ExitStack() as stack:
        with readable_write_errors(lock_file.parent):
            lock_file.parent.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(acquire(lock_file))
            except filelock.Timeout:
                prefix, other = (f"--{flag}: ", f", or choose another --{flag}") if flag else ("", "")
                holder = describe_holder(lock_file)
                wait, lease_file = "wait until it has ended", lock_file.with_name(f"{lock_file.name}.lease")
                if lease_file.exists() and on_network_disk(lock_file.parent):
                    left = max(0.0, LEASE_SECONDS - seconds_since_renewal(lease_file))
                    wait += f" (if it is dead, its lease ends in {left:.0f} s)"
                raise DirectoryInUse(f"{prefix}{directory} is being written by {holder}; {wait}{other}") from None
            program = Path(sys.argv[0] or "python")
            name = f"tfgpt.{program.stem}" if program.parent.name == "tfgpt" else program.name
            process = {
                "process": os.getpid(),
                "host": platform.node(),
                "command": " ".join([name, *sys.argv[1:2]])[:100],
                "since": time.strftime("%Y-%m-%d %H:%M:%S"),
            }
            with contextlib.suppress(OSError):  # The file only helps people.
                holder_file.write_text(json.dumps(process), encoding="utf-8")
        try:
            yield
        finally:
            # Removed while it is held: a process that has opened it notices that and opens another one.
            for path in (holder_file, lock_file):
                with contextlib.suppress(OSError):
                    path.unlink()


@contextlib.contextmanager
def waiting_writer_lock(lock_file: str | os.PathLike, directory: str | os.PathLike) -> Iterator[None]:
    """Like `writer_lock`, but waits for another holder instead of failing, and prints that once on standard error."""
    printed = False
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(writer_lock(lock_file, directory))
                break
            except DirectoryInUse:
                if not printed:
                    holder = describe_holder(Path(lock_file))
                    print(f"Waiting for {holder}, which makes {directory}", file=sys.stderr, flush=True)
                printed = True
                time.sleep(0.2)
        yield


def acquire(lock_file: Path) -> filelock.BaseFileLock | filelock.AcquireReturnProxy:
    """Returns the held lock. Raises `filelock.Timeout` at once when another process holds it."""
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
    # Expired by the file server's clock; filelock would watch it for another minute. The second lease keeps two new
    # processes from removing each other's files.
    with lease(lease_file.with_name(f"{lease_file.name}.expired")):
        if seconds_since_renewal(lease_file) >= LEASE_SECONDS:
            lease_file.unlink(missing_ok=True)
        return lease(lease_file).acquire()


def lease(path: Path) -> filelock.SoftFileLease:
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
    """Returns the seconds since a lease was renewed, by the clock of the file server."""
    try:
        with tempfile.NamedTemporaryFile(dir=lease_file.parent, prefix=".clock.") as now:
            return os.stat(now.name).st_mtime - lease_file.stat().st_mtime
    except FileNotFoundError:
        return LEASE_SECONDS


def on_network_disk(directory: Path) -> bool:
    """Returns whether a directory is on a network file system; $TFGPT_LOCKS (native, lease) overrides it."""
    override = os.environ.get("TFGPT_LOCKS")
    if override in ("native", "lease"):
        return override == "lease"
    try:
        mounts = psutil.disk_partitions(all=True)
    except OSError:
        return False
    path = os.path.realpath(directory)
    above = [mount for mount in mounts if f"{path}{os.sep}".startswith(os.path.join(mount.mountpoint, ""))]
    closest = max(above, key=lambda mount: len(mount.mountpoint), default=None)
    if closest is None:
        return path.startswith("\\\\")
    return closest.fstype.lower().startswith(NETWORK_FILE_SYSTEMS) or "remote" in closest.opts.split(",")


def describe_holder(lock_file: Path) -> str:
    content: Any = None
    with contextlib.suppress(OSError, ValueError):
        content = json.loads(lock_file.with_name(f"{lock_file.name}.json").read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        return "another process"
    known = collections.defaultdict(lambda: "?", content)
    return "process {process} on {host} ({command}, since {since})".format_map(known)
