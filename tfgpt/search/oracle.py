"""KerasTuner's oracles, made to survive: kills at any moment, lost workers, failed trials; with budgets and early ends.

KerasTuner 1.4.8 proposes the values; what is changed here, and why:
- its files are written in place, so that a kill leaves half a file: here beside and renamed;
- a finished trial is saved as still running, and a reloaded oracle runs it once more, or skips one that was saved
  halfway: here what the files say is put in order when it reloads;
- GridSearch does not save where it is, BayesianOptimization not its random state: a resumed search would end at once,
  or go elsewhere;
- a reloaded chief gives out again what its workers are still training, and a worker that is gone keeps its trial for
  ever: here trials stay with their workers, and go to another when one has not been heard of for a while;
- a worker that finds no trial left leaves while another may still lose its own.
"""

from __future__ import annotations

import contextlib
import io
import math
import shutil
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import keras_tuner
import numpy as np
import threadpoolctl
from keras_tuner.engine import trial as trials
from keras_tuner.oracles import BayesianOptimizationOracle, GridSearchOracle, HyperbandOracle, RandomSearchOracle
from sklearn.exceptions import ConvergenceWarning

from tfgpt.common.atomic_files import read_json, write_json
from tfgpt.common.progress import format_duration
from tfgpt.search.config import OBJECTIVES
from tfgpt.search.space import Parameter, Space
from tfgpt.search.study import Study
from tfgpt.search.trial_results import Row, best_row, in_words, read_result, write_best, write_table

RUNNING, COMPLETED, FAILED, INVALID = "RUNNING", "COMPLETED", "FAILED", "INVALID"
STOPPED, IDLE = "STOPPED", "IDLE"
# Trial ids have so many digits that they sort as they were made.
MOST_TRIALS = 9999


class CrashSafeOracle(keras_tuner.Oracle):
    """What is added to each of KerasTuner's oracles; see the module. `attach` must be called once."""

    plan: Study
    parallel: bool
    ongoing_trials: dict[str, Any]

    def attach(self, plan: Study, parallel: bool) -> None:
        """Ties the oracle to its search.

        Args:
            plan: the search.
            parallel: whether workers come over the network, which may be lost.
        """
        self.plan, self.parallel = plan, parallel
        self.max_trials = MOST_TRIALS
        self.verbose = 0
        self.heard: dict[str, float] = {}  # worker → when, by the monotonic clock
        self.began, self.earlier_seconds = time.monotonic(), 0.0
        self.over = False
        # Of trials that are over: what does not change any more is read once.
        self.results: dict[str, dict[str, Any]] = {}
        self.last_rows: dict[str, Row] = {}
        self._set_project_dir(str(plan.directory), "keras_tuner")
        if Path(self._get_oracle_fname()).is_file():
            self.reload()

    # What KerasTuner calls.

    @keras_tuner.synchronized
    def create_trial(self, tuner_id: str) -> Any:
        """A trial for a worker: the one it had, one that another has lost, or a new one."""
        self.heard[tuner_id] = time.monotonic()
        self.find_lost(tuner_id)
        if tuner_id in self.ongoing_trials:
            trial = self.ongoing_trials[tuner_id]
            self.announce(trial, "goes on")
            return trial
        again = bool(self._retry_queue)
        over = not again and self.budget_is_spent()
        trial = self.empty(STOPPED) if over else super().create_trial(tuner_id)
        self.over = trial.status == STOPPED
        if trial.status == RUNNING:
            self.announce(trial, "goes on" if again else "begins")
            self.write_files()
        elif trial.status == STOPPED:
            if self.ongoing_trials:
                # Another worker may be lost yet, and somebody must be there to take its trial.
                self.tuner_ids.add(tuner_id)
                return self.empty(IDLE)
            self.tuner_ids.discard(tuner_id)
            self.drop_checkpoints(self.end_order)
        return trial

    @keras_tuner.synchronized
    def update_trial(self, trial_id: str, metrics: dict[str, float], step: int = 0) -> Any:
        """A validation of a trial that trains; the answer's status is STOPPED when it should stop."""
        self.hear_of(trial_id)
        known = self.trials[trial_id]
        if self.objective.name not in metrics:
            # Speed and memory are known at the end only.
            return known
        for name in metrics:
            if not known.metrics.exists(name):
                known.metrics.register(name, "max" if OBJECTIVES.get(name) else "min")
        trial = super().update_trial(trial_id, metrics, step=step)
        if self.should_stop(trial, step):
            answer = trials.Trial(trial.hyperparameters, trial_id, STOPPED)
            answer.metrics = trial.metrics
            return answer
        return trial

    @keras_tuner.synchronized
    def end_trial(self, trial: Any) -> None:
        """A trial is over; its result.json says how."""
        if trial.trial_id in self.end_order:
            return
        result = self.result(trial.trial_id)
        if result.get("error"):
            trial.message = result["error"]
        with contextlib.redirect_stdout(io.StringIO()):
            super().end_trial(trial)
        # Once more: in what was saved, the trial is still running.
        self.save()
        self.write_files()
        self.announce_end(self.trials[trial.trial_id])
        if self.plan.search.tuner != "hyperband" and trial.trial_id in self.end_order:
            self.drop_checkpoints([trial.trial_id])

    def get_trial(self, trial_id: str) -> Any:
        """The trial; asking for it is a worker's sign of life."""
        self.hear_of(trial_id)
        return super().get_trial(trial_id)

    def score_trial(self, trial: Any) -> None:
        """The objective of the model that the run left."""
        value = self.result(trial.trial_id).get(self.objective.name)
        trial.score = float("nan") if value is None else float(value)
        known = trial.metrics.exists(self.objective.name)
        trial.best_step = trial.metrics.get_best_step(self.objective.name) if known else 0

    def save(self) -> None:
        """Writes the state beside and renames it."""
        write_json(self._get_oracle_fname(), self.get_state())

    def _save_trial(self, trial: Any) -> None:
        write_json(Path(self._get_trial_dir(trial.trial_id)) / "trial.json", trial.get_state())

    def get_state(self) -> dict[str, Any]:
        return {**super().get_state(), "seconds": self.seconds()}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        self.earlier_seconds, self.began = state["seconds"], time.monotonic()

    def reload(self) -> None:
        """Goes on where a killed search was, whatever it was writing."""
        self.trials = {}
        for path in sorted(Path(self._project_dir).glob("trial_*/trial.json")):
            trial = trials.Trial.from_state(read_json(path))
            self.trials[trial.trial_id] = trial
        state = read_json(self._get_oracle_fname())
        begun = set(state["start_order"])
        ended = set(state["end_order"])
        # Saved halfway when it was made: it will be made again, the same.
        for trial_id in sorted(set(self.trials) - begun):
            del self.trials[trial_id]
            (Path(self._get_trial_dir(trial_id)) / "trial.json").unlink()
        state["ongoing_trials"] = {
            tuner_id: trial_id for tuner_id, trial_id in state["ongoing_trials"].items() if trial_id not in ended
        }
        self.set_state(state)
        for trial_id in begun - ended:
            self.trials[trial_id].status = RUNNING
        # Whose trial nobody has: with a worker's name that will not come back, or between two lines of a save.
        held = {trial.trial_id for trial in self.ongoing_trials.values()}
        self._retry_queue = sorted(begun - ended - held, reverse=True)
        if not self.parallel:
            # One worker, whatever the others were called before.
            self._retry_queue = sorted(begun - ended, reverse=True)
            self.ongoing_trials = {}
        for tuner_id in self.ongoing_trials:
            self.heard[tuner_id] = time.monotonic()
            self.tuner_ids.add(tuner_id)
        self.write_files()

    def drop_checkpoints(self, trial_ids: list[str]) -> None:
        """Deletes what nothing will go on from: a checkpoint is three times a model, and there are many trials."""
        for trial_id in trial_ids:
            shutil.rmtree(self.plan.trial_dir(trial_id) / "checkpoints", ignore_errors=True)

    # Workers.

    def hear_of(self, trial_id: str) -> None:
        """Takes down that a trial's worker is alive."""
        for tuner_id, trial in list(self.ongoing_trials.items()):
            if trial.trial_id == trial_id:
                self.heard[tuner_id] = time.monotonic()

    def find_lost(self, asking: str) -> None:
        """Takes the trials of workers that have not been heard of for --worker_timeout."""
        if not self.parallel:
            return
        oldest = time.monotonic() - self.plan.search.worker_timeout
        for tuner_id, trial in list(self.ongoing_trials.items()):
            if tuner_id != asking and self.heard.get(tuner_id, 0.0) < oldest:
                del self.ongoing_trials[tuner_id]
                self.tuner_ids.discard(tuner_id)
                self._retry_queue.append(trial.trial_id)
                say(f"{tuner_id} is lost (silent for {self.plan.search.worker_timeout:.0f} s); its trial "
                    f"{trial.trial_id} is given out again")  # fmt: skip

    def all_gone(self) -> bool:
        """Whether no worker is left to be told that the search is over."""
        oldest = time.monotonic() - self.plan.search.worker_timeout
        waiting = [tuner_id for tuner_id in self.tuner_ids if self.heard.get(tuner_id, 0.0) >= oldest]
        return not self.ongoing_trials and not waiting

    def search_is_over(self) -> bool:
        """Whether the last worker that asked was told that there are no more trials."""
        return self.over

    # Budgets and early ends.

    def seconds(self) -> float:
        """How long the search has gone on, over all its processes' lives."""
        return self.earlier_seconds + time.monotonic() - self.began

    def budget_is_spent(self) -> bool:
        """Whether no new trial may begin."""
        search = self.plan.search
        if len(self.trials) >= search.max_trials:
            return True
        if search.max_search_minutes and self.seconds() >= 60 * search.max_search_minutes:
            return True
        if search.max_search_tokens:
            spent = sum(self.result(trial_id).get("tokens_trained", 0) for trial_id in self.trials)
            return spent >= search.max_search_tokens
        return False

    def should_stop(self, trial: Any, place: int) -> bool:
        """Vizier's median rule (Golovin et al. 2017, section 3.2.1, doi:10.1145/3097983.3098043).

        A trial stops at `place` when its best value so far is worse than the median of the running averages, up to
        the same place, of the trials that have ended.
        """
        after = self.plan.search.median_stopping_after
        if not after or self.plan.search.tuner == "hyperband":
            return False
        name, sign = self.objective.name, -1.0 if self.objective.direction == "max" else 1.0
        averages = []
        for trial_id in self.end_order:
            other = self.trials[trial_id]
            if other.status == COMPLETED and other.metrics.exists(name):
                values = [sign * value for step, value in history(other, name) if step <= place]
                if values:
                    averages.append(statistics.fmean(values))
        mine = [sign * value for step, value in history(trial, name) if step <= place]
        return len(averages) >= after and bool(mine) and min(mine) > statistics.median(averages)

    def empty(self, status: str) -> Any:
        """A trial that says only what a worker should do."""
        return trials.Trial(self.hyperparameters.copy(), "", status)

    # What is shown.

    def result(self, trial_id: str) -> dict[str, Any]:
        """A trial's result.json, or nothing."""
        if trial_id in self.results:
            return self.results[trial_id]
        result = read_result(self.plan, trial_id)
        if trial_id in self.end_order:
            self.results[trial_id] = result
        return result

    def row(self, trial_id: str) -> Row:
        """A trial's line in the table."""
        if trial_id in self.last_rows:
            return self.last_rows[trial_id]
        row = Row.of(self.plan, self.trials[trial_id], self.result(trial_id))
        if trial_id in self.end_order:
            self.last_rows[trial_id] = row
        return row

    def rows(self) -> list[Row]:
        """The table of all trials."""
        return [self.row(trial_id) for trial_id in sorted(self.trials)]

    def write_files(self) -> None:
        """Writes trials.csv and best.cfg."""
        rows = self.rows()
        write_table(self.plan, rows)
        write_best(self.plan, rows)

    def announce(self, trial: Any, verb: str) -> None:
        """A line on a trial that begins."""
        row = self.row(trial.trial_id)
        total = self.trials_in_all()
        say(f"Trial {trial.trial_id} {verb} ({len(self.trials)} of {'at most ' if total else ''}"
            f"{total or '?'}): {row.values_in_words()}")  # fmt: skip

    def announce_end(self, trial: Any) -> None:
        """A line on a trial that ended."""
        row = self.row(trial.trial_id)
        if trial.trial_id not in self.end_order:
            say(f"Trial {trial.trial_id} was interrupted ({row.error}); it is tried once more")
            return
        best = best_row(self.plan, self.rows())
        name = self.plan.search.search_objective
        what = f"failed: {row.error}" if row.status == "failed" else f"{name} {in_words(name, row.objective)}"
        if row.status == "stopped":
            what += f", stopped at {row.tokens:,} tokens: worse than the median"
        elif row.status == "completed":
            speed = f"{row.tokens_per_second:,.0f} tokens/s, " if row.tokens_per_second else ""
            what += f", {speed}{(row.peak_memory_bytes or 0) >> 20:,} MiB, {format_duration(row.seconds or 0.0)}"
        best_words = f"best {in_words(name, best.objective)} (trial {best.trial_id})" if best else "none is good so far"
        say(f"Trial {trial.trial_id} {what}; {best_words}; {self.left()}")

    def trials_in_all(self) -> int | None:
        """How many trials there will be at most."""
        return self.plan.search.max_trials

    def left(self) -> str:
        """How much is still to do."""
        ended = len(self.end_order)
        left = max((self.trials_in_all() or 0) - ended, 0)
        if not left:
            return "no more trials"
        seconds = self.seconds() / max(ended, 1) * left
        if self.plan.search.max_search_minutes:
            seconds = min(seconds, max(60 * self.plan.search.max_search_minutes - self.seconds(), 0.0))
        return f"at most {left} more, about {format_duration(seconds)}"


class RandomOracle(CrashSafeOracle, RandomSearchOracle):
    """Random search."""


class GridOracle(CrashSafeOracle, GridSearchOracle):
    """Every combination, in order."""

    def get_state(self) -> dict[str, Any]:
        ordered, place = [], 0
        if self._ordered_ids._memory:
            following: int | None = place
            while following is not None:
                ordered.append(self._ordered_ids._memory[following])
                following = self._ordered_ids._next_index[following]
        return {**super().get_state(), "ordered": ordered}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        for trial_id in state["ordered"]:
            self._ordered_ids.insert(trial_id)
        # Each looks for its neighbour once more; the oracle skips those that have been tried.
        self._populate_next = list(state["start_order"])

    def trials_in_all(self) -> int | None:
        """The combinations (those of conditions that exclude each other too), or --max_trials if that is less."""
        combinations = math.prod(len(set(each.values)) for each in self.hyperparameters.space)
        return min(combinations, self.plan.search.max_trials)


class BayesianOracle(CrashSafeOracle, BayesianOptimizationOracle):
    """Bayesian optimization with a Gaussian process."""

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        # A function of the trial, not of how often the search was interrupted.
        self._random_state = np.random.RandomState([self.seed, int(trial_id)])
        # The matrices are tiny, and threads that wait for processors busy with training make them a minute's work.
        with threadpoolctl.threadpool_limits(1), warnings.catch_warnings():
            # That a length scale is at its bound: with so few trials it often is.
            warnings.simplefilter("ignore", ConvergenceWarning)
            return super().populate_space(trial_id)


class HyperbandTrials(CrashSafeOracle, HyperbandOracle):
    """Hyperband."""

    def trials_in_all(self) -> int | None:
        """The sum over all rungs of all brackets, or --max_trials if that is less."""
        brackets = range(self._get_num_brackets())
        rounds = [(number, place) for number in brackets for place in range(self._get_num_rounds(number))]
        whole = self.plan.search.hyperband_iterations * sum(self._get_size(*each) for each in rounds)
        return min(whole, self.plan.search.max_trials)


def make_oracle(plan: Study, parallel: bool) -> Any:
    """The oracle of a search, reloaded when it has begun.

    Args:
        plan: the search.
        parallel: whether workers come over the network.
    """
    search = plan.search
    name = search.search_objective
    common: dict[str, Any] = {
        "objective": keras_tuner.Objective(name, "max" if OBJECTIVES[name] else "min"),
        "hyperparameters": hyperparameters(plan.space),
        # KerasTuner takes 0 for "no seed".
        "seed": search.search_seed + 1,
        "allow_new_entries": False,
        # Of a trial that was killed by a signal; one that failed by itself is not tried again.
        "max_retries_per_trial": 1,
        "max_consecutive_failed_trials": MOST_TRIALS + 1,
    }
    oracle: Any
    if search.tuner == "random":
        oracle = RandomOracle(max_trials=MOST_TRIALS, **common)
    elif search.tuner == "grid":
        oracle = GridOracle(max_trials=MOST_TRIALS, **common)
    elif search.tuner == "bayesian":
        dimensions = len(plan.space.parameters)
        # KerasTuner begins with three random trials a dimension; of a small search at most a third is random.
        random = max(3, min(3 * dimensions, search.max_trials // 3))
        oracle = BayesianOracle(max_trials=MOST_TRIALS, num_initial_points=random, **common)
    else:
        oracle = HyperbandTrials(
            max_epochs=search.hyperband_epochs,
            factor=search.hyperband_factor,
            hyperband_iterations=search.hyperband_iterations,
            **common,
        )
    oracle.attach(plan, parallel)
    return oracle


def hyperparameters(space: Space) -> keras_tuner.HyperParameters:
    """The space in KerasTuner's terms."""
    found = keras_tuner.HyperParameters()
    for parameter in space.parameters:
        add(found, parameter, list(parameter.when))
    return found


def add(found: keras_tuner.HyperParameters, parameter: Parameter, when: list[tuple[str, tuple[Any, ...]]]) -> None:
    """One parameter inside the scopes of its conditions."""
    if when:
        (name, values), *rest = when
        with found.conditional_scope(name, list(values)):
            add(found, parameter, rest)
    elif parameter.kind == "choice":
        found.Choice(parameter.name, list(parameter.labels()))
    elif parameter.kind == "bool":
        found.Boolean(parameter.name)
    else:
        kind = found.Float if parameter.kind == "float" else found.Int
        step = parameter.step if parameter.kind == "float" or parameter.step or parameter.scale == "log" else 1
        kind(parameter.name, parameter.minimum, parameter.maximum, step=step, sampling=parameter.scale)


def history(trial: Any, name: str) -> list[tuple[int, float]]:
    """Place and value of a trial's reports."""
    if not trial.metrics.exists(name):
        return []
    return [(each.step, each.mean()) for each in trial.metrics.get_history(name)]


def say(text: str) -> None:
    """A line for the person watching."""
    print(text, flush=True)
