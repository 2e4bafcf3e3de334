"""Kills a search with SIGKILL at random moments and compares its trials with those of a search without kills.

    python scripts/kill_tune.py --kills=5

Both searches train the same small trials with the same seed. A kill hits the search alone or, every other time, all of
its processes at once. In the end trials.csv (except for speed, memory and time) and the weights of each trial's model
must be equal.
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
MODEL = """--tokenizer=bytes --preset=tiny --num_layers=1 --num_query_heads=2 --num_key_value_heads=1 --hidden_dim=32
--intermediate_dim=64 --head_dim=16 --sequence_length=32 --warmup_steps=10 --checkpoint_every=20 --log_every=7
--compile=graph --tensorboard=false --seed=3 --trial_tokens=25600 --hyperband_epochs=4 --hyperband_factor=2""".split()


def table(directory: Path) -> list[dict[str, str]]:
    """Returns trials.csv without the columns that differ from run to run."""
    if not (directory / "trials.csv").is_file():
        return []
    with open(directory / "trials.csv", newline="") as file:
        return [{name: value for name, value in row.items() if name not in TIMES} for row in csv.DictReader(file)]


def kill_once(arguments: list[str], dice: random.Random, all_processes: bool) -> bool:
    """Starts the search and kills it at a random moment; returns False if it ended before."""
    process = subprocess.Popen(
        arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    assert process.stdout is not None
    if dice.random() < 0.8:  # else while it imports or prepares
        for line in process.stdout:
            if line.startswith("Trial"):
                break
    end = time.monotonic() + dice.uniform(0.0, 12.0)
    while process.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
    if process.poll() is not None:
        if process.returncode:
            sys.exit("the search failed")
        return False
    (os.killpg if all_processes else os.kill)(process.pid, signal.SIGKILL)
    process.wait()
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=5, help="SIGKILLs to send (default 5)")
    parser.add_argument("--tuner", default="bayesian", choices=("random", "grid", "bayesian", "hyperband"))
    parser.add_argument("--trials", type=int, default=8, help="trials of the search (default 8)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the random moments (default: the time)")
    options = parser.parse_args()
    dice = random.Random(options.seed)
    print(f"seed {options.seed}")
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        (base / "space.toml").write_text(SPACE)
        (base / "text.txt").write_text("".join(f"{n} times {n} is {n * n}; half is {n / 2}.\n" for n in range(900)))
        command = [
            sys.executable, "-m", "tfgpt.tune", f"--train_text={base / 'text.txt'}", f"--cache_dir={base / 'cache'}",
            f"--search_space={base / 'space.toml'}", f"--tuner={options.tuner}", f"--max_trials={options.trials}",
            *MODEL,
        ]  # fmt: skip
        alone, killed = ([*command, f"--search_dir={base / name}"] for name in ("alone", "killed"))
        subprocess.run(alone, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        for kill in range(1, options.kills + 1):
            if not kill_once(killed, dice, all_processes=kill % 2 == 0):
                print(f"the search ended after {kill - 1} kills: use more --trials")
                return 1
            ended = sum(row["status"] == "completed" for row in table(base / "killed"))
            print(f"kill {kill:2}: {ended} trials finished", flush=True)
        subprocess.run(killed, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        one, other = table(base / "alone"), table(base / "killed")
        models = [path.relative_to(base / "alone") for path in base.glob("alone/trials/*/model/model.safetensors")]
        same = sum((base / "alone" / path).read_bytes() == (base / "killed" / path).read_bytes() for path in models)
        print(
            f"{options.kills} kills, {options.tuner}: trials.csv {'equal' if one == other else 'DIFFERENT'} "
            f"({len(one)} and {len(other)} trials), {same} of {len(models)} models equal bit for bit"
        )
        return 0 if one == other and same == len(models) else 1


if __name__ == "__main__":
    sys.exit(main())
