"""Throughput of N worker processes against one on this machine, at the same global batch.

    python scripts/bench_workers.py --workers=2 --rounds=2

Each round trains the same steps with one worker on one core, one worker on all cores, and N workers that share the
cores, in turn; the figure is the median of the steps' own tokens per second (tracing and validation left out), the
best round counts. Prints a table and one line of JSON.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from absl import app, flags

ROOT = Path(__file__).resolve().parents[1]
WORKERS = flags.DEFINE_integer("workers", 2, "Worker processes of the cluster.", lower_bound=2)
ROUNDS = flags.DEFINE_integer("rounds", 2, "Times each is measured.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 60, "Updates of each run.", lower_bound=20)
SHAPE = flags.DEFINE_string("shape", "", "Only shapes whose name contains this.")
JSON = flags.DEFINE_boolean("json", False, "Only the line of JSON.")
# Name → flags of `tfgpt.train`.
SHAPES = {
    "4x192, T=128, B=8": "--preset=tiny --sequence_length=128 --batch_size=8",
    "6x384, T=256, B=8": "--preset=mini --sequence_length=256 --batch_size=8",
}
COMMON = (
    "--tokenizer=bytes --compile=graph --log_every=5 --validate_every=100000 --sample_tokens=0 --tensorboard=false "
    "--checkpoint_every=100000 --validation_fraction=0.02"
)


def tokens_per_second(shape: str, workers: int, threads: int, cores: set[int], text: Path) -> float:
    """The median over the lines of metrics of one run, whose processes keep to some cores."""
    with tempfile.TemporaryDirectory() as directory:
        command = ["bash", str(ROOT / "scripts/launch_local.sh"), str(workers), *SHAPES[shape].split(), *COMMON.split()]
        environment = {
            **os.environ,
            "PYTHON": sys.executable,
            "LOG_DIR": f"{directory}/logs",
            "TF_NUM_INTRAOP_THREADS": str(threads),
            "OMP_NUM_THREADS": str(threads),
        }
        of_run = [f"--max_steps={STEPS.value}", f"--train_text={text}", f"--run_dir={directory}/run"]
        done = subprocess.run(
            [*command, *of_run], cwd=ROOT, env=environment, capture_output=True, text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)
        rows = [json.loads(line) for line in Path(directory, "run/metrics.jsonl").read_text().splitlines()]
    return statistics.median(row["tokens_per_second"] for row in rows if "tokens_per_second" in row)


def main(arguments: list[str]) -> None:
    """Measures and prints."""
    every = os.sched_getaffinity(0)
    cores = len(every)
    settings = {
        "1 worker, 1 core": (1, 1, {min(every)}),
        f"1 worker, {cores} cores": (1, cores, every),
        f"{WORKERS.value} workers, {cores} cores": (WORKERS.value, max(cores // WORKERS.value, 1), every),
    }
    best: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as directory:
        text = Path(directory, "text.txt")
        text.write_text("".join(f"{number}: the quick brown fox jumps over the lazy dog.\n" for number in range(40000)))
        for shape in (name for name in SHAPES if SHAPE.value in name):
            best[shape] = dict.fromkeys(settings, 0.0)
            for _ in range(ROUNDS.value):
                for name, (count, threads, allowed) in settings.items():
                    figure = tokens_per_second(shape, count, threads, allowed, text)
                    print(f"{shape}, {name}: {figure:,.0f} tokens/s", file=sys.stderr, flush=True)
                    best[shape][name] = max(best[shape][name], figure)
    if not JSON.value:
        for shape, figures in best.items():
            first = next(iter(figures.values()))
            for name, figure in figures.items():
                print(f"{shape:20s} {name:28s} {figure:9,.0f} tokens/s  {figure / first:5.2f}")
    print(json.dumps({"bench": "workers", "cores": cores, "tokens_per_second": best}))


if __name__ == "__main__":
    app.run(main)
