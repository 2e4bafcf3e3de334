"""Claims of the oracles, without training: the tests write results as a worker does."""

import json
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
def study(tmp_path: Path, story: Path):
    def make(name: str, **search: Any) -> Study:
        (tmp_path / "space.toml").write_text(SPACE)
        config = SearchConfig(search_space=str(tmp_path / "space.toml"), search_dir=str(tmp_path / name), **search)
        made = make_study(config, TRAIN.parse([f"--train_text={story}", *TINY]))
        made.claim()
        return made

    return make


def end(oracle: Any, trial: Any, **changes: Any) -> None:
    """Ends a trial; the result is better near the learning rate 0.01 and with muon."""
    values = trial.hyperparameters.values
    score = 2 + abs(values["learning_rate"] - 0.01) - (0.1 if values["optimizer"] == "muon" else 0)
    score += 1 / values.get("tuner/epochs", 9)
    spec = oracle.study.trial_spec(trial.trial_id, values)
    tokens = (spec.stop_at_step or 27) * 64
    result = {"status": "completed", "validation_bits_per_byte": score, "validation_loss": score, "tokens": tokens}
    write_json(oracle.study.trial_dir(trial.trial_id) / "result.json", {**result, **changes})
    trial.status = "COMPLETED"
    oracle.end_trial(trial)


def searched(study: Study, reload: bool) -> list[tuple[str, dict[str, Any]]]:
    """Returns trials and values of a search by one worker; `reload`: with a new oracle before and after each trial."""
    oracle = make_oracle(study, cluster=False)
    found: dict[str, Any] = {}
    while True:
        trial = oracle.create_trial("tuner0")
        if trial.status == "STOPPED":
            return sorted(found.items())
        if reload:
            oracle = make_oracle(study, cluster=False)
            again = oracle.create_trial("tuner0")
            assert (again.trial_id, again.hyperparameters.values) == (trial.trial_id, trial.hyperparameters.values)
            trial = again
        found[trial.trial_id] = dict(trial.hyperparameters.values)
        end(oracle, trial)
        if reload:
            oracle = make_oracle(study, cluster=False)


@pytest.mark.parametrize(
    ("tuner", "limit", "trials"),
    # grid: 3 rates x (adamw + 2 momenta of muon); hyperband: all of the first bracket, of 9, 3 and 1.
    [("random", 6, 6), ("grid", 20, 9), ("bayesian", 5, 5), ("hyperband", 13, 13)],
)
def test_an_oracle_that_is_reloaded_at_each_step_proposes_the_same(study, tuner: str, limit: int, trials: int):
    alone = searched(study("alone", tuner=tuner, max_trials=limit), reload=False)
    assert searched(study("reloaded", tuner=tuner, max_trials=limit), reload=True) == alone
    assert len(alone) == trials
    if tuner == "grid":
        assert len({tuple(values.items()) for _, values in alone}) == 9
        assert all(("momentum" in values) == (values["optimizer"] == "muon") for _, values in alone)


def test_hyperband_ranks_fully_trained_trials_before_lower_rungs(study):
    made = study("rungs", tuner="hyperband", max_trials=13)
    searched(made, reload=False)
    table = make_oracle(made, cluster=False).table()
    assert [(trial.numbers["bracket"], trial.numbers["rung"]) for trial in table.trials[-2:]] == [(2, 1), (2, 2)]
    assert table.ranked()[0].trial_id == "0012" and table.ranked()[0].continues


def test_a_lost_workers_trial_is_given_to_another_which_waits_for_it(study):
    oracle = make_oracle(study("lost", tuner="random", max_trials=2, worker_timeout=2.0), cluster=True)
    lost = oracle.create_trial("tuner0")
    mine = oracle.create_trial("tuner1")
    end(oracle, mine)
    # No new trial is left, but one may be lost yet: the worker is kept.
    assert oracle.create_trial("tuner1").status == "IDLE"
    time.sleep(1.2)
    oracle.get_trial(lost.trial_id)  # a heartbeat
    time.sleep(1.0)
    assert oracle.create_trial("tuner1").status == "IDLE"
    time.sleep(1.2)
    again = oracle.create_trial("tuner1")
    assert (again.trial_id, again.status) == (lost.trial_id, "RUNNING")
    assert again.hyperparameters.values == lost.hyperparameters.values
    end(oracle, again)
    # A late message of the lost worker changes nothing.
    oracle.end_trial(lost)
    assert oracle.end_order == [mine.trial_id, lost.trial_id]
    assert not oracle.exhausted and not oracle.all_workers_left()
    assert oracle.create_trial("tuner1").status == "STOPPED" and not oracle.ongoing_trials
    assert oracle.exhausted and oracle.all_workers_left()


def test_a_reloaded_chief_leaves_the_trials_with_their_workers(study):
    made = study("chief", tuner="random", max_trials=5)
    before = make_oracle(made, cluster=True)
    held = {name: before.create_trial(name).trial_id for name in ("tuner0", "tuner1")}
    after = make_oracle(made, cluster=True)
    assert {name: trial.trial_id for name, trial in after.ongoing_trials.items()} == held
    assert after.create_trial("tuner1").trial_id == held["tuner1"]
    assert after.create_trial("tuner2").trial_id == "0002"
    # On one machine the workers are new ones.
    alone = make_oracle(made, cluster=False)
    assert [alone.create_trial(name).trial_id for name in ("tuner0", "tuner1")] == ["0000", "0001"]


def test_a_killed_trial_is_tried_once_more_and_a_failed_one_is_not(study):
    oracle = make_oracle(study("killed", tuner="random", max_trials=9), cluster=False)
    for status, ended in (("INVALID", 0), ("INVALID", 1), ("FAILED", 2)):
        trial = oracle.create_trial("tuner0")
        write_json(oracle.study.trial_dir(trial.trial_id) / "result.json", {"status": "killed", "error": "by SIGKILL"})
        trial.status = status
        oracle.end_trial(trial)
        assert len(oracle.end_order) == ended
    rows = [(row.trial_id, row.status, row.error) for row in oracle.table().trials]
    assert rows == [("0000", "failed", "by SIGKILL"), ("0001", "failed", "by SIGKILL")]


def test_the_median_rule_stops_what_is_worse_than_the_median_of_running_averages(study):
    oracle = make_oracle(study("median", tuner="random", max_trials=9, median_stopping_after=3), cluster=False)
    # Running averages at position 500: 3.5, 3.0, 2.5; their median is 3.0.
    for first, second in ((4.0, 3.0), (3.5, 2.5), (3.0, 2.0)):
        trial = oracle.create_trial("tuner0")
        for position, value in ((250, first), (500, second), (750, 0.1)):
            answer = oracle.update_trial(trial.trial_id, {"validation_bits_per_byte": value}, step=position)
            assert answer.status == "RUNNING"
        end(oracle, trial)

    def answer_to(worker: str, *values: float) -> str:
        trial = oracle.create_trial(worker)
        for position, value in zip((250, 500), values, strict=True):
            answer = oracle.update_trial(trial.trial_id, {"validation_bits_per_byte": value}, step=position)
        return answer.status

    assert answer_to("tuner1", 3.9, 3.1) == "STOPPED"
    assert answer_to("tuner2", 2.9, 9.0) == "RUNNING"  # its best value counts


def test_budgets_of_tokens_and_minutes_end_the_search(study):
    for name, budget in (("tokens", {"max_search_tokens": 3000}), ("minutes", {"max_search_minutes": 0.02})):
        oracle = make_oracle(study(name, tuner="random", max_trials=9, **budget), cluster=False)
        for _ in range(2):
            trial = oracle.create_trial("tuner0")
            assert trial.status == "RUNNING"
            end(oracle, trial, tokens_trained=1500)
        if name == "minutes":
            time.sleep(1.3)
        assert oracle.create_trial("tuner0").status == "STOPPED"


@pytest.mark.parametrize("tuner", ["random", "hyperband"])
def test_each_result_is_read_twice_however_many_trials_there_are(study, tuner: str, monkeypatch):
    reads: list[str] = []

    def counted(path: Path) -> Any:
        reads.append(path.parent.name)
        return read_json(path)

    monkeypatch.setattr("tfgpt.search.study.read_json", counted)
    found = searched(study(tuner, tuner=tuner, max_trials=13, max_search_tokens=10**9), reload=False)
    reads = [name for name in reads if name.isdigit()]
    assert len(reads) == 2 * len(found) and len(set(reads)) == len(found)  # for the score, and for the table


def test_flags_that_do_not_go_together_are_left_to_the_trial_and_nothing_else_is(study, monkeypatch):
    made = study("rungs", tuner="hyperband")
    values = make_oracle(made, cluster=False).create_trial("tuner0").hyperparameters.values

    def refuse(*_: Any) -> None:
        raise UserError("--head_dim: does not divide")

    monkeypatch.setattr(Study, "train_config", refuse)
    assert made.trial_spec("0000", values).stop_at_step == 1
    monkeypatch.setattr(Study, "train_config", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        made.trial_spec("0000", values)


def test_a_kill_between_the_end_of_a_trial_and_the_next_one_repeats_no_trial(study):
    made = study("between", tuner="random", max_trials=2)
    oracle = make_oracle(made, cluster=True)
    end(oracle, oracle.create_trial("tuner0"))
    state = json.loads(oracle.state_file.read_text())
    assert state["ongoing_trials"] == {"tuner0": "0000"} and state["end_order"] == ["0000"]
    assert make_oracle(made, cluster=True).create_trial("tuner0").trial_id == "0001"
