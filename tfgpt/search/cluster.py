"""Searches on several machines: KerasTuner's chief and its clients, over gRPC."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent import futures
from typing import Any

import grpc
from keras_tuner.src import protos
from keras_tuner.src.distribute import oracle_client
from keras_tuner.src.distribute.oracle_chief import OracleServicer

from tfgpt.common.errors import RunError
from tfgpt.training.stop_signals import StopSignals

CALL_SECONDS = 60.0  # until a call to the chief is repeated
CHIEF_TIMEOUT = 3600.0  # seconds that a worker waits for the chief


class WrappedOracle:
    """An oracle, or a client of one, whose methods are called through `call(method, …)`."""

    def __init__(self, oracle: Any, call: Callable[..., Any]):
        self.oracle, self.call = oracle, call

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.oracle, name)
        return lambda *arguments, **keywords: self.call(method, *arguments, **keywords)


def connect_to_chief(worker: str, signals: StopSignals) -> WrappedOracle:
    """Returns a client of the chief's oracle, which waits for a chief that was killed and comes back.

    A call may arrive twice if its answer was lost, which the oracle allows. Calls raise RunError if the chief is gone
    for `CHIEF_TIMEOUT`, and KeyboardInterrupt if it is gone when a signal is received.
    """

    def call(method: Any, *arguments: Any, **keywords: Any) -> Any:
        deadline = time.monotonic() + CHIEF_TIMEOUT
        while True:
            try:
                return method(*arguments, **keywords)
            except grpc.RpcError as error:
                away = error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
                if signals.requested:
                    raise KeyboardInterrupt from None
                if not away or time.monotonic() > deadline:
                    raise RunError(f"{worker}: the chief is gone ({error.code().name})") from error
                time.sleep(1.0)

    oracle_client.TIMEOUT = CALL_SECONDS
    return WrappedOracle(oracle_client.OracleClient(None), call)


def serve(oracle: Any, signals: StopSignals) -> None:
    """Runs KerasTuner's chief until all workers know that the search is over.

    KerasTuner's own `start_server` waits forever for a lost worker, and hides the error of a call.
    """
    errors: list[BaseException] = []

    def call(method: Any, *arguments: Any, **keywords: Any) -> Any:
        try:
            return method(*arguments, **keywords)
        except BaseException as error:
            errors.append(error)
            raise

    address = f"{os.environ['KERASTUNER_ORACLE_IP']}:{os.environ['KERASTUNER_ORACLE_PORT']}"
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=1))
    protos.get_service_grpc().add_OracleServicer_to_server(OracleServicer(WrappedOracle(oracle, call)), server)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError:
        port = 0
    if not port:
        raise RunError(f"KERASTUNER_ORACLE_IP, KERASTUNER_ORACLE_PORT: the chief cannot listen at {address}")
    server.start()
    try:
        while not (signals.requested or (oracle.exhausted and oracle.all_workers_left())):
            time.sleep(0.2)
            if errors:
                raise errors[0]
    finally:
        server.stop(1.0).wait()
