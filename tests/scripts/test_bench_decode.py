"""The decoding benchmark ends in the line that others read, and both sides write the same tokens."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_benchmark_ends_in_one_line_of_json_and_both_sides_agree():
    small = ["--layers=1", "--width=64", "--rows=float32-2x9", "--tokens=5", "--rounds=1", "--peers=transformers"]
    command = [sys.executable, "scripts/bench_decode.py", "--json", *small]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout.splitlines()[-1])
    assert figures["ratios"]["float32-2x9"]["transformers"] > 0
    assert figures["figures"]["float32-2x9"]["agreement"] == "5"
