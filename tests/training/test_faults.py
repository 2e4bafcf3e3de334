"""Claims about clusters of processes that are killed, told to stop or incomplete, through the real command."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from tests.conftest import ROOT
from tests.training.small_step import assert_states_close
from tests.training.topologies import free_addresses, tf_config
from tfgpt.common.output_directories import write_description

FLAGS = (
    "--tokenizer=bytes --preset=tiny --num_layers=1 --num_query_heads=2 --num_key_value_heads=1 --hidden_dim=16 "
    "--head_dim=8 --intermediate_dim=32 --sequence_length=16 --batch_size=8 --warmup_steps=2 --compile=graph "
    "--max_steps=90 --log_every=10 --validate_every=90 --checkpoint_every=10 --sample_tokens=0 --steps_per_execution=1 "
    "--max_grad_norm=0.3 --ema_decay=0.9 --gradient_accumulation_steps=2 --learning_rate=0.003 --tensorboard=false"
).split()


class Workers:
    def __init__(self, count: int, text: Path, run_dirs: list[Path], *more: str, timeout: int = 120):
        self.addresses = free_addresses(count)
        self.logs = [run_dir.parent / f"{run_dir.name}-worker-{index}.log" for index, run_dir in enumerate(run_dirs)]
        self.processes = []
        for index in range(count):
            flags = [*FLAGS, f"--train_text={text}", f"--run_dir={run_dirs[index]}", *more]
            command = [sys.executable, "-m", "tfgpt.train", "--strategy=multiworker", *flags]
            environment = {**os.environ, "TF_CONFIG": tf_config(self.addresses, index), "PYTHONPATH": str(ROOT)}
            environment["TF_NUM_INTRAOP_THREADS"] = "1"
            with self.logs[index].open("wb") as log:
                process = subprocess.Popen(
                    [*command, f"--cluster_timeout={timeout}"], env=environment, stdout=log, stderr=log
                )
            self.processes.append(process)

    def wait(self) -> list[int]:
        return [process.wait(timeout=600) for process in self.processes]

    def output(self, index: int) -> str:
        return self.logs[index].read_text(errors="replace")

    def trained_process(self, index: int) -> int:
        """The process that trains: the child of the one that starts it again."""
        return int(Path(f"/proc/{self.processes[index].pid}/task/{self.processes[index].pid}/children").read_text())


def wait_for(happened: Callable[[], bool], workers: Workers) -> None:
    deadline = time.monotonic() + 500
    while not happened():
        assert time.monotonic() < deadline, workers.output(0)
        assert all(process.poll() is None for process in workers.processes), workers.output(0)
        time.sleep(0.05)


def state(run_dir: Path, step: int = 90) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(run_dir / f"checkpoints/step-{step:08d}/state.safetensors")


@pytest.fixture(scope="session")
def undisturbed(text_file, tmp_path_factory, tfgpt) -> dict[str, np.ndarray]:
    run_dir = tmp_path_factory.mktemp("faults") / "one"
    flags = [*FLAGS, f"--train_text={text_file}", f"--run_dir={run_dir}", "--steps_per_execution=0"]
    done = tfgpt("train", *flags)
    assert done.returncode == 0, done.stderr
    return state(run_dir)


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_after_a_kill_the_others_name_the_lost_worker_and_all_start_again_to_the_same_end(
    text_file, tmp_path, undisturbed, count
):
    run_dir = tmp_path / "run"
    *others, lost = sorted(range(count), key=lambda index: index == count // 2)
    workers = Workers(count, text_file, [run_dir] * count, "--restarts=1")
    wait_for((run_dir / "checkpoints/step-00000020").exists, workers)
    killed = time.monotonic()
    os.kill(workers.trained_process(lost), signal.SIGKILL)
    line = f"tfgpt.train: lost worker {lost} ({workers.addresses[lost]})"
    while not all(line in workers.output(index) for index in others):
        assert time.monotonic() - killed < 120, [workers.output(index)[-2000:] for index in others]
        time.sleep(0.1)
    print(f"\nnoticed after {time.monotonic() - killed:.1f} s: {line}")
    assert workers.wait() == [0] * count, workers.output(0)
    assert workers.output(0).count("Resuming from") == 1
    assert "killed by SIGKILL; starting it again" in workers.output(lost)
    for index in others:
        assert workers.output(index).count(line) == 1
        assert "Traceback" not in workers.output(index)
    assert_states_close(undisturbed, state(run_dir), 1e-5)


@pytest.mark.slow
def test_a_run_moves_from_one_device_to_a_cluster_stopped_by_sigterm_and_on_to_logical_cpus(
    text_file, tmp_path, undisturbed, tfgpt
):
    chief_dir, other_dir = tmp_path / "chief", tmp_path / "other"
    command = [sys.executable, "-m", "tfgpt.train", *FLAGS, f"--train_text={text_file}", f"--run_dir={chief_dir}"]
    with (tmp_path / "one.log").open("wb") as log:
        one = subprocess.Popen([*command, "--strategy=one"], cwd=ROOT, stdout=log, stderr=log)
    deadline = time.monotonic() + 300
    while not (chief_dir / "checkpoints/step-00000010").exists():
        assert time.monotonic() < deadline and one.poll() is None, (tmp_path / "one.log").read_text()
        time.sleep(0.01)
    one.send_signal(signal.SIGTERM)
    assert one.wait(timeout=60) == 0
    begun = max((chief_dir / "checkpoints").glob("step-????????"))
    workers = Workers(2, text_file, [chief_dir, other_dir], "--preempted_exit_code=76", "--restarts=1")
    wait_for(lambda: max((chief_dir / "checkpoints").glob("step-????????")) != begun, workers)
    workers.processes[1].send_signal(signal.SIGTERM)
    assert workers.wait() == [76, 76], workers.output(0) + workers.output(1)
    # The other worker had a place of its own to write to, and wrote nothing.
    assert not other_dir.exists()
    steps = sorted(int(path.name[5:]) for path in (chief_dir / "checkpoints").glob("step-????????"))
    assert f"Stopped at step {steps[-1]}, saved in" in workers.output(0)
    assert begun < chief_dir / f"checkpoints/step-{steps[-1]:08d}"
    assert not list((chief_dir / "checkpoints").glob(".*"))
    done = tfgpt("train", f"--flagfile={chief_dir / 'flags.cfg'}", "--strategy=mirrored", "--logical_cpus=4")
    assert done.returncode == 0, done.stderr
    assert f"Resuming from {begun} (step" in workers.output(0)
    assert f"step {steps[-1]})" in done.stdout
    assert_states_close(undisturbed, state(chief_dir), 1e-5)


def test_a_worker_that_never_comes_is_named_and_nobody_waits_for_ever(text_file, tmp_path):
    workers = Workers(3, text_file, [tmp_path / "run"] * 2 + [tmp_path / "late"], timeout=8)
    workers.processes[2].kill()
    assert workers.wait()[:2] == [75, 75]
    for index in (0, 1):
        lines = [line for line in workers.output(index).splitlines() if line.startswith("tfgpt.train:")]
        assert lines == [
            f"tfgpt.train: worker 2 ({workers.addresses[2]}) did not come within 8 s; start every worker of the cluster"
        ]


def test_a_mistake_on_the_chief_ends_every_worker_with_its_exit_code(text_file, tmp_path):
    run_dir = tmp_path / "run"
    (run_dir / "checkpoints/step-00000001").mkdir(parents=True)
    write_description(run_dir, "run")
    workers = Workers(2, text_file, [run_dir] * 2, "--resume=never")
    assert workers.wait() == [2, 2]
    assert workers.output(0).splitlines()[-1].startswith(f"tfgpt.train: --run_dir: {run_dir} holds a run at step 1")
    assert workers.output(1).splitlines()[-1].startswith("tfgpt.train: the chief stopped: --run_dir:")
