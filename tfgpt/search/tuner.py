"""KerasTuner's tuner over our training runs: each trial is `train` of a recipe, in a process of its own."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent import futures
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
import keras_tuner
from keras_tuner.engine.base_tuner import BaseTuner
from keras_tuner.src import config, protos
from keras_tuner.src.distribute import oracle_client
from keras_tuner.src.distribute.oracle_chief import OracleServicer
from keras_tuner.src.distribute.oracle_client import OracleClient

from tfgpt.common.command import command_line
from tfgpt.common.errors import RunError, TfgptError
from tfgpt.common.files import clear_write_errors, write_json
from tfgpt.search.launch import TrialProcess
from tfgpt.search.oracle import COMPLETED, FAILED, INVALID, make_oracle, say
from tfgpt.search.plan import Plan, TrialRequest
from tfgpt.search.table import best_row, in_words, read_result, request_of

SIGN_OF_LIFE = 5.0  # seconds between a worker's
IDLE_PAUSE = 0.5  # seconds before a worker that has nothing to do asks again
CALL_TIMEOUT = 60.0  # seconds of one call to the chief; then it is made again
CHIEF_PATIENCE = 3600.0  # seconds that a worker waits for a chief that is not there, as long as KerasTuner's do


class SearchStopped(keras_tuner.errors.FatalError):
    """Ends KerasTuner's search loop; the trial stays as it is and goes on when the search does."""


class TrainingTuner(BaseTuner):
    """A worker, or everything when there is only one.

    Args:
        plan: the search.
        oracle: that proposes the values; a worker's is replaced by a client of the chief's.
        control: to the launcher, which makes processes.
    """

    def __init__(self, plan: Plan, oracle: Any, control: Connection):
        self.stopping = False
        with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
            super().__init__(oracle, directory=str(plan.directory), project_name="keras_tuner")
        if self._is_worker():
            launcher = os.getppid()
            self.oracle = PatientClient(oracle, lambda: self.stopping or os.getppid() != launcher)
        self.plan = plan
        self.process = TrialProcess(control, plan.search.trial_memory_limit << 20)
        self.asked = False
        self.last_sign = 0.0

    def save(self) -> None:
        """Nothing: all state is the oracle's."""

    def pre_create_trial(self) -> None:
        """Before the oracle is asked for a trial: not in a hurry when it had none last time."""
        if self.asked:
            time.sleep(IDLE_PAUSE)
        self.asked = True
        if self.stopping:
            raise SearchStopped

    def on_trial_begin(self, trial: Any) -> None:
        self.asked = False

    def _run_and_update_trial(self, trial: Any, *arguments: Any, **keywords: Any) -> None:
        # KerasTuner's own would warn that validations have been reported already.
        self.run_trial(trial)

    def run_trial(self, trial: Any, *arguments: Any, **keywords: Any) -> Any:
        """Trains one trial; its numbers are in result.json.

        Raises:
            FailedTrialError: the trial failed and will not do better.
            SearchStopped: a signal, or something that is not the trial's fault.
            RuntimeError: the trial was killed; KerasTuner tries it once more.
        """
        request = request_of(self.plan, trial)
        try:
            result = self.known_result(request) or self.process.run(request, self.report(trial.trial_id), self.tick)
            if result["status"] == "killed" and self.stopping:
                raise SearchStopped
            if result["status"] in ("killed", "failed"):
                write_json(self.plan.trial_dir(trial.trial_id) / "result.json", {"request": vars(request), **result})
        except SearchStopped:
            raise
        except Exception as error:
            # Whatever it is, it is not the trial's failure.
            raise SearchStopped from error
        if result["status"] == "interrupted":
            raise SearchStopped
        if result["status"] == "failed":
            raise keras_tuner.errors.FailedTrialError(result["error"])
        if result["status"] == "killed":
            raise RuntimeError(result["error"])

    def known_result(self, request: TrialRequest) -> dict[str, Any] | None:
        """The result of a trial that had ended before the search was killed."""
        result = read_result(self.plan, request.trial_id)
        return result if result.get("status") in ("completed", "stopped", "failed") else None

    def report(self, trial_id: str) -> Any:
        """What to call at a validation of the trial."""

        def to_oracle(place: int, numbers: dict[str, float]) -> str:
            answer = self.oracle.update_trial(trial_id, numbers, step=place)
            return "stop" if answer.status == "STOPPED" else "go on"

        self.trial_id = trial_id
        return to_oracle

    def tick(self) -> None:
        """While a trial trains: a sign of life for the chief; and the wish to stop passed on."""
        if self.stopping:
            self.process.stop()
        if time.monotonic() - self.last_sign >= SIGN_OF_LIFE:
            self.last_sign = time.monotonic()
            self.oracle.get_trial(self.trial_id)

    def on_trial_end(self, trial: Any) -> None:
        if trial.status not in (COMPLETED, FAILED, INVALID):
            raise SearchStopped
        self.oracle.end_trial(trial)


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


def play(plan: Plan, name: str, control: Connection) -> int:
    """The life of a role: "chief" serves the oracle, another name works.

    Returns:
        The exit code.
    """
    os.environ["KERASTUNER_TUNER_ID"] = name
    # KerasTuner would print the traceback of every failed trial; the table has the reason.
    config.DEBUG = False
    parallel = "KERASTUNER_ORACLE_IP" in os.environ
    chief = parallel and "chief" in name
    try:
        if not chief and parallel:
            work(TrainingTuner(plan, blank_oracle(plan), control))
            return 0
        with alone(plan.directory):
            oracle = make_oracle(plan, parallel)
            if chief:
                serve(oracle, plan)
            else:
                work(TrainingTuner(plan, oracle, control))
            return summary(plan, oracle)
    except TfgptError as error:
        print(f"tfgpt.tune: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return error.exit_code
    except grpc.RpcError as error:
        if plan.search.parallel == 1:
            # With --parallel the chief says itself, beside this, what was wrong.
            print(f"tfgpt.tune: {name}: the chief is gone ({error.code().name})", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        return 0


def blank_oracle(plan: Plan) -> Any:
    """A worker's oracle knows the space and the objective; what it says of trials comes from the chief."""
    from tfgpt.search.oracle import RandomSearchOracle, hyperparameters

    objective = keras_tuner.Objective(plan.search.search_objective, "min")
    return RandomSearchOracle(objective=objective, hyperparameters=hyperparameters(plan.space))


@contextlib.contextmanager
def alone(directory: Path) -> Any:
    """Waits until no other process holds the search: one that was killed may be writing its last."""
    with clear_write_errors(directory), open(directory / ".lock", "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"Waiting for another process that works on {directory}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            pass
        yield


def work(tuner: TrainingTuner) -> None:
    """Trains trials until the oracle has no more.

    Raises:
        TfgptError: the search cannot go on.
    """

    def stop(number: int, frame: Any) -> None:
        tuner.stopping = True
        tuner.process.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        tuner.search()
    except SearchStopped as stopped:
        if stopped.__cause__ is not None:
            raise stopped.__cause__ from None


def serve(oracle: Any, plan: Plan) -> None:
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
        while not (servicer.stop_triggered and oracle.all_gone()):
            time.sleep(0.2)
            if servicer.error is not None:
                raise servicer.error
    finally:
        server.stop(1.0).wait()


def summary(plan: Plan, oracle: Any) -> int:
    """The last lines, when the search is over; the exit code."""
    if len(oracle.end_order) < len(oracle.trials) or not oracle.search_is_over():
        return 0
    rows = oracle.rows()
    best = best_row(plan, rows)
    failed = [row for row in rows if row.status == "failed"]
    if best is None:
        why = f": {failed[0].error}" if failed else ""
        raise RunError(f"none of {len(rows)} trials went well{why}")
    name = plan.search.search_objective
    say(f"Best of {len(rows)} trials ({len(failed)} failed): trial {best.trial_id}, {name} "
        f"{in_words(name, best.objective)}")  # fmt: skip
    say(f"  {best.values_in_words()}")
    say(f"Table: {plan.directory / 'trials.csv'}")
    say("Train with it: " + command_line("train", f"--flagfile={plan.directory / 'best.cfg'}"))
    return 0
