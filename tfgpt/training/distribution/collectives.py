"""Communication between the processes of one run, and translation of the errors that a lost process causes.

With one process (any strategy but MultiWorkerMirroredStrategy) nothing here communicates. With several, every process
runs the same program and meets the others in the all-reduce of each update. Host-local decisions (a signal arrived,
a checkpoint is due, which checkpoint the chief found) are synchronised here with collectives, to avoid deadlocks.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import signal
import time
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
DERIVED = b"type.googleapis.com/tensorflow.DerivedStatus"
MESSAGE = "tfgpt told "
"""Start of a message in the text of a TensorFlow error, see `HostGroup.tell`."""


class WorkerStopped(TfgptError):
    """Another worker of the cluster ended with an error; the message says which one and why.

    Args:
        message: the message.
        exit_code: the other worker's exit code, so that all workers end alike and `--restarts` repeats none of them.
    """

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


class HostGroup:
    """The processes that train together.

    Args:
        strategy: the strategy of the run.

    Attributes:
        cluster: their addresses and the index of this process.
        count: number of processes.
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
        """Prints a line, on the chief."""
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

        Raises:
            Exception: the exception of the call, on the chief.
            WorkerStopped: on the others, with the same exit code.
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

        Args:
            advice: returns what to do, the end of the message.

        Raises:
            WorkerLost: a worker is gone.
            WorkerStopped: a worker ended with an error.
            KeyboardInterrupt: a signal stopped a worker.
        """
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            if self.count == 1 or self.all_informed:
                raise
            if not is_worker_loss(error):
                self.tell({"worker": self.cluster.index, "failure": exit_code_and_line(error)})
                raise
            told = message_in(error)
            if "failure" in told:
                exit_code, line = told["failure"]
                if exit_code == INTERRUPTED:
                    raise KeyboardInterrupt from error
                who = format_workers(self.cluster, [told["worker"]])
                raise WorkerStopped(f"{who} stopped: {line}", exit_code) from error
            lost = told.get("lost") or self.find_lost_workers()
            self.tell({"lost": lost})
            who = format_workers(self.cluster, lost) if lost else "one of the workers"
            raise WorkerLost(f"lost {who}: it was killed, or its machine or network failed; {advice()}") from error

    def tell(self, message: Mapping[str, Any]) -> None:
        """Sends JSON values to the other workers, in the text of the TensorFlow error that they receive.

        Without it, workers that notice a loss late name the first worker to leave instead of the lost one.
        """
        content = base64.urlsafe_b64encode(json.dumps(message).encode()).decode()
        # The chief runs the service: when the chief is lost, all workers notice. ValueError: there is no service.
        with contextlib.suppress(tf.errors.OpError, ValueError):
            context.context().report_error_to_cluster(tf.errors.ABORTED, f"{MESSAGE}{content};")
        # Delay the exit: workers that notice later would blame the first one to leave.
        time.sleep(GRACE)

    def find_lost_workers(self) -> list[int]:
        """Returns the workers that do not answer, or else those whose heartbeats TensorFlow misses."""
        others = [index for index in range(self.count) if index != self.cluster.index]
        silent = [index for index in others if not is_listening(self.cluster.workers[index])]
        if silent:
            return silent
        try:
            states = context.context().get_task_states([("worker", self.count)])
        except (tf.errors.OpError, ValueError):
            return []
        # Workers that told the others something are in the state ABORTED.
        return [index for index in others if isinstance(states[index], tf.errors.UnavailableError)]


def is_worker_loss(error: BaseException) -> bool:
    """Returns whether an error comes from another worker, or the connection to it."""
    if isinstance(error, (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError)):
        return True
    # TensorFlow marks errors of any type that aborted a collective operation from outside as derived.
    return isinstance(error, tf.errors.OpError) and DERIVED in error.experimental_payloads


def exit_code_and_line(error: BaseException) -> tuple[int, str]:
    line = " ".join(str(error).split())[:1000]
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, line
    if isinstance(error, TfgptError):
        return error.exit_code, line
    if isinstance(error, OSError) and error.filename and error.errno in PATH_ERRNOS:
        return UserError.exit_code, line
    return 1, f"{type(error).__name__}: {line} (its own output says where)"


def message_in(error: BaseException) -> dict[str, Any]:
    """Returns what another worker sent with `HostGroup.tell`; TensorFlow 2.21 delivers it in the error's text only."""
    found = re.search(rf"{MESSAGE}([\w=-]+);", str(error))
    return json.loads(base64.urlsafe_b64decode(found[1])) if found else {}


def is_listening(address: str) -> bool:
    try:
        with connect(address):
            return True
    except OSError:
        return False
