"""Claims about quiet imports."""

from __future__ import annotations

import subprocess
import sys

from tests.conftest import ROOT


def run(code: str) -> subprocess.CompletedProcess:
    code = f"from tfgpt.common.quiet import captured_standard_error\nimport os\n{code}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)


def test_notices_are_hidden_but_not_what_is_said_before_and_after():
    done = run(
        "os.write(2, b'before ')\nwith captured_standard_error():\n  os.write(2, b'notice')\nos.write(2, b'after')"
    )
    assert done.stderr == "before after"


def test_notices_are_shown_when_the_block_fails():
    done = run("with captured_standard_error():\n  os.write(2, b'reason')\n  raise ImportError('no')")
    assert done.stderr.startswith("reason") and "ImportError: no" in done.stderr
