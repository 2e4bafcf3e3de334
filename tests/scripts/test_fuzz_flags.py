"""Claims about hostile flags."""

import json
import subprocess
import sys

from tests.conftest import ROOT


def test_no_hostile_flag_ends_in_more_than_one_line():
    command = [sys.executable, str(ROOT / "scripts" / "fuzz_flags.py"), "--seed=5", "--count=100"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["wrong"] == 0 and counts["refused"] > 60 and counts["refused"] + counts["accepted"] == 100
