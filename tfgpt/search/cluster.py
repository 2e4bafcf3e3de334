"""Searches on several machines: KerasTuner's chief and its workers' way to it, over gRPC."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
from keras_tuner.src import protos
from keras_tuner.src.distribute import oracle_client
from keras_tuner.src.distribute.oracle_chief import OracleServicer
from keras_tuner.src.distribute.oracle_client import OracleClient

from tfgpt.common.errors import RunError
from tfgpt.search.tuner import SearchStopped

CALL_TIMEOUT = 60.0  # seconds of one call to the chief; then it is made again
CHIEF_PATIENCE = 3600.0  # seconds that a worker waits for a chief that is not there, as long as KerasTuner's do


class PatientClient(OracleClient):
    """A worker's way to the chief, which may be killed and come back.

    A call may arrive twice when its answer was lost; the oracle allows that.

    Args:
        oracle: knows the objective.
        give_up: asked between calls whether not to try again.
    """

    def __init__(self, oracle: Any, give_up: Callable[[], bool]):
        super().__init__(oracle)
        self.give_up = give_up
        oracle_client.TIMEOUT = CALL_TIMEOUT

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if name in ("create_trial", "update_trial", "end_trial", "get_trial", "get_space", "get_best_trials"):
            return lambda *arguments, **keywords: self._patiently(value, *arguments, **keywords)
        return value

    def _patiently(self, call: Any, *arguments: Any, **keywords: Any) -> Any:
        deadline = time.monotonic() + CHIEF_PATIENCE
        while True:
            try:
                return call(*arguments, **keywords)
            except grpc.RpcError as error:
                away = error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
                if self.give_up():
                    raise SearchStopped from None
                if not away or time.monotonic() > deadline:
                    raise
                time.sleep(1.0)


class Servicer(OracleServicer):
    """The chief's side; keeps what went wrong in a call, which gRPC only tells the worker."""

    def __init__(self, oracle: Any):
        super().__init__(oracle)
        self.error: BaseException | None = None

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if name in ("CreateTrial", "UpdateTrial", "EndTrial", "GetTrial"):

            def noted(request: Any, context: Any) -> Any:
                try:
                    return value(request, context)
                except BaseException as error:
                    self.error = error
                    raise

            return noted
        return value


@contextlib.contextmanager
def reporting_a_lost_chief(worker: str) -> Iterator[None]:
    """Turns gRPC's error of a chief that is gone into a line that names the worker.

    Raises:
        RunError: the chief is gone.
    """
    try:
        yield
    except grpc.RpcError as error:
        raise RunError(f"{worker}: the chief is gone ({error.code().name})") from error


def serve(oracle: Any, stopping: threading.Event) -> None:
    """KerasTuner's chief: answers the workers until all of them know that the search is over.

    KerasTuner's own `start_server` waits for ever for a worker that is gone, and 20 seconds for one that is not.

    Raises:
        TfgptError: a trial could not be taken down (disk full), or nobody can listen at the address.
    """
    address = f"{os.environ['KERASTUNER_ORACLE_IP']}:{os.environ['KERASTUNER_ORACLE_PORT']}"
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=1))
    servicer = Servicer(oracle)
    protos.get_service_grpc().add_OracleServicer_to_server(servicer, server)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError:
        port = 0
    if not port:
        raise RunError(f"KERASTUNER_ORACLE_IP, KERASTUNER_ORACLE_PORT: the chief cannot listen at {address}")
    server.start()
    try:
        while not (stopping.is_set() or (servicer.stop_triggered and oracle.all_gone())):
            time.sleep(0.2)
            if servicer.error is not None:
                raise servicer.error
    finally:
        server.stop(1.0).wait()
