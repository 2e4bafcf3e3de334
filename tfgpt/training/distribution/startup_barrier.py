"""Waiting for all workers of a cluster to be there, before TensorFlow does.

TensorFlow 2.21 waits without end, deaf to Ctrl-C, for a worker that never comes, and a restarted worker can meet the
old processes of a run that is just failing. So the workers first meet here: each says its number to the chief, at the
address where TensorFlow will listen a moment later, and the chief lets all of them go once the last has come. An old
TensorFlow server at that address does not answer in this way, and is waited out.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable

from tfgpt.common.errors import RunError
from tfgpt.training.distribution.cluster import Cluster

HELLO, GO, GIVE_UP = b"tfgpt worker ", b"tfgpt go\n", b"tfgpt missing "
POLL = 0.2  # seconds


class WorkerLost(RunError):
    """A worker of the cluster is gone, or never came: starting again from the last checkpoint helps.

    The exit code is EX_TEMPFAIL of sysexits.h; `--restarts` and schedulers can tell it from a failed run.
    """

    exit_code = 75


def wait_for_all_workers(cluster: Cluster, seconds: float, report: Callable[[str], None]) -> None:
    """Returns once every worker has called this.

    Args:
        cluster: the workers; the chief listens on its own port.
        seconds: how long to wait.
        report: gets a line when it takes longer than some seconds.

    Raises:
        WorkerLost: somebody did not come in time; the line names who.
    """
    if len(cluster.workers) == 1:
        return
    if cluster.index == 0:
        wait_for_workers(cluster, seconds, report)
    else:
        wait_for_chief(cluster, seconds, report)


def wait_for_workers(cluster: Cluster, seconds: float, report: Callable[[str], None]) -> None:
    """The chief's part: takes every worker's number, then lets all go."""
    deadline, patience = time.monotonic() + seconds, time.monotonic() + 5
    present: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack, listening(port_of(cluster.workers[0]), deadline) as listener:
        while True:
            missing = [number for number in range(1, len(cluster.workers)) if not waiting(present.get(number))]
            if not missing:
                break
            if time.monotonic() > deadline:
                line = f"{in_words(cluster, missing)} did not come within {seconds:.0f} s"
                for connection in present.values():
                    with contextlib.suppress(OSError):
                        connection.sendall(GIVE_UP + line.encode() + b"\n")
                raise WorkerLost(f"{line}; start every worker of the cluster")
            if time.monotonic() > patience:
                patience = time.monotonic() + 60
                report(f"Waiting for {in_words(cluster, missing)}")
            with contextlib.suppress(OSError):
                connection = stack.enter_context(listener.accept()[0])
                connection.settimeout(2.0)
                line_read = received(connection)
                if line_read.startswith(HELLO):
                    # A worker that was restarted while we waited comes again: the newer connection counts.
                    present[int(line_read.removeprefix(HELLO))] = connection
        for connection in present.values():
            with contextlib.suppress(OSError):
                connection.sendall(GO)


def wait_for_chief(cluster: Cluster, seconds: float, report: Callable[[str], None]) -> None:
    """Another worker's part: says its number to the chief until it is let go."""
    deadline, patience = time.monotonic() + seconds, time.monotonic() + 5
    while time.monotonic() < deadline + 5:
        if time.monotonic() > patience:
            patience = time.monotonic() + 60
            report(f"Waiting for the chief, {in_words(cluster, [0])}, or for others with it")
        with contextlib.suppress(OSError):
            host, port = cluster.workers[0].rsplit(":", 1)
            with socket.create_connection((host.strip("[]"), int(port)), timeout=2.0) as connection:
                connection.sendall(HELLO + str(cluster.index).encode() + b"\n")
                # What is no chief of ours (a gRPC server) answers something else, at once.
                connection.settimeout(max(deadline + 5 - time.monotonic(), 0.1))
                answer = received(connection)
                if answer == GO.strip():
                    return
                if answer.startswith(GIVE_UP):
                    line = answer.removeprefix(GIVE_UP).decode()
                    raise WorkerLost(f"{line}; start every worker of the cluster")
        time.sleep(POLL)
    raise WorkerLost(f"{in_words(cluster, [0])}, the chief, did not come within {seconds:.0f} s; start every worker")


@contextlib.contextmanager
def listening(port: int, deadline: float):
    """A listening socket on the port; an old process may need a moment to leave it.

    Raises:
        WorkerLost: something else keeps the port.
    """
    until = min(deadline, time.monotonic() + 30)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        if os.name == "posix":  # On Windows it would let two programs have the same port.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        while True:
            try:
                listener.bind(("", port))
                break
            except OSError as error:
                if time.monotonic() > until:
                    raise WorkerLost(f"port {port} of this host is taken: {error}") from error
                time.sleep(POLL)
        listener.listen(1024)
        listener.settimeout(POLL)
        yield listener


def waiting(connection: socket.socket | None) -> bool:
    """Whether a worker that said its number is still there: its connection is open, with nothing to read."""
    if connection is None:
        return False
    connection.setblocking(False)
    try:
        return connection.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        connection.settimeout(2.0)


def received(connection: socket.socket) -> bytes:
    """One line, without its end; what comes before the connection closes if that is sooner; at most 1,000 bytes."""
    content = b""
    while not content.endswith(b"\n") and len(content) < 1000:
        more = connection.recv(1)
        if not more:
            break
        content += more
        if not b"tfgpt ".startswith(content[:6]):
            break
    return content.strip()


def port_of(address: str) -> int:
    """12345 of "host:12345"."""
    return int(address.rsplit(":", 1)[1])


def in_words(cluster: Cluster, numbers: list[int]) -> str:
    """ "worker 2 (host:port)", several with commas."""
    return ", ".join(f"worker {number} ({cluster.workers[number]})" for number in numbers)
