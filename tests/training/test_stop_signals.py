"""Signals as wishes: the first is heard, the second ends, and one wish that comes twice stays one."""

import os
import pty
import signal
import subprocess
import sys

import pytest

from tests.conftest import ROOT

PROGRAM = """
import os, signal, sys, time
from tfgpt.training import stop_signals
stop_signals.DUPLICATE_SECONDS = float(sys.argv[1])
with stop_signals.StopSignals() as signals:
    for name in sys.argv[2:]:
        os.kill(os.getpid(), getattr(signal, name))
        time.sleep(0.2)
    print("heard", signals.requested)
"""


def run(program: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("same_wish", "signals", "code"),
    [
        ("5", ["SIGTERM"], 0),
        ("5", ["SIGTERM", "SIGTERM"], 0),
        ("0.1", ["SIGTERM", "SIGTERM"], -signal.SIGTERM),
        ("5", ["SIGINT"], 0),
        ("5", ["SIGINT", "SIGINT"], None),
        ("5", ["SIGINT", "SIGTERM"], 0),
        # Lightning-AI/pytorch-lightning#1455: what SLURM's --signal=USR1@90 sends, and a terminal that goes away.
        ("0.1", ["SIGUSR1", "SIGUSR1"], 0),
        ("0.1", ["SIGHUP", "SIGHUP"], 0),
    ],
)
def test_a_second_signal_ends_at_once_unless_it_is_the_first_passed_on(same_wish, signals, code):
    done = run(PROGRAM, same_wish, *signals)
    if code is None:
        # Python's own SIGINT handling may turn the default action into its exit code.
        assert done.returncode in (-signal.SIGINT, 130, 1) and "ending at once" in done.stderr
    else:
        assert done.returncode == code, done.stderr
        assert ("heard" in done.stdout) == (code == 0)


def test_nohup_is_respected():
    done = run("import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)" + PROGRAM, "5", "SIGHUP")
    assert done.returncode == 0 and "heard None" in done.stdout


def test_a_run_outlives_its_terminal_until_it_has_saved(tmp_path):
    # facebookincubator/submitit#1701. Writing to a terminal that is gone is an error (EIO).
    program = (
        "import sys, time\nfrom tfgpt.training.stop_signals import StopSignals\nwith StopSignals() as signals:\n"
        "    print('ready', flush=True)\n    while not signals.requested: time.sleep(0.05)\n"
        "    print('said to nobody', flush=True); print('nor here', file=sys.stderr, flush=True)\n"
        "open(sys.argv[1], 'w').write(signals.requested)\n"
    )
    pid, terminal = pty.fork()
    if not pid:
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "-c", program, str(tmp_path / "heard")])
    assert b"ready" in os.read(terminal, 100)
    os.close(terminal)
    assert os.waitpid(pid, 0)[1] == 0
    assert (tmp_path / "heard").read_text() == "SIGHUP"
