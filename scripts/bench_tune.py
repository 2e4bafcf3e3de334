"""Times the same search with one worker and with several; the last line is JSON.

    python scripts/bench_tune.py --workers=1,2 --trials=8

The data are prepared before. The time is that of the whole command, with imports and report.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SPACE = '[search.learning_rate]\ntype = "float"\nmin = 1e-3\nmax = 1e-2\nscale = "log"\n'


def command(base: Path, name: str, workers: int, trials: int, tokens: int) -> list[str]:
    return [
        sys.executable, "-m", "tfgpt.tune", f"--train_text={base / 'text.txt'}", f"--cache_dir={base / 'cache'}",
        f"--search_space={base / 'space.toml'}", f"--search_dir={base / name}", "--tuner=random",
        f"--max_trials={trials}", f"--trial_tokens={tokens}", f"--parallel={workers}", "--trial_validations=1",
        "--tokenizer=bytes", "--preset=tiny", "--sequence_length=128", "--batch_size=8", "--warmup_steps=10",
        "--checkpoint_every=5m", "--compile=graph", "--tensorboard=false",
    ]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", default="1,2", help="numbers of workers to time (default 1,2)")
    parser.add_argument("--trials", type=int, default=8, help="trials of each search (default 8)")
    parser.add_argument("--tokens", type=int, default=65536, help="tokens of each trial (default 65536)")
    options = parser.parse_args()
    counts = [int(number) for number in options.workers.split(",")]
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        (base / "space.toml").write_text(SPACE)
        (base / "text.txt").write_text("".join(f"{n} times {n} is {n * n}; half is {n / 2}.\n" for n in range(9000)))
        subprocess.run(command(base, "warm", 1, 1, 1024), cwd=ROOT, check=True, capture_output=True)
        for workers in counts:
            began = time.monotonic()
            arguments = command(base, f"with{workers}", workers, options.trials, options.tokens)
            subprocess.run(arguments, cwd=ROOT, check=True, capture_output=True)
            seconds = time.monotonic() - began
            with open(base / f"with{workers}" / "trials.csv", newline="") as file:
                rows = list(csv.DictReader(file))
            speed = sum(float(row["tokens_per_second"]) for row in rows) / len(rows)
            found[workers] = seconds
            print(
                f"{workers} workers: {len(rows)} trials in {seconds:.1f} s; {speed:,.0f} tokens/s a trial", flush=True
            )
    speed_up = {workers: round(found[counts[0]] / seconds, 2) for workers, seconds in found.items()}
    settings = {"trials": options.trials, "tokens": options.tokens, "cores": len(os.sched_getaffinity(0))}
    print(json.dumps({"seconds": found, "speed_up": speed_up, **settings}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
