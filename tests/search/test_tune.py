"""Claims of the tune command, on searches that really train."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from pathlib import Path

import psutil

from tests.search.conftest import Running, Start, table, timeless, wait_for
from tfgpt import tune
from tfgpt.common.locks import writer_lock
from tfgpt.common.output_directories import LOCK

SCORE = "validation_bits_per_byte"


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def metrics(run_dir: Path) -> list[dict]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    speed = ("tokens_per_second", "model_flops_utilization")
    return [{name: value for name, value in row.items() if name not in speed} for row in rows]


def test_a_search_killed_again_and_again_ends_with_the_same_trials(start: Start, arguments, tmp_path: Path):
    more = ["--tuner=random", "--max_trials=2"]
    alone = start("tune", *arguments("alone", *more))
    assert alone.ended() == 0, alone.said
    for trial, line in (("0000", 4), ("0001", 3)):
        running = start("tune", *arguments("killed", *more))
        path = tmp_path / "killed/trials" / trial / "metrics.jsonl"
        wait_for(lambda path=path, line=line: lines(path) >= line, log=running.log)
        running.kill()
    last = start("tune", *arguments("killed", *more))
    assert last.ended() == 0, last.said
    assert "Trial 0001 goes on" in last.said and "begins" not in last.said
    assert len(table(tmp_path / "alone")) == 2
    assert timeless(tmp_path / "alone") == timeless(tmp_path / "killed")
    for trial in ("0000", "0001"):
        one, other = (tmp_path / name / "trials" / trial for name in ("alone", "killed"))
        assert metrics(one) == metrics(other)
        assert (one / "model/model.safetensors").read_bytes() == (other / "model/model.safetensors").read_bytes()
    # What nothing goes on from is not kept. A finished search is finished.
    assert not list((tmp_path / "alone").glob("trials/*/checkpoints"))
    again = start("tune", *arguments("killed", *more))
    assert again.ended() == 0 and "Best of 2 trials" in again.said and "begins" not in again.said


def test_hyperband_goes_on_from_the_lower_rung_and_best_cfg_repeats_the_best_trial(
    start: Start, arguments, tmp_path: Path
):
    directory = tmp_path / "rungs"
    more = ["--tuner=hyperband", "--hyperband_epochs=3", "--max_trials=4", "--schedule=wsd", "--decay_fraction=0.5"]
    search = start("tune", *arguments("rungs", *more))
    assert search.ended() == 0, search.said
    rows = table(directory)
    # Three of a third of the training, and the best of them goes on to the end: 30 updates of 64 tokens.
    assert [(row["bracket"], row["rung"], row["tokens"]) for row in rows] == [("1", "0", "640")] * 3 + [
        ("1", "1", "1920")
    ]
    lower = min(rows[:3], key=lambda row: float(row[SCORE]))
    assert rows[3]["continues"] == lower["trial_id"] and rows[3]["learning_rate"] == lower["learning_rate"]
    assert json.loads((directory / "trials/0003/continues.json").read_text())["step"] == 10
    assert json.loads((directory / "trials/0003/result.json").read_text())["tokens_trained"] == 20 * 64
    # The flags of the best trial, trained in one go, give what the two rungs gave, bit for bit.
    done = start("train", f"--flagfile={directory / 'best.cfg'}")
    assert done.ended() == 0, done.said
    assert metrics(directory / "best") == metrics(directory / "trials/0003")
    weights = [directory / name / "model/model.safetensors" for name in ("best", "trials/0003")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def processes_of_trials(running: Running) -> list[int]:
    """The processes that train, of a search on this machine, in the order of their start."""
    found = [child for child in psutil.Process(running.pid).children() if "spawn_main" in " ".join(child.cmdline())]
    return [child.pid for child in sorted(found, key=lambda child: child.create_time())]


def test_parallel_workers_train_at_the_same_time_and_a_killed_trial_is_tried_once_more(
    start: Start, arguments, tmp_path: Path
):
    directory = tmp_path / "two"
    search = start("tune", *arguments("two", "--parallel=2", "--tuner=random", "--max_trials=4"))
    wait_for(lambda: all(lines(directory / f"trials/{n}/metrics.jsonl") >= 2 for n in ("0000", "0001")), log=search.log)
    os.kill(processes_of_trials(search)[0], signal.SIGKILL)
    assert search.ended() == 0, search.said
    assert "was interrupted (killed by SIGKILL (as the kernel does when memory runs out)); it is tried" in search.said
    rows = table(directory)
    assert [row["status"] for row in rows] == ["completed"] * 4


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_a_cluster_by_kerastuners_environment_variables_whose_chief_is_killed(start: Start, arguments, tmp_path: Path):
    cluster = {"KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": str(free_port())}
    flags = arguments("cluster", "--tuner=random", "--max_trials=1", "--strategy=mirrored", "--logical_cpus=2")

    def begin(name: str) -> Running:
        return start("tune", *flags, environment={**cluster, "KERASTUNER_TUNER_ID": name})

    chief, worker = begin("chief"), begin("tuner0")
    wait_for(lambda: lines(tmp_path / "cluster/trials/0000/metrics.jsonl") >= 2, log=worker.log)
    chief.kill()
    chief = begin("chief")
    for running in (chief, worker):
        assert running.ended() == 0, running.said
    assert "Best of 1 trials" in chief.said
    assert table(tmp_path / "cluster")[0]["status"] == "completed"
    # Each trial is on a strategy.
    assert "2 share each batch" in (tmp_path / "cluster/trials/0000/log.txt").read_text()


def test_a_second_search_in_a_directory_ends_at_once_and_says_who_holds_it(arguments, tmp_path: Path, capsys):
    flags = arguments("held", "--max_trials=1")
    with writer_lock(tmp_path / "held" / LOCK, tmp_path / "held"):
        began = time.monotonic()
        assert tune.main(flags) == 2
        assert time.monotonic() - began < 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"tfgpt.tune: --search_dir: {tmp_path / 'held'} is being written by process {os.getpid()} on"
    )
    assert not (tmp_path / "held/trials").exists()


DIVERGING = """
[search.learning_rate]
choices = [0.01, 1e30]
"""


def test_a_diverged_trial_is_recorded_and_does_not_stop_the_search(start: Start, arguments, tmp_path: Path):
    more = ["--tuner=grid", "--max_grad_norm=0", "--rollback_after=1", "--max_rollbacks=0", "--warmup_steps=0"]
    search = start("tune", *arguments("diverging", *more, space=DIVERGING))
    assert search.ended() == 0, search.said
    good, bad = table(tmp_path / "diverging")
    assert (good["status"], bad["status"]) == ("completed", "failed")
    assert bad["error"].startswith("diverged") and bad["objective"] == ""
    assert "Best of 2 trials (1 failed): trial 0000" in search.said and "Traceback" not in search.said


def test_trials_out_of_memory_are_caught_and_a_search_of_nothing_else_says_so(start: Start, arguments, tmp_path: Path):
    search = start("tune", *arguments("memory", "--max_trials=2", "--tuner=random", "--trial_memory_limit=350"))
    assert search.ended() == 1
    assert [row["status"] for row in table(tmp_path / "memory")] == ["failed", "failed"]
    assert all(row["error"].startswith("out of memory") for row in table(tmp_path / "memory"))
    last = search.said.splitlines()[-1]
    assert last.startswith("tfgpt.tune: none of 2 trials went well: out of memory") and "Traceback" not in search.said


def test_a_full_disk_stops_the_search_and_loses_nothing(start: Start, arguments, tmp_path: Path):
    more = ["--tuner=random", "--max_trials=1"]
    full = start("tune", *arguments("full", *more), file_size=60_000)
    assert full.ended() == 1, full.said
    assert "the disk is full" in full.said.splitlines()[-1] and "Traceback" not in full.said
    assert table(tmp_path / "full")[0]["status"] == "running"
    again = start("tune", *arguments("full", *more))
    assert again.ended() == 0, again.said
    assert "Trial 0000 goes on" in again.said and table(tmp_path / "full")[0]["status"] == "completed"
