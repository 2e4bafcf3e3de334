"""Trains as a cluster of processes on this machine, disturbs it, and compares the end with an undisturbed run.

    python scripts/fault_runs.py --fault=kill --workers=4

kill: SIGKILL to one worker's training process; with --restarts=1 all start again by themselves. terminate: SIGTERM to
one worker, as a preemption notice comes; all save and stop, and the same command continues.
Prints what every worker says, when, and the largest difference of any variable from a run on one device.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import safetensors.numpy
from absl import app, flags

ROOT = Path(__file__).resolve().parents[1]
FAULT = flags.DEFINE_enum("fault", "kill", ["kill", "terminate"], "What happens.")
WORKERS = flags.DEFINE_integer("workers", 4, "Processes.", lower_bound=2)
VICTIM = flags.DEFINE_integer("victim", 2, "Number of the worker that it happens to.", lower_bound=0)
STEP = flags.DEFINE_integer("step", 100, "Once this step's checkpoint is there; a multiple of 20.", lower_bound=20)
STEPS = flags.DEFINE_integer("steps", 400, "Updates of the run.", lower_bound=40)
COMMON = (
    "--tokenizer=bytes --preset=tiny --num_layers=1 --num_query_heads=2 --num_key_value_heads=1 --hidden_dim=32 "
    "--head_dim=16 --intermediate_dim=64 --sequence_length=32 --batch_size=8 --warmup_steps=2 --compile=graph "
    "--log_every=50 --validate_every=200 --checkpoint_every=20 --sample_tokens=0 --steps_per_execution=1 "
    "--max_grad_norm=0.3 --ema_decay=0.9 --gradient_accumulation_steps=2 --tensorboard=false"
).split()
FAULTS = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM}


class Cluster:
    """The worker processes, which print each line with the time and the worker's number."""

    def __init__(self, arguments: list[str], started: float):
        held: list[socket.socket] = []
        while len(held) < WORKERS.value:
            with contextlib.suppress(OSError):
                held.append(socket.create_server(("localhost", random.randint(20000, 32000))))
        addresses = [f"localhost:{one.getsockname()[1]}" for one in held]
        for one in held:
            one.close()
        self.started, self.processes, self.readers = started, [], []
        for index in range(WORKERS.value):
            task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            environment = {**os.environ, "TF_CONFIG": json.dumps(task), "TF_NUM_INTRAOP_THREADS": "1"}
            process = subprocess.Popen(
                [sys.executable, "-m", "tfgpt.train", "--strategy=multiworker", *arguments],
                cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip
            reader = threading.Thread(target=self.read, args=(index, process), daemon=True)
            reader.start()
            self.processes.append(process)
            self.readers.append(reader)

    def say(self, who: str, text: str) -> None:
        """A line with the seconds since the start."""
        print(f"{time.monotonic() - self.started:6.1f} s  {who:8} | {text}", flush=True)

    def read(self, index: int, process: subprocess.Popen) -> None:
        """Prints a worker's lines."""
        for line in process.stdout or ():
            if line.startswith(("tfgpt", "Resuming", "Stopped", "Trained", "Held-out", "train:")):
                self.say(f"worker {index}", line.rstrip())

    def wait(self) -> list[int]:
        """The exit codes."""
        codes = [process.wait() for process in self.processes]
        for reader in self.readers:
            reader.join()
        return codes


def final_state(run_dir: Path) -> dict[str, np.ndarray]:
    """Every variable of the last checkpoint."""
    return safetensors.numpy.load_file(run_dir / f"checkpoints/step-{STEPS.value:08d}/state.safetensors")


def training_process(process: subprocess.Popen) -> int:
    """With --restarts the process that trains is a child of the one that was started."""
    return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])


def main(arguments: list[str]) -> int:
    """Runs and compares."""
    with tempfile.TemporaryDirectory() as directory:
        base = Path(directory)
        text = base / "text.txt"
        text.write_text("".join(f"{n} times {n} is {n * n}; and half of {n} is {n / 2}.\n" for n in range(4000)))
        common = [*COMMON, f"--train_text={text}", f"--cache_dir={base / 'cache'}", f"--max_steps={STEPS.value}"]
        alone = [sys.executable, "-m", "tfgpt.train", *common, f"--run_dir={base / 'alone'}", "--steps_per_execution=0"]
        subprocess.run(alone, cwd=ROOT, check=True, capture_output=True)
        run_dir = base / "cluster"
        command = [*common, f"--run_dir={run_dir}", "--restarts=1"]
        cluster = Cluster(command, time.monotonic())
        while not (run_dir / f"checkpoints/step-{STEP.value:08d}").exists():
            if any(process.poll() is not None for process in cluster.processes):
                return 1
            time.sleep(0.02)
        process = cluster.processes[VICTIM.value]
        number = process.pid if FAULT.value == "terminate" else training_process(process)
        cluster.say("here", f"{FAULTS[FAULT.value].name} to worker {VICTIM.value}")
        os.kill(number, FAULTS[FAULT.value])
        codes = cluster.wait()
        cluster.say("here", f"exit codes {codes}")
        if FAULT.value == "terminate":
            cluster.say("here", "the same command again")
            codes = Cluster(command, cluster.started).wait()
        one, other = final_state(base / "alone"), final_state(run_dir)
        largest = max(float(np.max(np.abs(one[name].astype(np.float64) - other[name]), initial=0.0)) for name in one)
        print(f"{len(one)} variables after {STEPS.value} updates: largest difference from one device {largest:.1e}")
        print(json.dumps({"fault": FAULT.value, "workers": WORKERS.value, "codes": codes, "difference": largest}))
    return max(codes)


if __name__ == "__main__":
    app.run(main)
