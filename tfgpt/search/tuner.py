"""KerasTuner's tuner over our training runs: each trial is `train` of a recipe, in a process of its own."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from concurrent import futures
from typing import Any

import keras_tuner
from keras_tuner.engine.base_tuner import BaseTuner
from keras_tuner.oracles import RandomSearchOracle
from keras_tuner.src import config

from tfgpt.common.atomic_files import write_json
from tfgpt.common.command_line import shell_command
from tfgpt.common.errors import RunError
from tfgpt.search.oracle import COMPLETED, FAILED, INVALID, hyperparameters, make_oracle, say
from tfgpt.search.study import Study, TrialSpec
from tfgpt.search.trial_process import TrialProcess
from tfgpt.search.trial_results import best_row, in_words, read_result, request_of

SIGN_OF_LIFE = 5.0  # seconds between a worker's
IDLE_PAUSE = 0.5  # seconds before a worker that has nothing to do asks again


class SearchStopped(keras_tuner.errors.FatalError):
    """Ends KerasTuner's search loop; the trial stays as it is and goes on when the search does."""


class OneAtATime:
    """An oracle that several threads ask.

    KerasTuner's own lock stays locked for ever when a call raises; after that this one answers nobody any more.
    """

    def __init__(self, oracle: Any):
        self.oracle, self.lock, self.broken = oracle, threading.Lock(), False

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.oracle, name)
        if name not in ("create_trial", "update_trial", "end_trial", "get_trial"):
            return value

        def call(*arguments: Any, **keywords: Any) -> Any:
            with self.lock:
                if self.broken:
                    raise SearchStopped
                try:
                    return value(*arguments, **keywords)
                except BaseException:
                    self.broken = True
                    raise

        return call


class TrainingTuner(BaseTuner):
    """A worker.

    Args:
        plan: the search.
        oracle: that proposes the values.
        process: for the trials.
        stopping: set when the search is to save and stop.
    """

    def __init__(self, plan: Study, oracle: Any, process: TrialProcess, stopping: threading.Event):
        with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
            super().__init__(oracle, directory=str(plan.directory), project_name="keras_tuner")
        self.plan, self.process, self.stopping = plan, process, stopping
        self.asked = False
        self.last_sign = 0.0

    def work(self) -> None:
        """Trains trials until the oracle has no more, or the search stops.

        Raises:
            Exception: what is not a trial's fault.
        """
        try:
            self.search()
        except SearchStopped as stopped:
            if stopped.__cause__ is not None:
                raise stopped.__cause__ from None

    def save(self) -> None:
        """Nothing: all state is the oracle's."""

    def pre_create_trial(self) -> None:
        """Before the oracle is asked for a trial: not in a hurry when it had none last time."""
        if self.asked:
            time.sleep(IDLE_PAUSE)
        self.asked = True
        if self.stopping.is_set():
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
            if result["status"] == "killed" and self.stopping.is_set():
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

    def known_result(self, request: TrialSpec) -> dict[str, Any] | None:
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
        if self.stopping.is_set():
            self.process.stop()
        if time.monotonic() - self.last_sign >= SIGN_OF_LIFE:
            self.last_sign = time.monotonic()
            self.oracle.get_trial(self.trial_id)

    def on_trial_end(self, trial: Any) -> None:
        if trial.status not in (COMPLETED, FAILED, INVALID):
            raise SearchStopped
        self.oracle.end_trial(trial)


def play(plan: Study, team: list[TrialProcess], stopping: threading.Event) -> int:
    """Searches, or does this machine's part in a cluster.

    Args:
        plan: the search.
        team: a process for the trials of each worker.
        stopping: set when the search is to save and stop.

    Returns:
        The exit code.

    Raises:
        TfgptError: the search cannot go on.
    """
    # KerasTuner would print the traceback of every failed trial; the table has the reason.
    config.DEBUG = False
    name = os.environ.get("KERASTUNER_TUNER_ID", "")
    cluster = bool(name)
    if cluster and "chief" not in name:
        from tfgpt.search.cluster import PatientClient, reporting_a_lost_chief

        tuner = TrainingTuner(plan, blank_oracle(plan), team[0], stopping)
        tuner.oracle = PatientClient(blank_oracle(plan), stopping.is_set)
        with reporting_a_lost_chief(name):
            work([tuner], stopping)
        return 0
    oracle = make_oracle(plan, cluster or len(team) > 1)
    if cluster:
        from tfgpt.search.cluster import serve

        serve(oracle, stopping)
    else:
        shared = OneAtATime(oracle)
        tuners = [TrainingTuner(plan, oracle, process, stopping) for process in team]
        for number, tuner in enumerate(tuners):
            tuner.oracle, tuner.tuner_id = shared, f"tuner{number}"
        work(tuners, stopping)
    return summary(plan, oracle)


def blank_oracle(plan: Study) -> Any:
    """A worker's oracle knows the space and the objective; what it says of trials comes from the chief."""
    objective = keras_tuner.Objective(plan.search.search_objective, "min")
    return RandomSearchOracle(objective=objective, hyperparameters=hyperparameters(plan.space))


def work(tuners: list[TrainingTuner], stopping: threading.Event) -> None:
    """Trains trials, a thread for each tuner, until the oracle has no more.

    Raises:
        TfgptError: the search cannot go on.
    """
    with futures.ThreadPoolExecutor(len(tuners)) as pool:
        running = [pool.submit(tuner.work) for tuner in tuners]
        # A wait without an end would keep signals from the main thread.
        while futures.wait(running, 0.5).not_done:
            if any(each.done() and each.exception() for each in running):
                stopping.set()
    for each in running:
        each.result()


def summary(plan: Study, oracle: Any) -> int:
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
    say("Train with it: " + shell_command("train", f"--flagfile={plan.directory / 'best.cfg'}"))
    return 0
