"""Communication between the processes of one run, and translation of the errors that a lost process causes.

With one process (any strategy but MultiWorkerMirroredStrategy) nothing here communicates. With several, every process
runs the same program and meets the others in the all-reduce of each update. Host-local decisions (a signal arrived,
a checkpoint is due, which checkpoint the chief found) are synchronised here with collectives, to avoid deadlocks.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context

from tfgpt.common.command_line import PATH_ERRNOS
from tfgpt.common.errors import TfgptError, UserError
from tfgpt.training.distribution.cluster import Cluster
from tfgpt.training.distribution.startup_barrier import WorkerLost, connect, format_workers

Result = TypeVar("Result")
GRACE = 5.0  # seconds
INTERRUPTED = 128 + signal.SIGINT
CONNECTION_ERRORS = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError)
DERIVED = b"type.googleapis.com/tensorflow.DerivedStatus"
MESSAGE = "tfgpt ends with exit code {} because {};"
"""A message in the text of a TensorFlow error, see `HostGroup.tell`."""


class WorkerStopped(TfgptError):
    """Another worker of the cluster ended with an error; the message says which one and why.

    All workers end with the same `exit_code`, so that `--restarts` repeats none of them.
    """

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


class HostGroup:
    """The processes that train together.

    Attributes:
        is_chief: whether this process writes files and logs.
        all_informed: whether the others know the error that this process ends with.

    Example:

    >>> hosts = HostGroup(tf.distribute.get_strategy())
    >>> hosts.is_chief, hosts.run_on_chief(lambda: 3), hosts.gather([1.0, 2.0]).tolist()
    (True, 3, [[1.0, 2.0]])
    """

    def __init__(self, strategy: tf.distribute.Strategy):
        self.strategy = strategy
        self.cluster = Cluster(("localhost:0",), 0)
        if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            resolver = strategy.cluster_resolver
            self.cluster = Cluster(tuple(resolver.cluster_spec().as_dict()["worker"]), resolver.task_id)
        self.count = len(self.cluster.workers)
        self.is_chief = self.cluster.index == 0
        self.all_informed = False
        self.sum_function = tf.function(self.sum_in_graph, autograph=False, reduce_retracing=True)

    def log(self, text: str) -> None:
        if self.is_chief:
            print(text, flush=True)

    # Collectives: all hosts call them together.

    def gather(self, numbers: Sequence[float]) -> np.ndarray:
        """Returns the numbers of all hosts on every host: float64 [hosts, len(numbers)]."""
        rows = np.zeros([self.count, len(numbers)])
        rows[self.cluster.index] = numbers
        return self.sum(rows.reshape(-1)).reshape(rows.shape)

    def broadcast(self, value: Any) -> Any:
        """Returns the chief's JSON value on every host; the values of the others are ignored."""
        if self.count == 1:
            return value
        content = np.frombuffer(json.dumps(value).encode() if self.is_chief else b"", np.uint8)
        length = int(self.gather([len(content)])[0, 0])
        # Collectives of GPUs know no small integers; a byte fits a float32 exactly.
        content = self.sum(content.astype(np.float32) if self.is_chief else np.zeros(length, np.float32))
        return json.loads(content.astype(np.uint8).tobytes())

    def broadcast_variables(
        self, arrays: Mapping[str, np.ndarray] | None, variables: Mapping[str, Any]
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Yields the chief's arrays by the names of `variables`, on every host."""
        for name, variable in variables.items():
            array = None if arrays is None else arrays[name]
            if self.count > 1:
                dtype = tf.as_dtype(variable.dtype).name
                carrier = np.float32 if dtype == "float32" else np.float64
                flat = np.zeros(int(np.prod(variable.shape)), carrier) if array is None else array.astype(carrier)
                array = self.sum(flat.reshape(-1)).astype(dtype).reshape(tuple(variable.shape))
            yield name, np.asarray(array)

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Returns the sum over hosts of a one-dimensional float array."""
        if self.count == 1:
            return values
        return self.sum_function(tf.constant(values)).numpy()

    def sum_in_graph(self, values: tf.Tensor) -> tf.Tensor:
        local_replicas = self.strategy.num_replicas_in_sync // self.count

        def of_replica(values: tf.Tensor) -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            first = tf.equal(context.replica_id_in_sync_group % local_replicas, 0)
            return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.where(first, values, tf.zeros_like(values)))

        result = self.strategy.run(of_replica, args=(values,))
        return self.strategy.experimental_local_results(result)[0]

    def run_on_chief(self, function: Callable[[], Result]) -> Result | None:
        """Calls `function` on the chief while the others wait; they return None.

        An exception of the call is raised on the chief, and WorkerStopped with the same exit code on the others.
        """
        if self.count == 1:
            return function()
        result, failure, caught = None, None, None
        if self.is_chief:
            try:
                result = function()
            except Exception as error:
                caught, failure = error, exit_code_and_line(error)
        failure = self.broadcast(failure)
        self.all_informed = failure is not None
        if caught is not None:
            raise caught
        if failure is not None:
            raise WorkerStopped(f"the chief stopped: {failure[1]}", failure[0])
        return result

    # Loss of a host.

    @contextlib.contextmanager
    def readable_worker_errors(self, advice: Callable[[], str]) -> Iterator[None]:
        """Translates TensorFlow's errors about a lost worker, and tells the other workers an error of this one.

        A worker that dies is noticed at the next collective operation, within seconds. A worker that hangs, or whose
        network fails, is noticed when its heartbeats are missing for `strategy.HEARTBEAT_SECONDS`.

        Raises WorkerLost if a worker is gone (`advice` returns the end of the message), WorkerStopped if one ended with
        an error, and KeyboardInterrupt if a signal stopped one.
        """
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            if self.count == 1 or self.all_informed:
                raise
            # TensorFlow marks errors of any type that aborted a collective operation from outside as derived.
            if not isinstance(error, CONNECTION_ERRORS) and not (
                isinstance(error, tf.errors.OpError) and DERIVED in error.experimental_payloads
            ):
                exit_code, line = exit_code_and_line(error)
                self.tell(exit_code, f"{format_workers(self.cluster, [self.cluster.index])} stopped: {line}")
                raise
            exit_code, line = message_in(error) or (WorkerLost.exit_code, f"lost {self.lost_workers()}")
            if exit_code == INTERRUPTED:
                raise KeyboardInterrupt from error
            if exit_code != WorkerLost.exit_code:
                raise WorkerStopped(line, exit_code) from error
            self.tell(exit_code, line)
            raise WorkerLost(f"{line}: it was killed, or its machine or network failed; {advice()}") from error

    def tell(self, exit_code: int, line: str) -> None:
        """Sends exit code and reason to the other workers, in the text of the TensorFlow error that they receive.

        Without it, workers that notice a loss late name the first worker to leave instead of the lost one.
        """
        message = MESSAGE.format(exit_code, urllib.parse.quote(line))
        # The chief runs the service: when the chief is lost, all workers notice. ValueError: there is no service.
        with contextlib.suppress(tf.errors.OpError, ValueError):
            context.context().report_error_to_cluster(tf.errors.ABORTED, message)
        # Delay the exit: workers that notice later would blame the first one to leave.
        time.sleep(GRACE)

    def lost_workers(self) -> str:
        """Names the workers that do not answer, or else those whose heartbeats TensorFlow misses."""
        others = [index for index in range(self.count) if index != self.cluster.index]
        lost = []
        for index in others:
            try:
                connect(self.cluster.workers[index]).close()
            except OSError:
                lost.append(index)
        if not lost:
            with contextlib.suppress(tf.errors.OpError, ValueError):
                states = context.context().get_task_states([("worker", self.count)])
                # Workers that told the others something are in the state ABORTED.
                lost = [index for index in others if isinstance(states[index], tf.errors.UnavailableError)]
        return format_workers(self.cluster, lost) or "one of the workers"


def exit_code_and_line(error: BaseException) -> tuple[int, str]:
    line = " ".join(str(error).split())[:1000]
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, line
    if isinstance(error, TfgptError):
        return error.exit_code, line
    if isinstance(error, OSError) and error.filename and error.errno in PATH_ERRNOS:
        return UserError.exit_code, line
    return 1, f"{type(error).__name__}: {line} (its own output says where)"


def message_in(error: BaseException) -> tuple[int, str] | None:
    """Returns what another worker sent with `HostGroup.tell`; TensorFlow 2.21 delivers it in the error's text only."""
    found = re.search(MESSAGE.format(r"(\d+)", "([^ ;]*)"), str(error))
    return (int(found[1]), urllib.parse.unquote(found[2])) if found else None
