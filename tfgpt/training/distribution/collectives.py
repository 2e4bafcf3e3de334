"""What the processes of one run tell each other, and which of them writes.

With one process (any strategy but MultiWorkerMirroredStrategy) nothing here communicates. With several, every process
runs the same program and meets the others in the all-reduce of each update; whatever one of them decides by itself
(a signal arrived, so many minutes have passed, the chief found this checkpoint) must first become common knowledge, or
they would wait for each other in different places. It does so here, through the same collective operations.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context

from tfgpt.common.command_line import PATH_ERRNOS
from tfgpt.common.errors import TfgptError, UserError
from tfgpt.training.distribution.cluster import Cluster
from tfgpt.training.distribution.startup_barrier import WorkerLost, in_words

Result = TypeVar("Result")
GRACE = 5.0  # seconds
INTERRUPTED = 128 + signal.SIGINT
DERIVED = b"type.googleapis.com/tensorflow.DerivedStatus"
TOLD = "tfgpt told "
"""Begins what one worker tells the others, see `HostGroup.tell`."""


class WorkerStopped(TfgptError):
    """Another worker of the cluster ended with an error: the line says which and why.

    Args:
        message: the line.
        exit_code: the other's, so that all workers end alike and `--restarts` repeats none of them.
    """

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


class HostGroup:
    """The processes that train together.

    Args:
        strategy: the run's.

    Attributes:
        cluster: their addresses and this one's number.
        count: how many there are.
        is_chief: whether this one writes files and speaks.
        all_know: whether the others have been told of the error that this process ends with.
    """

    def __init__(self, strategy: tf.distribute.Strategy):
        self.strategy = strategy
        self.cluster = Cluster(("localhost:0",), 0)
        if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            resolver = strategy.cluster_resolver
            self.cluster = Cluster(tuple(resolver.cluster_spec().as_dict()["worker"]), resolver.task_id)
        self.count = len(self.cluster.workers)
        self.is_chief = self.cluster.index == 0
        self.all_know = False
        self.sum_function = tf.function(self.sum_in_graph, autograph=False, reduce_retracing=True)

    def say(self, text: str) -> None:
        """A line for the person watching: the chief's only."""
        if self.is_chief:
            print(text, flush=True)

    # Common knowledge.

    def gather(self, numbers: Sequence[float]) -> np.ndarray:
        """Everybody's numbers on every host: float64 [hosts, len(numbers)]. All hosts call it together."""
        rows = np.zeros([self.count, len(numbers)])
        rows[self.cluster.index] = numbers
        return self.sum(rows.reshape(-1)).reshape(rows.shape)

    def share(self, value: Any) -> Any:
        """The chief's JSON value on every host; what the others give is not looked at."""
        if self.count == 1:
            return value
        content = np.frombuffer(json.dumps(value).encode() if self.is_chief else b"", np.uint8)
        length = int(self.gather([len(content)])[0, 0])
        # Collectives of GPUs know no small integers; a byte fits a float32 exactly.
        content = self.sum(content.astype(np.float32) if self.is_chief else np.zeros(length, np.float32))
        return json.loads(content.astype(np.uint8).tobytes())

    def share_array(self, array: np.ndarray | None, shape: Sequence[int], dtype: str) -> np.ndarray:
        """The chief's array on every host; the others give its shape and type only."""
        if self.count == 1:
            return np.asarray(array)
        carrier = np.float32 if dtype == "float32" else np.float64
        flat = np.zeros(int(np.prod(shape)), carrier)
        if self.is_chief:
            flat = np.asarray(array).astype(carrier).reshape(-1)
        return self.sum(flat).astype(dtype).reshape(shape)

    def sum(self, values: np.ndarray) -> np.ndarray:
        """The sum over hosts of a float array of one dimension."""
        if self.count == 1:
            return values
        return self.sum_function(tf.constant(values)).numpy()

    def sum_in_graph(self, values: tf.Tensor) -> tf.Tensor:
        """`sum`, where the first replica of each host brings the host's values and the others bring zeros."""
        local_replicas = self.strategy.num_replicas_in_sync // self.count

        def of_replica(values: tf.Tensor) -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            first = tf.equal(context.replica_id_in_sync_group % local_replicas, 0)
            return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.where(first, values, tf.zeros_like(values)))

        result = self.strategy.run(of_replica, args=(values,))
        return self.strategy.experimental_local_results(result)[0]

    # Who does what.

    def chief_does(self, function: Callable[[], Result]) -> Result | None:
        """The chief calls `function` while the others wait; they return None.

        Raises:
            Exception: what the chief's call raised, on the chief.
            WorkerStopped: the same on the others, with the same exit code.
        """
        if self.count == 1:
            return function()
        result, failure, caught = None, None, None
        if self.is_chief:
            try:
                result = function()
            except Exception as error:
                caught, failure = error, facts_of(error)
        failure = self.share(failure)
        self.all_know = failure is not None
        if caught is not None:
            raise caught
        if failure is not None:
            raise WorkerStopped(f"the chief stopped: {failure[1]}", failure[0])
        return result

    def share_variables(
        self, arrays: Mapping[str, np.ndarray] | None, variables: Mapping[str, Any]
    ) -> Iterator[tuple[str, np.ndarray]]:
        """The chief's arrays by the names of `variables`, on every host, one after the other."""
        for name, variable in variables.items():
            array = None if arrays is None else arrays[name]
            yield name, self.share_array(array, tuple(variable.shape), tf.as_dtype(variable.dtype).name)

    # Loss of a host.

    @contextlib.contextmanager
    def watched(self, advice: Callable[[], str]) -> Iterator[None]:
        """Turns TensorFlow's errors about a lost worker into one line, and tells the others of an error of this one.

        A worker that dies is noticed at the next collective operation, within seconds; one that hangs, or whose network
        fails, when its heartbeats have been missing for `HEARTBEAT_SECONDS` of `tfgpt.training.distribution.strategy`.

        Args:
            advice: what to do, the end of the line.

        Raises:
            WorkerLost: a worker is gone.
            WorkerStopped: a worker ended with an error.
            KeyboardInterrupt: a signal stopped a worker.
        """
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            if self.count == 1 or self.all_know:
                raise
            if not speaks_of_a_loss(error):
                self.tell({"worker": self.cluster.index, "failure": facts_of(error)})
                raise
            told = told_in(str(error))
            if "failure" in told:
                exit_code, message = told["failure"]
                if exit_code == INTERRUPTED:
                    raise KeyboardInterrupt from error
                who = in_words(self.cluster, [told["worker"]])
                raise WorkerStopped(f"{who} stopped: {message}", exit_code) from error
            numbers = told.get("lost") or self.lost()
            self.tell({"lost": numbers})
            who = in_words(self.cluster, numbers) if numbers else "one of the workers"
            raise WorkerLost(f"lost {who}: it was killed, or its machine or network failed; {advice()}") from error

    def tell(self, facts: Mapping[str, Any]) -> None:
        """Has the coordination service give the other workers JSON values, as the text of the error that they get.

        Without it one of four workers, on a machine that others used too, noticed nothing until the first of the others
        left, and named that one (two runs of four; seven of seven were right since; TensorFlow 2.21, 2026-11-25).
        """
        content = base64.urlsafe_b64encode(json.dumps(facts).encode()).decode()
        # The service is the chief's: when that one is lost, all notice by themselves. ValueError: there is none.
        with contextlib.suppress(tf.errors.OpError, ValueError):
            context.context().report_error_to_cluster(tf.errors.ABORTED, f"{TOLD}{content};")
        # Who leaves at once is taken for the lost one by those that notice later.
        time.sleep(GRACE)

    def lost(self) -> list[int]:
        """The workers that are gone: those that do not answer, else those whose heartbeats the service misses."""
        others = [number for number in range(self.count) if number != self.cluster.index]
        silent = [number for number in others if not answers(self.cluster.workers[number])]
        if silent:
            return silent
        try:
            states = context.context().get_task_states([("worker", self.count)])
        except (tf.errors.OpError, ValueError):
            return []
        # Those that told the others something are ABORTED.
        return [number for number in others if isinstance(states[number], tf.errors.UnavailableError)]


def speaks_of_a_loss(error: BaseException) -> bool:
    """Whether an error comes from another worker or the connection to it rather than from this one's computation."""
    if isinstance(error, (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError)):
        return True
    # Of whatever type, an error that aborted a collective operation from outside is marked as derived.
    return isinstance(error, tf.errors.OpError) and DERIVED in error.experimental_payloads


def facts_of(error: BaseException) -> tuple[int, str]:
    """Returns the exit code and the line of an error; the line of an error of another library begins with its type."""
    line = " ".join(str(error).split())[:1000]
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, line
    if isinstance(error, TfgptError):
        return error.exit_code, line
    if isinstance(error, OSError) and error.filename and error.errno in PATH_ERRNOS:
        return UserError.exit_code, line
    return 1, f"{type(error).__name__}: {line} (its own output says where)"


def told_in(message: str) -> dict[str, Any]:
    """What another worker told (see `HostGroup.tell`), from the text of TensorFlow's error; nothing if it told nothing.

    The text is our own; TensorFlow 2.21 has no other field in which it arrives.
    """
    found = re.search(rf"{TOLD}([\w=-]+);", message)
    return json.loads(base64.urlsafe_b64decode(found[1])) if found else {}


def answers(address: str) -> bool:
    """Whether somebody listens at "host:port"."""
    host, port = address.rsplit(":", 1)
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=2.0):
            return True
    except OSError:
        return False
