"""Claims of the oracles, without training: results are written as a worker writes them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.search.conftest import TINY
from tfgpt.common.atomic_files import read_json, write_json
from tfgpt.common.errors import UserError
from tfgpt.search.config import SearchConfig
from tfgpt.search.oracle import make_oracle
from tfgpt.search.study import TRAIN, Study, make_study
from tfgpt.search.trial_results import request_of

SPACE = """
[search.learning_rate]
type = "float"
min = 1e-3
max = 1e-1
scale = "log"
step = 10
[search.optimizer]
choices = ["adamw", "muon"]
[search.momentum]
choices = [0.9, 0.95]
when = { optimizer = "muon" }
"""


@pytest.fixture
def plan(tmp_path: Path, story: Path):
    def make(name: str, **search: Any) -> Study:
        (tmp_path / "space.toml").write_text(SPACE)
        config = SearchConfig(search_space=str(tmp_path / "space.toml"), search_dir=str(tmp_path / name), **search)
        made = make_study(config, TRAIN.parse([f"--train_text={story}", *TINY]))
        made.claim()
        return made

    return make


def give_result(plan: Study, trial: Any, **changes: Any) -> None:
    """What a worker leaves: the better, the nearer the learning rate is to 0.01; better still with muon."""
    values = trial.hyperparameters.values
    score = 2 + abs(values["learning_rate"] - 0.01) - (0.1 if values["optimizer"] == "muon" else 0)
    score += 1 / values.get("tuner/epochs", 9)
    result = {"status": "completed", "validation_bits_per_byte": score, "validation_loss": score, "tokens": 1000}
    request = request_of(plan, trial)
    tokens = (request.stop_at_step or 27) * 64
    write_json(plan.trial_dir(trial.trial_id) / "result.json", {**result, "tokens": tokens, **changes})
    trial.status = "COMPLETED"


def searched(plan: Study, reload: bool) -> list[tuple[str, dict[str, Any]]]:
    """Trials and values of a whole search by one worker; `reload`: with a new oracle before and after every trial."""
    oracle = make_oracle(plan, parallel=False)
    found: dict[str, Any] = {}
    while True:
        trial = oracle.create_trial("tuner0")
        if trial.status == "STOPPED":
            return sorted(found.items())
        if reload:
            oracle = make_oracle(plan, parallel=False)
            again = oracle.create_trial("tuner0")
            assert (again.trial_id, again.hyperparameters.values) == (trial.trial_id, trial.hyperparameters.values)
            trial = again
        found[trial.trial_id] = dict(trial.hyperparameters.values)
        give_result(plan, trial)
        oracle.end_trial(trial)
        if reload:
            oracle = make_oracle(plan, parallel=False)


@pytest.mark.parametrize(
    ("tuner", "trials"),
    # grid: 3 rates x (adamw + 2 momenta of muon); hyperband: all of the first bracket, of 9, 3 and 1.
    [("random", 6), ("grid", 9), ("bayesian", 5), ("hyperband", 13)],
)
def test_an_oracle_that_is_reloaded_at_every_step_proposes_what_one_left_alone_does(plan, tuner: str, trials: int):
    limit = {"random": 6, "grid": 20, "bayesian": 5, "hyperband": 13}[tuner]
    alone = searched(plan("alone", tuner=tuner, max_trials=limit), reload=False)
    assert searched(plan("reloaded", tuner=tuner, max_trials=limit), reload=True) == alone
    assert len(alone) == trials
    if tuner == "grid":
        assert len({tuple(values.items()) for _, values in alone}) == 9


def test_a_lost_workers_trial_is_given_to_another_which_waits_for_it(plan):
    oracle = make_oracle(plan("lost", tuner="random", max_trials=2, worker_timeout=2.0), parallel=True)
    lost = oracle.create_trial("tuner0")
    mine = oracle.create_trial("tuner1")
    give_result(oracle.plan, mine)
    oracle.end_trial(mine)
    # There is no new trial, but one may be lost yet: the worker is kept.
    assert oracle.create_trial("tuner1").status == "IDLE"
    time.sleep(1.2)
    oracle.get_trial(lost.trial_id)  # a sign of life
    time.sleep(1.0)
    assert oracle.create_trial("tuner1").status == "IDLE"
    time.sleep(1.2)
    again = oracle.create_trial("tuner1")
    assert (again.trial_id, again.status) == (lost.trial_id, "RUNNING")
    assert again.hyperparameters.values == lost.hyperparameters.values
    give_result(oracle.plan, again)
    oracle.end_trial(again)
    # What the lost one says when it comes back changes nothing.
    oracle.end_trial(lost)
    assert oracle.end_order == [mine.trial_id, lost.trial_id]
    assert oracle.create_trial("tuner1").status == "STOPPED" and not oracle.ongoing_trials


def test_a_reloaded_chief_leaves_the_trials_with_their_workers(plan):
    made = plan("chief", tuner="random", max_trials=5)
    before = make_oracle(made, parallel=True)
    held = {name: before.create_trial(name).trial_id for name in ("tuner0", "tuner1")}
    after = make_oracle(made, parallel=True)
    assert {name: trial.trial_id for name, trial in after.ongoing_trials.items()} == held
    assert after.create_trial("tuner1").trial_id == held["tuner1"]
    assert after.create_trial("tuner2").trial_id == "0002"


def test_the_median_rule_stops_what_is_worse_than_the_median_of_running_averages(plan):
    oracle = make_oracle(plan("median", tuner="random", max_trials=9, median_stopping_after=3), parallel=False)
    # Running averages at place 500: 3.5, 3.0, 2.5; their median is 3.0.
    for first, second in ((4.0, 3.0), (3.5, 2.5), (3.0, 2.0)):
        trial = oracle.create_trial("tuner0")
        for place, value in ((250, first), (500, second), (750, 0.1)):
            answer = oracle.update_trial(trial.trial_id, {"validation_bits_per_byte": value}, step=place)
            assert answer.status == "RUNNING"
        give_result(oracle.plan, trial)
        oracle.end_trial(trial)

    def says(worker: str, *values: float) -> str:
        trial = oracle.create_trial(worker)
        for place, value in zip((250, 500), values, strict=True):
            answer = oracle.update_trial(trial.trial_id, {"validation_bits_per_byte": value}, step=place)
        return answer.status

    assert says("tuner1", 3.9, 3.1) == "STOPPED"
    assert says("tuner2", 2.9, 9.0) == "RUNNING"  # its best so far counts


def test_budgets_of_tokens_and_minutes_end_the_search(plan):
    for name, budget in (("tokens", {"max_search_tokens": 3000}), ("minutes", {"max_search_minutes": 0.02})):
        oracle = make_oracle(plan(name, tuner="random", max_trials=9, **budget), parallel=False)
        for _ in range(2):
            trial = oracle.create_trial("tuner0")
            assert trial.status == "RUNNING"
            give_result(oracle.plan, trial, tokens_trained=1500)
            oracle.end_trial(trial)
        if name == "minutes":
            time.sleep(1.3)
        assert oracle.create_trial("tuner0").status == "STOPPED"


@pytest.mark.parametrize("tuner", ["random", "hyperband"])
def test_every_result_is_read_a_few_times_however_many_trials_there_are(plan, tuner: str, monkeypatch):
    reads: list[str] = []

    def counted(path: Path) -> Any:
        reads.append(path.parent.name)
        return read_json(path)

    monkeypatch.setattr("tfgpt.search.trial_results.read_json", counted)
    found = searched(plan(tuner, tuner=tuner, max_trials=13, max_search_tokens=10**9), reload=False)
    # At a trial's end: twice by the oracle, once for the table.
    assert len(reads) == 3 * len(found) and len(set(reads)) == len(found)


def test_flags_that_do_not_go_together_are_left_to_the_trial_and_nothing_else_is(plan, monkeypatch):
    made = plan("rungs", tuner="hyperband")
    trial = make_oracle(made, parallel=False).create_trial("tuner0")

    def refuse(*_: Any) -> None:
        raise UserError("--head_dim: does not divide")

    def break_down(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Study, "recipe", refuse)
    assert request_of(made, trial).stop_at_step == 1
    monkeypatch.setattr(Study, "recipe", break_down)
    with pytest.raises(ZeroDivisionError):
        request_of(made, trial)
