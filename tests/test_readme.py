"""Claim: every command in the README works, typed as it stands there (with training made short by flags behind it)."""

import json
import multiprocessing
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.conftest import ROOT, TEXT
from tests.search.conftest import PRELOADED, run_command

SHORT = """--num_layers=1 --num_query_heads=2 --num_key_value_heads=1 --hidden_dim=16 --head_dim=8 --intermediate_dim=32
--sequence_length=32 --batch_size=4 --max_steps=4 --log_every=2 --validate_every=4 --sample_tokens=4 --compile=graph
--vocabulary_size=320""".split()
# What is typed behind a command so that it is over soon; None: how it is run is written out below.
BEHIND = {
    "scripts/quickstart.sh": SHORT,
    "scripts/test.sh": None,
    "scripts/launch_local.sh": SHORT,
    "python scripts/kill_resume.py": None,
    "python -m tfgpt": [],
    "python -m tfgpt.train": SHORT,
    # Its shape and tokenizer are those of the model it starts from; sources of which little is read.
    "python -m tfgpt.train --flagfile=configs/chat_quickstart.cfg": [
        *[flag for flag in SHORT if flag.startswith(("--seq", "--batch", "--max", "--log", "--val", "--sam", "--com"))],
        "--train_text=sample:chatterbot",
        "--train_text=sample:countryinfo",
    ],
    # They go on from models that other commands make: tests/test_configs.py.
    "python -m tfgpt.train --flagfile=configs/chat_smollm2_lora.cfg": None,
    "python -m tfgpt.train --flagfile=configs/dpo_replies.cfg": None,
    "python -m tfgpt.train --flagfile=configs/addition_grpo.cfg": None,
    "python scripts/make_preferences.py": [],
    "python scripts/make_addition.py": [],
    "python -m tfgpt.tune": [*SHORT, "--max_trials=1", "--trial_tokens=512", "--validation_fraction=0.02"],
    "python -m tfgpt.doctor": [*SHORT, "--overfit_steps=60"],
    "python -m tfgpt.prepare": ["--vocabulary_size=320"],
    "python -m tfgpt.evaluate": [],
    "python -m tfgpt.convert --suggest": [],
    "python -m tfgpt.generate": ["--max_new_tokens=4"],
    # Talks until its input ends: tests/test_chat.py.
    "python -m tfgpt.chat": None,
    "python -m tfgpt.convert": [],
    "python -m tfgpt.export": ["--max_new_tokens=4"],
    # Serves until it is stopped: tests/serving/test_serve_command.py.
    "python -m tfgpt.serve": None,
    "export TFGPT_API_KEYS=": [],
    # Needs an environment of its own with the TPU's compiler: tests/scripts/test_tpu_compile.py.
    "scripts/tpu_compile.sh": None,
    "python scripts/scaling_projection.py": [],
    # Minutes of small trainings: tests/search/test_learning_rate_transfer.py and test_scaling.py.
    "python scripts/learning_rate_transfer.py": None,
    "python -m tfgpt.scale": None,
    "python -m tensorboard.main": None,
}


def commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip() and not line.startswith("#")]


def kind(command: str) -> str:
    return max((name for name in BEHIND if re.match(rf"{re.escape(name)}(\s|$|(?<==))", command)), key=len, default="")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("readme") / "tfgpt"
    folder.mkdir()
    shutil.copyfile(ROOT / "README.md", folder / "README.md")
    for name in ("tfgpt", "configs", "scripts"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "my").mkdir()
    for number in range(3):
        (folder / "my" / f"{number}.txt").write_text(f"Part {number}.\n{TEXT * 60}")
    (folder / "tinyshakespeare.txt").write_text("First Citizen:\n" + TEXT * 100)
    return folder


def environment() -> dict[str, str]:
    # The scripts use the environment that runs the tests instead of making one more.
    bin_directory = Path(sys.executable).parent
    return {**os.environ, "VENV": str(bin_directory.parent), "PATH": f"{bin_directory}:{os.environ['PATH']}"}


FORKS = multiprocessing.get_context("forkserver")


def run_line(line: str, folder: Path) -> tuple[int | None, str]:
    """Runs a line in a shell; a command of tfgpt without one, as a fork of a process that has imported TensorFlow."""
    if not line.startswith("python -m tfgpt.") or set("|<>;&$") & set(line):
        done = subprocess.run(
            ["bash", "-c", line], cwd=folder, env=environment(), capture_output=True, text=True, timeout=600
        )
        return done.returncode, done.stdout + done.stderr
    _, _, module, *arguments = shlex.split(line)
    log = folder.with_name("log.txt")
    log.unlink(missing_ok=True)
    FORKS.set_forkserver_preload(PRELOADED)
    process = FORKS.Process(target=run_command, args=(module.removeprefix("tfgpt."), arguments, log, {}, 0, folder))
    process.start()
    process.join(600)
    return process.exitcode, log.read_text(encoding="utf-8")


def test_every_command_does_what_it_says(checkout):
    for command in commands():
        behind = BEHIND[kind(command)]
        if behind is None:
            continue
        line = f"{command} {shlex.join(behind)}"
        code, output = run_line(line, checkout)
        assert code == 0, f"{line}\n{output}"
        assert "Traceback" not in output
    assert (checkout / "runs/quickstart/model/model.safetensors").is_file()
    assert (checkout / "runs/my/curves.png").is_file()
    tensorboard(checkout)


def tensorboard(checkout: Path) -> None:
    (command,) = [command for command in commands() if kind(command) == "python -m tensorboard.main"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        ["bash", "-c", f"exec {command} --port={port} --load_fast=false"],
        cwd=checkout, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        address = f"http://127.0.0.1:{port}/data/plugin/scalars/tags"
        deadline, tags = time.monotonic() + 90, {}
        while "loss/validation" not in json.dumps(tags):
            assert time.monotonic() < deadline, tags
            time.sleep(0.5)
            try:
                with urllib.request.urlopen(address, timeout=10) as answer:
                    tags = json.load(answer)
            except OSError:
                continue
    finally:
        process.terminate()
        process.wait(timeout=30)


def test_the_tests_are_run_by_the_readmes_command_and_so_is_ci():
    # scripts/test.sh runs this very test: running it here would not end.
    assert "scripts/test.sh" in commands()
    assert "bash scripts/test.sh" in (ROOT / ".ci/run").read_text()


@pytest.mark.slow
def test_killed_runs_end_as_if_nothing_had_happened():
    # The README's line with fewer kills: twenty take some minutes.
    done = subprocess.run(
        [sys.executable, "scripts/kill_resume.py", "--kills=2", "--steps=400", "--seed=1"],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "DIFFERENT" not in done.stdout and "2 kills" in done.stdout
