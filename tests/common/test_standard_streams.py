"""A process without standard streams, as services start it."""

import subprocess
import sys

from tests.conftest import ROOT

PROGRAM = """
import os, sys
for place in (0, 1, 2):
    os.close(place)
sys.stdin = sys.stdout = sys.stderr = None
from tfgpt.common.command_line import Command
from tfgpt.common.settings import Settings

def run(nothing):
    with open(sys.argv[1], "w") as file:
        print("to nobody"), print("to nobody", file=sys.stderr)
        os.write(2, b"a library's own words")
        file.write(f"{file.fileno() > 2} {sys.stdin.read()!r} {sys.stdin.isatty()}")

class NothingConfig(Settings):
    pass

sys.exit(Command("nothing", "Does nothing.", [NothingConfig], run).run([]))
"""


def test_without_standard_streams_no_file_gets_their_descriptors(tmp_path):
    # clustershell/clustershell#460: `sys.stdin.isatty()` of None; a file with the number 2 gets what libraries say.
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path / "said")], cwd=ROOT, timeout=60)
    assert done.returncode == 0
    assert (tmp_path / "said").read_text() == "True '' False"
