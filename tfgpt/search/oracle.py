"""KerasTuner's oracles with crash-safe state, lost workers, budgets and median stopping.

KerasTuner 1.4.8 proposes the values. Its own oracles write their state in place, run a finished trial again after a
kill, lose the position of a grid search and keep the trial of a lost worker forever.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import shutil
import statistics
import time
import warnings
from collections.abc import Iterator
from typing import Any

import keras_tuner
import numpy as np
import threadpoolctl
from keras_tuner.engine.trial import Trial as TunerTrial
from keras_tuner.oracles import BayesianOptimizationOracle, HyperbandOracle, RandomSearchOracle
from sklearn.exceptions import ConvergenceWarning

from tfgpt.common.atomic_files import read_json, write_json
from tfgpt.common.formatting import format_duration
from tfgpt.search.config import OBJECTIVES
from tfgpt.search.space import Space
from tfgpt.search.study import Study
from tfgpt.search.trials import FINISHED, MEASURED, Trial, TrialTable, format_value, write_best

# KerasTuner pads trial ids to the digits of this number, so that they sort in the order of their start.
MAX_TRIALS = 9999
STATUSES = {"RUNNING": "running", "INVALID": "waiting", "FAILED": "failed"}


class ResumableOracle(keras_tuner.Oracle):
    """Base of the oracles: state in one atomic file, lost workers, budgets, the median rule and the table."""

    ongoing_trials: dict[str, Any]

    def attach(self, study: Study, cluster: bool) -> None:
        self.study, self.cluster = study, cluster
        self.verbose, self.trial_limit = 0, study.search.max_trials
        self.exhausted = False  # whether a worker was told that there are no more trials
        self.last_contact: dict[str, float] = {}  # worker → time by the monotonic clock
        self.started, self.earlier_seconds = time.monotonic(), 0.0
        self.ended_rows: dict[str, Trial] = {}
        self.state_file = study.directory / "keras_tuner" / "oracle.json"
        if self.state_file.is_file():
            self.set_state(read_json(self.state_file))
            self.write_table()

    @keras_tuner.synchronized
    def create_trial(self, tuner_id: str) -> Any:
        """Returns the worker's unfinished trial, the trial of a lost worker, or a new one."""
        self.last_contact[tuner_id] = now = time.monotonic()
        timeout = self.study.search.worker_timeout
        for name, held in list(self.ongoing_trials.items()) if self.cluster else ():
            if name != tuner_id and self.last_contact.get(name, 0.0) < now - timeout:
                del self.ongoing_trials[name]
                self.tuner_ids.discard(name)
                self._retry_queue.append(held.trial_id)
                log(f"{name} is lost (no heartbeat for {timeout:.0f} s); another worker gets trial {held.trial_id}")
        resumed = tuner_id in self.ongoing_trials or bool(self._retry_queue)
        if resumed or not self.budget_is_spent():
            trial = super().create_trial(tuner_id)
        else:
            trial = TunerTrial(self.get_space(), "", "STOPPED")
            self.tuner_ids.discard(tuner_id)
        if trial.status == "RUNNING":
            self.write_table()
            row = self.row(trial.trial_id)
            log(f"Trial {trial.trial_id} {'continues' if resumed else 'starts'} ({len(self.trials)} of at most "
                f"{self.trial_limit}): {row.describe()}")  # fmt: skip
        elif trial.status == "STOPPED" and self.ongoing_trials:
            # This worker takes over if another one is lost.
            self.tuner_ids.add(tuner_id)
            return TunerTrial(self.get_space(), "", "IDLE")
        elif trial.status == "STOPPED":
            self.exhausted = True
            self.delete_checkpoints(self.end_order)
        return trial

    @keras_tuner.synchronized
    def update_trial(self, trial_id: str, metrics: dict[str, float], step: int = 0) -> Any:
        """Records a validation; returns a trial with the status STOPPED if the training must stop.

        `step` is the position in the training, see `tfgpt.search.trial.POSITIONS`.
        """
        trial = self.get_trial(trial_id)
        if self.objective.name not in metrics:  # Speed and memory are known at the end.
            return trial
        for name in metrics:
            if not trial.metrics.exists(name):
                trial.metrics.register(name, "max" if OBJECTIVES.get(name) else "min")
        super().update_trial(trial_id, metrics, step=step)
        self.save()
        return TunerTrial(self.get_space(), "", "STOPPED") if self.is_below_median(trial, step) else trial

    @keras_tuner.synchronized
    def end_trial(self, trial: Any) -> None:
        """Ends a trial whose result.json is written."""
        if trial.trial_id in self.end_order:
            return
        with contextlib.redirect_stdout(io.StringIO()):
            super().end_trial(trial)
        self.write_table()
        self.log_end(trial.trial_id)
        # With Hyperband a trial of the next rung may continue from them.
        if self.study.search.tuner != "hyperband" and trial.trial_id in self.end_order:
            self.delete_checkpoints([trial.trial_id])

    def get_trial(self, trial_id: str) -> Any:
        """Returns a trial; the call counts as a heartbeat of its worker."""
        for name, trial in self.ongoing_trials.items():
            if trial.trial_id == trial_id:
                self.last_contact[name] = time.monotonic()
        return super().get_trial(trial_id)

    def score_trial(self, trial: Any) -> None:
        value = self.study.result(trial.trial_id).get(self.objective.name)
        trial.score, trial.best_step = float("nan") if value is None else float(value), 0

    def save(self) -> None:
        write_json(self.state_file, self.get_state())

    def _save_trial(self, trial: Any) -> None:
        """Does nothing: `save` includes the trials."""

    def get_state(self) -> dict[str, Any]:
        trials = {trial_id: trial.get_state() for trial_id, trial in self.trials.items()}
        return {**super().get_state(), "trials": trials, "seconds": self.seconds()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores a state. Unfinished trials stay with the workers of a cluster, or wait for the next worker."""
        self.trials = {trial_id: TunerTrial.from_state(each) for trial_id, each in state["trials"].items()}
        super().set_state(state)
        self.earlier_seconds, self.started = state["seconds"], time.monotonic()
        unfinished = set(self.start_order) - set(self.end_order)
        for trial_id in unfinished:
            self.trials[trial_id].status = "RUNNING"
        workers = self.ongoing_trials.items() if self.cluster else ()
        self.ongoing_trials = {name: trial for name, trial in workers if trial.trial_id in unfinished}
        self.tuner_ids = set(self.ongoing_trials)
        self.last_contact = dict.fromkeys(self.ongoing_trials, time.monotonic())
        held = {trial.trial_id for trial in self.ongoing_trials.values()}
        self._retry_queue = sorted(unfinished - held, reverse=True)

    def all_workers_left(self) -> bool:
        """Returns whether each worker of a cluster is lost or knows that there are no more trials."""
        oldest = time.monotonic() - self.study.search.worker_timeout
        waiting = [name for name in self.tuner_ids if self.last_contact.get(name, 0.0) >= oldest]
        return not self.ongoing_trials and not waiting

    def table(self) -> TrialTable:
        rows = tuple(self.row(trial_id) for trial_id in sorted(self.trials))
        return TrialTable(self.study.directory, self.objective.name, tuple(self.study.space.columns()), rows)

    def delete_checkpoints(self, trial_ids: list[str]) -> None:
        for trial_id in trial_ids:
            shutil.rmtree(self.study.trial_dir(trial_id) / "checkpoints", ignore_errors=True)

    def seconds(self) -> float:
        return self.earlier_seconds + time.monotonic() - self.started

    def budget_is_spent(self) -> bool:
        search = self.study.search
        if len(self.trials) >= search.max_trials:
            return True
        if search.max_search_minutes and self.seconds() >= 60 * search.max_search_minutes:
            return True
        tokens = sum(self.row(trial_id).numbers.get("tokens_trained", 0) for trial_id in self.trials)
        return bool(search.max_search_tokens) and tokens >= search.max_search_tokens

    def is_below_median(self, trial: Any, position: int) -> bool:
        """Returns whether the best value is worse than the median of the running averages of the completed trials.

        Vizier's rule (Golovin et al. 2017, section 3.2.1, doi:10.1145/3097983.3098043).
        """
        after = self.study.search.median_stopping_after
        if not after or self.study.search.tuner == "hyperband":
            return False
        sign = -1.0 if self.objective.direction == "max" else 1.0

        def values(of: Any) -> list[float]:
            if not of.metrics.exists(self.objective.name):
                return []
            history = of.metrics.get_history(self.objective.name)
            return [sign * each.mean() for each in history if each.step <= position]

        completed = [self.trials[trial_id] for trial_id in self.end_order]
        histories = [values(each) for each in completed if each.status == "COMPLETED"]
        averages = [statistics.fmean(each) for each in histories if each]
        return len(averages) >= after and min(values(trial)) > statistics.median(averages)

    def row(self, trial_id: str) -> Trial:
        if trial_id in self.ended_rows:
            return self.ended_rows[trial_id]
        trial = self.trials[trial_id]
        values, search = trial.hyperparameters.values, self.study.search
        spec = self.study.trial_spec(trial_id, values)
        result = {} if trial.status == "RUNNING" else self.study.result(trial_id)
        status = result.get("status", "completed") if trial.status == "COMPLETED" else STATUSES[trial.status]
        numbers = {name: result[name] for name in (*MEASURED, "tokens_trained") if result.get(name) is not None}
        if "tuner/round" in values:
            # From the epochs: KerasTuner writes the latest bracket, also for a trial of an earlier one.
            rungs_left = (k for k in itertools.count() if search.hyperband_epochs / search.hyperband_factor**k
                          <= values["tuner/epochs"])  # fmt: skip
            numbers["rung"] = values["tuner/round"]
            numbers["bracket"] = values["tuner/round"] + next(rungs_left)
        row = Trial(
            trial_id=trial_id,
            status=status,
            flags=spec.flags,
            objective=result.get(self.objective.name) if status in FINISHED else None,
            numbers=numbers,
            continues=spec.continues or "",
            error=result.get("error", "") if status in ("failed", "waiting") else "",
        )
        if trial_id in self.end_order:
            self.ended_rows[trial_id] = row
        return row

    def write_table(self) -> None:
        table = self.table()
        table.write()
        write_best(self.study, table)

    def log_end(self, trial_id: str) -> None:
        row, name = self.row(trial_id), self.objective.name
        if row.status == "waiting":
            log(f"Trial {trial_id} was interrupted ({row.error}); it is tried once more")
            return
        text = f"failed: {row.error}" if row.status == "failed" else f"{name} {format_value(name, row.objective)}"
        if row.status == "stopped":
            text += f", stopped at {row.numbers['tokens']:,} tokens: worse than the median"
        elif row.status == "completed":
            memory = format_value("peak_memory_bytes", row.numbers.get("peak_memory_bytes", 0))
            text += f", {row.numbers.get('tokens_per_second', 0.0):,.0f} tokens/s, {memory}, "
            text += format_duration(row.numbers.get("seconds", 0.0))
        ranked = self.table().ranked()
        best = f"best {format_value(name, ranked[0].objective)} (trial {ranked[0].trial_id})" if ranked else "no best"
        remaining, left = max(self.trial_limit - len(self.end_order), 0), "no more trials"
        if remaining:
            seconds = self.seconds() / len(self.end_order) * remaining
            if self.study.search.max_search_minutes:
                seconds = min(seconds, max(60 * self.study.search.max_search_minutes - self.seconds(), 0.0))
            left = f"at most {remaining} more, about {format_duration(seconds)}"
        log(f"Trial {trial_id} {text}; {best}; {left}")


class RandomOracle(ResumableOracle, RandomSearchOracle):
    """Random search."""


class GridOracle(ResumableOracle):
    """All combinations in order: the trial's number is its position, so that there is no other state."""

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        values = next(itertools.islice(self.combinations(), int(trial_id), None), None)
        return {"status": "STOPPED" if values is None else "RUNNING", "values": values}

    def combinations(self) -> Iterator[dict[str, Any]]:
        """Yields the values of each combination, without parameters whose condition does not hold."""
        seen, space = set(), self.get_space()
        for values in itertools.product(*(list(dict.fromkeys(each.values)) for each in space.space)):
            space.values = dict(zip((each.name for each in space.space), values))
            active = {each.name: space.values[each.name] for each in space.space if space.is_active(each)}
            if tuple(active.items()) not in seen:
                seen.add(tuple(active.items()))
                yield active


class BayesianOracle(ResumableOracle, BayesianOptimizationOracle):
    """Bayesian optimization with a Gaussian process."""

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """Returns the values of a trial; they depend on the earlier results only, not on interruptions."""
        self._random_state = np.random.RandomState([self.seed, int(trial_id)])
        # One thread: the matrices are tiny, and the processors are busy with training.
        with threadpoolctl.threadpool_limits(1), warnings.catch_warnings():
            # With few trials a length scale is often at its bound.
            warnings.simplefilter("ignore", ConvergenceWarning)
            return super().populate_space(trial_id)


class ResumableHyperbandOracle(ResumableOracle, HyperbandOracle):
    """Hyperband."""


def make_oracle(study: Study, cluster: bool) -> Any:
    """Returns the oracle of a search with its saved state; `cluster`: the workers are on other machines."""
    search = study.search
    name = search.search_objective
    common: dict[str, Any] = {
        "objective": keras_tuner.Objective(name, "max" if OBJECTIVES[name] else "min"),
        "hyperparameters": hyperparameters(study.space),
        "seed": search.search_seed + 1,  # KerasTuner takes 0 for "no seed".
        "allow_new_entries": False,
        "max_retries_per_trial": 1,  # after a kill by a signal; a trial that failed is not repeated
        "max_consecutive_failed_trials": MAX_TRIALS + 1,
    }
    oracle: Any
    if search.tuner == "random":
        oracle = RandomOracle(max_trials=MAX_TRIALS, **common)
    elif search.tuner == "grid":
        oracle = GridOracle(max_trials=MAX_TRIALS, **common)
    elif search.tuner == "bayesian":
        # KerasTuner's default is three random trials a dimension; in a small search at most a third is random.
        random = max(3, min(3 * len(study.space.parameters), search.max_trials // 3))
        oracle = BayesianOracle(max_trials=MAX_TRIALS, num_initial_points=random, **common)
    else:
        oracle = ResumableHyperbandOracle(
            max_epochs=search.hyperband_epochs,
            factor=search.hyperband_factor,
            hyperband_iterations=search.hyperband_iterations,
            **common,
        )
        oracle.max_trials = MAX_TRIALS
    oracle.attach(study, cluster)
    if search.tuner == "grid":
        oracle.trial_limit = sum(1 for _ in itertools.islice(oracle.combinations(), search.max_trials))
    return oracle


def hyperparameters(space: Space) -> keras_tuner.HyperParameters:
    found = keras_tuner.HyperParameters()
    for parameter in space.parameters:
        with contextlib.ExitStack() as conditions:
            for name, values in parameter.when:
                conditions.enter_context(found.conditional_scope(name, list(values)))
            if parameter.kind == "choice":
                found.Choice(parameter.name, list(parameter.tuner_values()))
            elif parameter.kind == "bool":
                found.Boolean(parameter.name)
            else:
                add = found.Float if parameter.kind == "float" else found.Int
                step = parameter.step or (1 if parameter.kind == "int" and parameter.scale == "linear" else None)
                add(parameter.name, parameter.minimum, parameter.maximum, step=step, sampling=parameter.scale)
    return found


def log(text: str) -> None:
    print(text, flush=True)
