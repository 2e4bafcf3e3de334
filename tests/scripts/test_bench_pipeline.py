"""The pipeline's benchmark ends in the line that others read."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_benchmark_ends_in_one_line_of_json_with_ratios():
    command = [sys.executable, "scripts/bench_pipeline.py", "--json", "--rounds=1", "--tokens=500000"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout.splitlines()[-1])
    assert figures["ratios"].keys() == {"plain_tf_data", "plain_tf_data_eager", "nanogpt_get_batch"}
    assert all(ratio > 0 for ratio in figures["ratios"].values())
    assert len(figures["tokens_per_cpu_second"]) == 3
