"""Which worker an error is about, and that all workers end alike."""

import contextlib
import re
import socket

import pytest
import tensorflow as tf

from tests.conftest import ROOT
from tests.training.topologies import free_addresses, start_cluster
from tfgpt.common.errors import UserError
from tfgpt.training.distribution import collectives as module
from tfgpt.training.distribution.cluster import Cluster
from tfgpt.training.distribution.collectives import HostGroup, WorkerStopped
from tfgpt.training.distribution.startup_barrier import WorkerLost

DERIVED = {module.DERIVED: b""}


@pytest.fixture
def hosts(monkeypatch) -> HostGroup:
    monkeypatch.setattr(module, "GRACE", 0.0)
    found = HostGroup(tf.distribute.get_strategy())
    found.cluster, found.count = Cluster(tuple(free_addresses(4)), 1), 4
    return found


def listening(hosts: HostGroup, *numbers: int) -> contextlib.ExitStack:
    stack = contextlib.ExitStack()
    for number in numbers:
        host, port = hosts.cluster.workers[number].split(":")
        stack.enter_context(socket.create_server((host, int(port))))
    return stack


def test_those_that_do_not_answer_are_lost(hosts):
    with listening(hosts, 0), pytest.raises(WorkerLost) as caught, hosts.readable_worker_errors(lambda: "go on"):
        raise tf.errors.UnavailableError(None, None, "Connection reset by peer")
    line = str(caught.value)
    assert line.startswith("lost worker 2 (") and "), worker 3 (" in line and line.endswith("; go on")


def test_where_all_answer_those_whose_heartbeats_are_missing_are_lost(hosts, monkeypatch):
    # Worker 0 has told the service that it noticed something; it is not lost.
    told, silent = tf.errors.AbortedError(None, None, ""), tf.errors.UnavailableError(None, None, "")
    monkeypatch.setattr(type(module.context.context()), "get_task_states", lambda *_: [told, None, silent, None])
    with listening(hosts, 0, 2, 3), pytest.raises(WorkerLost, match=r"^lost worker 2 \(\S+\): "):
        with hosts.readable_worker_errors(lambda: "go on"):
            raise tf.errors.InternalError(None, None, "Collective ops is aborted", DERIVED)


@pytest.mark.parametrize(
    ("told", "kind", "words", "code"),
    [
        ((75, "lost worker 2 (é:1)"), WorkerLost, "lost worker 2 (é:1): it was killed", 75),
        ((2, 'worker 3 stopped: a "line"; 1 of %20'), WorkerStopped, 'worker 3 stopped: a "line"; 1 of %20', 2),
        ((130, ""), KeyboardInterrupt, "", 130),
    ],
)
def test_what_another_worker_tells_counts(hosts, monkeypatch, told, kind, words, code):
    said = []
    monkeypatch.setattr(
        type(module.context.context()), "report_error_to_cluster", lambda _, *report: said.append(report)
    )
    hosts.tell(*told)
    [(number, text)] = said
    assert number == tf.errors.ABORTED
    with pytest.raises(kind) as caught, hosts.readable_worker_errors(lambda: "go on"):
        raise tf.errors.AbortedError(None, None, f"Collective ops is aborted by: {text}\nThe error could be")
    assert str(caught.value).startswith(words) and getattr(caught.value, "exit_code", 130) == code


def test_whatever_ends_the_chief_ends_the_others_with_its_reason_and_exit_code():
    addresses, program = free_addresses(2), str(ROOT / "tests/training/failing_worker.py")
    workers = start_cluster([[program]] * 2, addresses)
    outputs = [worker.communicate(timeout=200)[0] for worker in workers]
    chief, other = ([line for line in output.splitlines() if re.match(r"\w+ \d+: ", line)] for output in outputs)
    bug = 'ZeroDivisionError: a "bug"; of two lines (its own output says where)'
    assert chief == ['ZeroDivisionError 1: a "bug";  of two lines'] * 2
    assert other == [
        f"WorkerStopped 1: the chief stopped: {bug}",
        f"WorkerStopped 1: worker 0 ({addresses[0]}) stopped: {bug}",
    ], outputs


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (KeyboardInterrupt(), 130),
        (FileNotFoundError(2, "No such file", "x.txt"), 2),
        (UserError("--a: no"), 2),
        (KeyError(), 1),
    ],
)
def test_the_others_are_told_of_every_error_with_the_exit_code_of_the_command(hosts, monkeypatch, error, code):
    said = []
    monkeypatch.setattr(type(module.context.context()), "report_error_to_cluster", lambda *given: said.append(given[2]))
    with pytest.raises(type(error)), hosts.readable_worker_errors(lambda: "go on"):
        raise error
    [text] = said
    assert module.message_in(Exception(text))[0] == code


def test_an_error_of_the_computation_stays_what_it_is(hosts):
    with pytest.raises(tf.errors.InvalidArgumentError), hosts.readable_worker_errors(lambda: "go on"):
        raise tf.errors.InvalidArgumentError(None, None, "indices[3] = 9 is not in [0, 7)")


def test_alone_nothing_is_a_lost_worker():
    with (
        pytest.raises(tf.errors.UnavailableError),
        HostGroup(tf.distribute.get_strategy()).readable_worker_errors(lambda: "go on"),
    ):
        raise tf.errors.UnavailableError(None, None, "Socket closed")
