"""Workers meet before TensorFlow starts: whoever is missing is named, whoever comes again counts once."""

import socket
import threading
import time

import pytest

from tests.training.topologies import free_addresses
from tfgpt.training.distribution.cluster import Cluster
from tfgpt.training.distribution.startup_barrier import HELLO, WorkerLost, wait_for_all_workers


def start(cluster: Cluster, seconds: float = 20.0) -> tuple[threading.Thread, list]:
    """A worker in a thread; the list receives how it ended."""
    result: list = []

    def run() -> None:
        try:
            wait_for_all_workers(cluster, seconds, lambda line: None)
            result.append("met")
        except WorkerLost as error:
            result.append(str(error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, result


def join(*workers: tuple[threading.Thread, list]) -> list[str]:
    """How each worker ended."""
    for thread, _ in workers:
        thread.join(20)
    return [line for _, result in workers for line in result]


def test_all_go_when_the_last_has_come_and_not_before():
    addresses = tuple(free_addresses(3))
    others = [start(Cluster(addresses, index)) for index in (1, 0)]
    time.sleep(0.5)
    assert [result for _, result in others] == [[], []]
    assert join(*others, start(Cluster(addresses, 2))) == ["met"] * 3


def test_everybody_names_the_one_that_did_not_come():
    addresses = tuple(free_addresses(3))
    present = [start(Cluster(addresses, index), 2.0) for index in (0, 1)]
    line = f"worker 2 ({addresses[2]}) did not come within 2 s; start every worker of the cluster"
    assert join(*present) == [line] * 2


def test_without_a_chief_the_others_say_so():
    addresses = tuple(free_addresses(2))
    [line] = join(start(Cluster(addresses, 1), 0.5))
    assert line.startswith(f"worker 0 ({addresses[0]}), the chief, did not come within 0 s")


def test_a_worker_that_died_while_waiting_is_waited_for_again():
    addresses = tuple(free_addresses(3))
    chief = start(Cluster(addresses, 0))
    host, port = addresses[0].split(":")
    time.sleep(0.3)
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(HELLO + b"1\n")
        time.sleep(0.5)
    second = start(Cluster(addresses, 2))
    time.sleep(0.7)
    assert chief[1] == [] and second[1] == []
    assert join(chief, second, start(Cluster(addresses, 1))) == ["met"] * 3


def test_the_server_of_a_run_that_is_just_failing_is_waited_out():
    addresses = tuple(free_addresses(2))
    host, port = addresses[0].split(":")
    # A gRPC server begins with an HTTP/2 SETTINGS frame.
    with socket.create_server((host, int(port))) as old:
        other = start(Cluster(addresses, 1))
        for _ in range(2):
            connection, _ = old.accept()
            connection.sendall(b"\x00\x00\x00\x04\x00\x00\x00\x00\x00")
            connection.close()
        assert other[1] == []
    assert join(start(Cluster(addresses, 0)), other) == ["met"] * 2


def test_a_taken_port_is_named():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(WorkerLost, match=f"^port {port} of this host is taken"):
            wait_for_all_workers(Cluster((f"localhost:{port}", "localhost:1"), 0), 0.5, print)
