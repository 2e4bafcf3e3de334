"""The projection's arithmetic, against numbers worked out by hand."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# 1e8 parameters, 1e9 operations a token, 8 rows of 1024 tokens on a v5e chip.
RESULT = {
    "chip": "v5e",
    "parameters": 10**8,
    "optimizer": "adamw",
    "all_reduce_bytes": 4 * 10**8,
    "flops_per_token": 1e9,
}
RESULT |= {"rows": 4, "micro_batches": 2, "sequence_length": 1024}


def projected(tmp_path: Path, *flags: str) -> dict:
    results = tmp_path / "results.json"
    results.write_text(json.dumps([RESULT, {"chip": "v4core"}]))
    command = [sys.executable, ROOT / "scripts" / "scaling_projection.py", results, *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "assumed" in done.stdout and "nothing to project for v4core" in done.stdout
    return json.loads(done.stdout.splitlines()[-1])[0]


def test_times_are_operations_over_peak_and_bytes_over_links(tmp_path: Path):
    found = projected(tmp_path, "--utilization=0.5", "--global_tokens=131072")
    last = found["same_batch_a_chip"][-1]
    compute = 8 * 1024 * 1e9 / (0.5 * 197e12)
    update = 28 * 1e8 / 819e9
    reduce = 2 * 255 / 256 * 4e8 / 200e9 + 2 * 2 * 16 * 1e-6
    assert last["chips"] == 256
    assert last["compute_ms"] == pytest.approx(1e3 * compute)
    assert last["all_reduce_ms"] == pytest.approx(1e3 * reduce)
    assert last["efficiency"] == pytest.approx((compute + update) / (compute + update + reduce))
    # Four chips are no ring: half of the links' rate.
    assert found["same_batch_a_chip"][2]["all_reduce_ms"] == pytest.approx(1e3 * (1.5 * 4e8 / 100e9 + 8e-6))
    # Four chips do a quarter of the computing each, the whole update each, and the all-reduce.
    one, four = found["same_global_batch"][0], found["same_global_batch"][2]
    slower = (32 / 8 * compute + update + 1.5 * 4e8 / 100e9 + 8e-6) / ((128 / 8 * compute + update) / 4)
    assert one["efficiency"] == 1.0 and four["efficiency"] == pytest.approx(1 / slower)
    # 128 rows: 128 chips have one each, 256 have none.
    assert [line["rows"] for line in found["same_global_batch"]] == [128, 64, 32, 16, 8, 4, 2, 1]
    assert found["ends"] == round(131072 * 1e9 / (0.5 * 197e12) / reduce)


def test_a_utilization_that_cannot_be_is_refused():
    command = [sys.executable, ROOT / "scripts" / "scaling_projection.py", "x.json", "--utilization=40"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "--utilization" in done.stderr and len(done.stderr.splitlines()) == 1
