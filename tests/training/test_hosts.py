"""Which worker an error of TensorFlow is about; the messages are cut from real ones (TensorFlow 2.21, 2026-11-23)."""

from __future__ import annotations

import socket

import pytest
import tensorflow as tf

from tests.training.topologies import free_addresses
from tfgpt.training import hosts as module
from tfgpt.training.cluster import Cluster
from tfgpt.training.hosts import Hosts
from tfgpt.training.rendezvous import WorkerLost

KILLED = (
    "Collective ops is aborted by: Collective ops is aborted by: Socket closed\\nAdditional GRPC error information "
    "from remote target /job:worker/replica:0/task:2 while calling /tensorflow.WorkerService/RecvBuf:\\n:UNKNOWN:Error "
    'received from peer  {grpc_status:14, grpc_message:\\"Socket closed\\"}\\nThe error could be from a previous '
    "operation. Restart your program to reset.\nAdditional GRPC error information from remote target "
    "/job:worker/replica:0/task:3 while calling /tensorflow.WorkerService/RecvBuf:\n:UNKNOWN:Error received from peer  "
    '{grpc_status:14, grpc_message:"Collective ops is aborted by: Socket closed\\nAdditional GRPC error information '
    'from remote target /job:worker/replica:0/task:2 while calling /tensorflow.WorkerService/RecvBuf:\\n"}'
)
HANGING = (
    "Collective ops is aborted by: Error reported from /job:worker/task:2: The following tasks are unhealthy (stopped "
    "sending heartbeats):\\n/job:worker/replica:0/task:2\\n/job:worker/replica:0/task:3\\nThe tasks have crashed. "
    "Check the task logs.\\nAdditional GRPC error information from remote target /job:worker/replica:0/task:0 while"
)


@pytest.fixture
def hosts(monkeypatch) -> Hosts:
    """Worker 1 of four."""
    monkeypatch.setattr(module, "GRACE", 0.0)
    found = Hosts(tf.distribute.get_strategy())
    found.cluster, found.count = Cluster(tuple(free_addresses(4)), 1), 4
    return found


@pytest.mark.parametrize(("message", "words"), [(KILLED, ["worker 2 ("]), (HANGING, ["worker 2 (", "worker 3 ("])])
def test_the_worker_at_the_root_of_the_error_is_named(hosts, message, words):
    with pytest.raises(WorkerLost) as caught, hosts.watched(lambda: "go on"):
        raise tf.errors.UnavailableError(None, None, message)
    line = str(caught.value)
    assert line.startswith("lost worker 2 (") and line.endswith("; go on") and "\n" not in line
    assert [f"worker {number} (" in line for number in range(4)] == [
        f"worker {number} (" in words for number in range(4)
    ]


def test_without_a_name_in_the_error_those_that_do_not_answer_are_lost(hosts):
    host, port = hosts.cluster.workers[0].split(":")
    with socket.create_server((host, int(port))):
        assert hosts.lost("Connection reset by peer") == [2, 3]


def test_an_error_of_the_computation_stays_what_it_is(hosts):
    with pytest.raises(tf.errors.InvalidArgumentError), hosts.watched(lambda: "go on"):
        raise tf.errors.InvalidArgumentError(None, None, "indices[3] = 9 is not in [0, 7)")


def test_alone_nothing_is_a_lost_worker():
    with pytest.raises(tf.errors.UnavailableError), Hosts(tf.distribute.get_strategy()).watched(lambda: "go on"):
        raise tf.errors.UnavailableError(None, None, KILLED)
