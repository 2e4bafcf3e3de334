"""Kills a training run with SIGKILL at random moments; it must end with the very weights of a run left alone.

    python scripts/kill_resume.py --kills=20

Both runs train a small model on the same text with the same flags. The one is left alone; the other is killed again and
again, in the middle of starting, training, validating or writing a checkpoint, and started with the same command until
it ends. Then the final weights, optimizer slots and every line of metrics (but the speed) must be equal bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import safetensors.numpy

ROOT = Path(__file__).resolve().parent.parent
SPEED = ("tokens_per_second", "model_flops_utilization")


def command(text: Path, run_dir: Path, cache: Path, steps: int) -> list[str]:
    """The training command: dropout, accumulation and averaging are on, so that their state is tested too."""
    return [
        sys.executable, "-m", "tfgpt.train", f"--train_text={text}", f"--run_dir={run_dir}", f"--cache_dir={cache}",
        "--tokenizer=bytes", "--preset=tiny", "--num_layers=2", "--num_query_heads=2", "--num_key_value_heads=1",
        "--hidden_dim=32", "--intermediate_dim=64", "--head_dim=16", "--dropout=0.1", "--sequence_length=32",
        "--batch_size=8", "--gradient_accumulation_steps=2", "--optimizer=muon", "--ema_decay=0.99",
        f"--max_steps={steps}", "--checkpoint_every=20",
        f"--validate_every={steps // 5}", "--log_every=7", "--sample_tokens=0", "--seed=3",
        "--compile=graph",
    ]  # fmt: skip


def lines(run_dir: Path) -> int:
    """Returns the number of lines of metrics that the run has written."""
    path = run_dir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def killed_once(arguments: list[str], run_dir: Path, dice: random.Random) -> tuple[int | None, str]:
    """Starts the run and kills it at a random moment; returns its exit code (None: killed) and where it was."""
    before = lines(run_dir)
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    started = time.monotonic()
    if dice.random() < 0.2:
        where, end = "starting", started + dice.uniform(0.0, 6.0)
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
    else:
        while process.poll() is None and lines(run_dir) <= before:
            time.sleep(0.005)
        where, end = "training", time.monotonic() + dice.uniform(0.0, 1.0)
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.001)
    if process.poll() is not None:
        if process.returncode:
            sys.exit(f"the run failed by itself: {process.stderr.read() if process.stderr else ''}")
        return 0, "finished"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    return None, f"{where}, {time.monotonic() - started:.1f} s after its start, {lines(run_dir)} lines of metrics"


def final_state(run_dir: Path) -> dict[str, np.ndarray]:
    """Every variable of the newest checkpoint."""
    newest = sorted((run_dir / "checkpoints").glob("step-*"))[-1]
    return safetensors.numpy.load_file(newest / "state.safetensors")


def metrics(run_dir: Path) -> list[dict]:
    """The lines of metrics without the speed, which is the machine's."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in SPEED} for row in rows]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="SIGKILLs to send (default 20)")
    parser.add_argument("--steps", type=int, default=3000, help="optimizer updates of the run (default 3000)")
    parser.add_argument("--seed", type=int, default=None, help="of the random moments (default: from the clock)")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else int(time.time())
    dice = random.Random(seed)
    print(f"seed {seed}")
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        text = base / "text.txt"
        text.write_text("".join(f"{n} times {n} is {n * n}; and half of {n} is {n / 2}.\n" for n in range(4000)))
        alone, killed = base / "alone", base / "killed"
        subprocess.run(command(text, alone, base / "cache", options.steps), cwd=ROOT, check=True, capture_output=True)
        arguments = command(text, killed, base / "cache", options.steps)
        kills = 0
        while kills < options.kills:
            code, where = killed_once(arguments, killed, dice)
            if code == 0:
                print(f"the run ended after {kills} kills: use more --steps")
                return 1
            kills += 1
            print(f"kill {kills:2}: {where}", flush=True)
        subprocess.run(arguments, cwd=ROOT, check=True, capture_output=True)
        one, other = final_state(alone), final_state(killed)
        different = [name for name in one if one[name].tobytes() != other[name].tobytes()]
        same_files = (alone / "model/model.safetensors").read_bytes() == (
            killed / "model/model.safetensors"
        ).read_bytes()
        same_metrics = metrics(alone) == metrics(killed)
        print(
            f"{kills} kills, {options.steps} steps: "
            f"{len(one) - len(different)} of {len(one)} variables equal bit for bit, "
            f"model.safetensors {'equal' if same_files else 'DIFFERENT'}, "
            f"metrics {'equal' if same_metrics else 'DIFFERENT'} ({len(metrics(killed))} lines)"
        )
        return 0 if not different and same_files and same_metrics else 1


if __name__ == "__main__":
    sys.exit(main())
