"""Claims of the tune command, on searches that train."""

import json
import os
import random
import signal
import socket
import time
from pathlib import Path

import numpy as np
import psutil
from safetensors.numpy import load_file

from tests.conftest import ROOT
from tests.search.conftest import TINY, Running, Start, table, wait_for
from tfgpt import tune
from tfgpt.common.locks import writer_lock
from tfgpt.common.output_directories import LOCK
from tfgpt.search.worker_pool import device_share

SCORE = "validation_bits_per_byte"


def line_count(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def metrics(run_dir: Path) -> list[dict]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    speed = ("tokens_per_second", "model_flops_utilization")
    return [{name: value for name, value in row.items() if name not in speed} for row in rows]


def test_a_killed_hyperband_search_continues_and_best_cfg_repeats_the_best_trial_bit_for_bit(
    start: Start, arguments, tmp_path: Path
):
    directory = tmp_path / "rungs"
    more = ["--tuner=hyperband", "--hyperband_epochs=3", "--max_trials=4", "--schedule=wsd", "--decay_fraction=0.5"]
    first = start("tune", *arguments("rungs", *more))
    wait_for(lambda: line_count(directory / "trials/0003/metrics.jsonl") >= 5, first)
    first.kill()
    search = start("tune", *arguments("rungs", *more))
    assert search.ended() == 0, search.output
    assert "Trial 0003 continues" in search.output and "starts" not in search.output
    rows = table(directory)
    # Three of a third of the training, and the best of them continues to the end: 30 updates of 64 tokens.
    rungs = [(row["bracket"], row["rung"], row["tokens"]) for row in rows]
    assert rungs == [("1", "0", "640")] * 3 + [("1", "1", "1920")]
    lower = min(rows[:3], key=lambda row: float(row[SCORE]))
    assert rows[3]["continues"] == lower["trial_id"] and rows[3]["learning_rate"] == lower["learning_rate"]
    assert json.loads((directory / "trials/0003/continues.json").read_text())["step"] == 10
    assert json.loads((directory / "trials/0003/result.json").read_text())["tokens_trained"] == 20 * 64
    assert not list(directory.glob("trials/*/checkpoints"))
    assert "Best of 4 trials (0 failed): trial 0003" in search.output
    # One training with the flags of the best trial gives what two rungs and a kill gave.
    done = start("train", f"--flagfile={directory / 'best.cfg'}")
    assert done.ended() == 0, done.output
    assert metrics(directory / "best") == metrics(directory / "trials/0003")
    weights = [directory / name / "model/model.safetensors" for name in ("best", "trials/0003")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def trial_processes(running: Running) -> list[int]:
    children = sorted(psutil.Process(running.process.pid).children(), key=lambda child: child.create_time())
    return [child.pid for child in children if "spawn_main" in " ".join(child.cmdline())]


THREE_RATES = "[search.learning_rate]\nchoices = [0.01, 0.02, 1e30]"


def test_neither_a_killed_nor_a_diverged_trial_stops_a_search_by_two_workers(start: Start, arguments, tmp_path: Path):
    directory = tmp_path / "two"
    more = "--parallel=2 --tuner=grid --max_grad_norm=0 --rollback_after=1 --max_rollbacks=0 --warmup_steps=0".split()
    search = start("tune", *arguments("two", *more, space=THREE_RATES))
    paths = [directory / f"trials/{trial}/metrics.jsonl" for trial in ("0000", "0001")]
    wait_for(lambda: all(line_count(path) >= 2 for path in paths), search)
    os.kill(trial_processes(search)[0], signal.SIGKILL)
    assert search.ended() == 0, search.output
    assert "was interrupted (killed by SIGKILL (as the kernel does when memory runs out)); it is tried" in search.output
    rows = table(directory)
    assert [row["status"] for row in rows] == ["completed", "completed", "failed"]
    assert rows[2]["error"].startswith("diverged") and rows[2]["objective"] == ""
    assert "Best of 3 trials (1 failed)" in search.output and "Traceback" not in search.output


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_a_cluster_by_kerastuners_environment_variables_whose_chief_is_killed(start: Start, arguments, tmp_path: Path):
    address = {"KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": str(free_port())}
    flags = arguments("cluster", "--tuner=random", "--max_trials=1", "--strategy=mirrored", "--logical_cpus=2")

    def begin(name: str) -> Running:
        return start("tune", *flags, environment={**address, "KERASTUNER_TUNER_ID": name})

    chief, worker = begin("chief"), begin("tuner0")
    wait_for(lambda: line_count(tmp_path / "cluster/trials/0000/metrics.jsonl") >= 2, worker)
    chief.kill()
    chief = begin("chief")
    for running in (chief, worker):
        assert running.ended() == 0, running.output
    assert "Best of 1 trials" in chief.output
    assert table(tmp_path / "cluster")[0]["status"] == "completed"
    # Each trial uses a strategy.
    assert "2 share each batch" in (tmp_path / "cluster/trials/0000/log.txt").read_text()


def test_a_second_search_in_a_directory_ends_at_once_and_names_the_first(arguments, tmp_path: Path, capsys):
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


def test_a_trial_out_of_memory_is_caught_and_a_search_of_nothing_else_fails(start: Start, arguments, tmp_path: Path):
    search = start("tune", *arguments("memory", "--max_trials=1", "--tuner=random", "--trial_memory_limit=350"))
    assert search.ended() == 1
    (row,) = table(tmp_path / "memory")
    assert row["status"] == "failed" and row["error"].startswith("out of memory")
    last = search.output.splitlines()[-1]
    assert last.startswith("tfgpt.tune: none of 1 trials succeeded: out of memory") and "Traceback" not in search.output


def test_a_full_disk_stops_the_search_and_loses_nothing(start: Start, arguments, tmp_path: Path):
    more = ["--tuner=random", "--max_trials=1"]
    full = start("tune", *arguments("full", *more), file_size=60_000)
    assert full.ended() == 1, full.output
    assert "the disk is full" in full.output.splitlines()[-1] and "Traceback" not in full.output
    assert table(tmp_path / "full")[0]["status"] == "running"
    again = start("tune", *arguments("full", *more))
    assert again.ended() == 0, again.output
    assert "Trial 0000 continues" in again.output and table(tmp_path / "full")[0]["status"] == "completed"


def test_gpus_and_threads_are_shared_out():
    assert device_share(0, 1) == {}
    shared = device_share(1, 2, gpus=["0", "1", "2", "3"], cores=8)
    assert shared == {"TF_NUM_INTRAOP_THREADS": "4", "CUDA_VISIBLE_DEVICES": "1,3"}
    alone = device_share(1, 2, gpus=["0"], cores=2)
    assert alone["CUDA_VISIBLE_DEVICES"] == "0" and alone["TF_FORCE_GPU_ALLOW_GROWTH"] == "true"


def conversations(path: Path, answer: str, seed: int) -> Path:
    """120 short conversations whose answers begin alike."""
    draw = random.Random(seed)
    turns = [(f"Number {number}?", f"{answer} {draw.randrange(100)}.") for number in range(120)]
    rows = [[{"role": "user", "content": ask}, {"role": "assistant", "content": reply}] for ask, reply in turns]
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    return path


def test_the_spaces_of_mixtures_and_of_adapters_are_searched(start: Start, tmp_path: Path):
    texts = [conversations(tmp_path / f"{name}.jsonl", name, seed) for seed, name in enumerate(("likes", "sums"))]
    # One trial each: a process and its tracing cost seconds.
    search = [*TINY, "--sequence_length=64", "--objective=chat", "--validation_fraction=0.2", "--max_trials=1"]
    search += ["--max_steps=6", "--trial_validations=1", "--warmup_steps=1", "--sample_tokens=0"]
    mixtures = start(
        "tune", *search, *(f"--train_text={text}" for text in texts), f"--search_dir={tmp_path / 'mixtures'}",
        f"--search_space={ROOT / 'configs/search/mixture.toml'}",
    )  # fmt: skip
    assert mixtures.ended() == 0, mixtures.output
    (row,) = table(tmp_path / "mixtures")
    written = (tmp_path / f"mixtures/trials/{row['trial_id']}/flags.cfg").read_text()
    assert "".join(f"--mixture={weight}\n" for weight in json.loads(row["mixture"])) in written

    model = tmp_path / f"mixtures/trials/{row['trial_id']}/model"
    sizes = ("tokenizer", "preset", "num_", "_dim")
    adapters = start(
        "tune", *(flag for flag in search if not any(name in flag for name in sizes)), f"--init_from={model}",
        f"--train_text={texts[0]}", f"--search_dir={tmp_path / 'adapters'}",
        f"--search_space={ROOT / 'configs/search/lora.toml'}",
    )  # fmt: skip
    assert adapters.ended() == 0, adapters.output
    (row,) = table(tmp_path / "adapters")
    trial = tmp_path / f"adapters/trials/{row['trial_id']}"
    assert json.loads((trial / "adapter/adapter_config.json").read_text())["r"] == int(row["lora_rank"])
    before, after = (load_file(folder / "model.safetensors") for folder in (model, trial / "model"))
    changed = {name.split(".")[3] for name in before if not np.array_equal(before[name], after[name])}
    expected = {"attention": {"self_attn"}, "mlp": {"mlp"}, "all": {"self_attn", "mlp"}}
    assert changed == expected[row["lora_target_modules"]]
