"""Start-up barrier: each worker connects to the chief and continues when all have connected.

TensorFlow 2.21 waits without end, ignoring Ctrl-C, for a worker that never comes, and a restarted worker can meet the
old processes of a run that is just failing. So the workers first meet here, at the address where the chief's TensorFlow
server will listen a moment later. An old TensorFlow server at that address answers in another way and is waited out.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator

from tfgpt.common.errors import RunError
from tfgpt.training.distribution.cluster import Cluster

HELLO, GO, GIVE_UP = b"tfgpt worker ", b"tfgpt go\n", b"tfgpt missing "
POLL = 0.2  # seconds


class WorkerLost(RunError):
    """A worker of the cluster is gone, or never came: a restart from the last checkpoint helps.

    The exit code is EX_TEMPFAIL of sysexits.h; `--restarts` and schedulers can tell it from a failed run.
    """

    exit_code = 75


def wait_for_all_workers(cluster: Cluster, seconds: float, log: Callable[[str], None]) -> None:
    """Returns when every worker has called this; raises WorkerLost, naming the workers that did not come in time."""
    if len(cluster.workers) == 1:
        return
    if cluster.index == 0:
        wait_for_workers(cluster, seconds, log)
        return
    # Send this worker's index to the chief until the chief releases it.
    deadline, next_log = time.monotonic() + seconds, time.monotonic() + 5
    while time.monotonic() < deadline + 5:
        if time.monotonic() > next_log:
            next_log = time.monotonic() + 60
            log(f"Waiting for the chief, {format_workers(cluster, [0])}, or for others with it")
        with contextlib.suppress(OSError), connect(cluster.workers[0]) as connection:
            connection.sendall(HELLO + str(cluster.index).encode() + b"\n")
            # An old gRPC server answers something else, at once.
            connection.settimeout(max(deadline + 5 - time.monotonic(), 0.1))
            answer = receive_line(connection)
            if answer == GO.strip():
                return
            if answer.startswith(GIVE_UP):
                line = answer.removeprefix(GIVE_UP).decode()
                raise WorkerLost(f"{line}; start every worker of the cluster")
        time.sleep(POLL)
    who = format_workers(cluster, [0])
    raise WorkerLost(f"{who}, the chief, did not come within {seconds:.0f} s; start every worker")


def wait_for_workers(cluster: Cluster, seconds: float, log: Callable[[str], None]) -> None:
    """The chief's part: waits until every worker has sent its index, then releases all of them."""
    deadline, next_log = time.monotonic() + seconds, time.monotonic() + 5
    present: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack, listening(cluster.workers[0], deadline) as listener:
        while missing := [i for i in range(1, len(cluster.workers)) if not is_waiting(present.get(i))]:
            if time.monotonic() > deadline:
                line = f"{format_workers(cluster, missing)} did not come within {seconds:.0f} s"
                send(present, GIVE_UP + line.encode() + b"\n")
                raise WorkerLost(f"{line}; start every worker of the cluster")
            if time.monotonic() > next_log:
                next_log = time.monotonic() + 60
                log(f"Waiting for {format_workers(cluster, missing)}")
            with contextlib.suppress(OSError):
                connection = stack.enter_context(listener.accept()[0])
                connection.settimeout(2.0)
                line_read = receive_line(connection)
                if line_read.startswith(HELLO):
                    # A worker that was restarted meanwhile comes again: the newer connection counts.
                    present[int(line_read.removeprefix(HELLO))] = connection
        send(present, GO)


@contextlib.contextmanager
def listening(address: str, deadline: float) -> Iterator[socket.socket]:
    """Opens a listening socket on the port; an old process may need a moment to leave it."""
    port, until = int(address.rsplit(":", 1)[1]), min(deadline, time.monotonic() + 30)
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


def connect(address: str) -> socket.socket:
    host, port = address.rsplit(":", 1)
    return socket.create_connection((host.strip("[]"), int(port)), timeout=2.0)


def send(connections: dict[int, socket.socket], content: bytes) -> None:
    for connection in connections.values():
        with contextlib.suppress(OSError):
            connection.sendall(content)


def is_waiting(connection: socket.socket | None) -> bool:
    """Returns whether a worker is still there: its connection is open, with nothing to read."""
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


def receive_line(connection: socket.socket) -> bytes:
    """Returns one line of our own, at most 1,000 bytes; of another program's answer only the beginning."""
    content = b""
    while not content.endswith(b"\n") and len(content) < 1000:
        more = connection.recv(1)
        content += more
        if not more or not b"tfgpt ".startswith(content[:6]):
            break
    return content.strip()


def format_workers(cluster: Cluster, indices: list[int]) -> str:
    """Formats workers as "worker 2 (host:port)", separated by commas."""
    return ", ".join(f"worker {index} ({cluster.workers[index]})" for index in indices)
