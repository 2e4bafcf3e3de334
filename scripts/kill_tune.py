"""Kills a search with SIGKILL at random moments; it must end with the very trials of a search left alone.

    python scripts/kill_tune.py --kills=5

Both searches train the same small trials with the same seed. The one is left alone; the other is killed again and
again, in the middle of importing, preparing, proposing, training or writing, and started with the same command until it
ends. A kill hits the launcher alone or, every other time, all of its processes at once. Then trials.csv (but for speed,
memory and time), and the weights of every trial's model must be equal.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TIMES = ("tokens_per_second", "peak_memory_bytes", "seconds")
SPACE = """
[search.learning_rate]
type = "float"
min = 1e-3
max = 1e-1
scale = "log"
[search.batch_size]
choices = [4, 8]
"""


def command(base: Path, name: str, tuner: str, trials: int) -> list[str]:
    """The search."""
    return [
        sys.executable, "-m", "tfgpt.tune", f"--train_text={base / 'text.txt'}", f"--cache_dir={base / 'cache'}",
        f"--search_space={base / 'space.toml'}", f"--search_dir={base / name}", f"--tuner={tuner}",
        f"--max_trials={trials}", "--trial_tokens=25600", "--hyperband_epochs=4", "--hyperband_factor=2",
        "--tokenizer=bytes", "--preset=tiny", "--num_layers=1", "--num_query_heads=2", "--num_key_value_heads=1",
        "--hidden_dim=32", "--intermediate_dim=64", "--head_dim=16", "--sequence_length=32", "--warmup_steps=10",
        "--checkpoint_every=20", "--log_every=7", "--compile=graph", "--tensorboard=false", "--seed=3",
    ]  # fmt: skip


def table(directory: Path) -> list[dict[str, str]]:
    """trials.csv without what differs from run to run."""
    path = directory / "trials.csv"
    if not path.is_file():
        return []
    with open(path, newline="") as file:
        return [{name: value for name, value in row.items() if name not in TIMES} for row in csv.DictReader(file)]


def killed_once(arguments: list[str], directory: Path, dice: random.Random, whole_group: bool) -> str | None:
    """Starts the search and kills it at a random moment; where it was, or None when it ended before."""
    process = subprocess.Popen(
        arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    assert process.stdout is not None
    started = time.monotonic()
    if dice.random() < 0.2:
        end = started + dice.uniform(0.0, 8.0)
    else:
        # A line is said when a trial begins or goes on.
        for line in process.stdout:
            if line.startswith("Trial"):
                break
        end = time.monotonic() + dice.uniform(0.0, 12.0)
    while process.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
    if process.poll() is not None:
        if process.returncode:
            sys.exit("the search failed by itself")
        return None
    if whole_group:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        os.kill(process.pid, signal.SIGKILL)
    process.wait()
    ended = sum(row["status"] == "completed" for row in table(directory))
    return f"{time.monotonic() - started:.1f} s after its start, {ended} trials finished"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=5, help="SIGKILLs to send (default 5)")
    parser.add_argument("--tuner", default="bayesian", choices=("random", "grid", "bayesian", "hyperband"))
    parser.add_argument("--trials", type=int, default=8, help="trials of the search (default 8)")
    parser.add_argument("--seed", type=int, default=None, help="of the random moments (default: from the clock)")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else int(time.time())
    dice = random.Random(seed)
    print(f"seed {seed}")
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        (base / "space.toml").write_text(SPACE)
        (base / "text.txt").write_text(
            "".join(f"{n} times {n} is {n * n}; half of {n} is {n / 2}.\n" for n in range(900))
        )
        alone, killed = (command(base, name, options.tuner, options.trials) for name in ("alone", "killed"))
        began = time.monotonic()
        subprocess.run(alone, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        print(f"left alone: {len(table(base / 'alone'))} trials in {time.monotonic() - began:.0f} s", flush=True)
        for kill in range(1, options.kills + 1):
            where = killed_once(killed, base / "killed", dice, whole_group=kill % 2 == 0)
            if where is None:
                print(f"the search ended after {kill - 1} kills: use more --trials")
                return 1
            print(f"kill {kill:2}: {where}", flush=True)
        subprocess.run(killed, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        one, other = table(base / "alone"), table(base / "killed")
        weights = [
            tuple(
                (base / name / "trials" / row["trial_id"] / "model/model.safetensors") for name in ("alone", "killed")
            )
            for row in one
        ]
        trained = [paths for paths in weights if paths[0].is_file()]
        same = sum(paths[1].is_file() and paths[0].read_bytes() == paths[1].read_bytes() for paths in trained)
        print(
            f"{options.kills} kills, {options.tuner}: trials.csv {'equal' if one == other else 'DIFFERENT'} "
            f"({len(one)} and {len(other)} trials), {same} of {len(trained)} models equal bit for bit"
        )
        return 0 if one == other and same == len(trained) else 1


if __name__ == "__main__":
    sys.exit(main())
