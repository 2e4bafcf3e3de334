"""Searches as a user starts them, but as forks of one process, which saves importing TensorFlow for each.

Their trials are in spawned processes, as always.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, TEXT

TINY = """--tokenizer=bytes --preset=tiny --num_layers=1 --num_query_heads=2 --num_key_value_heads=1 --hidden_dim=16
--head_dim=8 --intermediate_dim=32 --sequence_length=16 --batch_size=4 --max_steps=30 --validate_every=10 --log_every=5
--compile=graph --tensorboard=false --warmup_steps=5 --checkpoint_every=5 --strategy=one""".split()
SPACE = """
[search.learning_rate]
type = "float"
min = 1e-3
max = 1e-1
scale = "log"
"""


@dataclasses.dataclass
class Running:
    """A command that runs."""

    log: Path

    @property
    def pid(self) -> int:
        wait_for(lambda: Path(f"{self.log}.pid").is_file() and Path(f"{self.log}.pid").read_text())
        return int(Path(f"{self.log}.pid").read_text())

    def kill(self) -> None:
        """SIGKILL to the launcher alone: the others must end by themselves."""
        os.kill(self.pid, signal.SIGKILL)
        self.ended()

    def ended(self, timeout: float = 240.0) -> int:
        code = Path(f"{self.log}.code")
        wait_for(lambda: code.is_file() and code.read_text(), timeout, self.log)
        return int(code.read_text())

    @property
    def said(self) -> str:
        return self.log.read_text() if self.log.is_file() else ""


def wait_for(condition: Callable[[], object], timeout: float = 240.0, log: Path | None = None) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, log.read_text() if log and log.is_file() else "nothing was said"
        time.sleep(0.02)


Start = Callable[..., Running]


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Starts `python -m tfgpt.MODULE ARGUMENTS`."""
    folder = tmp_path_factory.mktemp("commands")
    errors = open(folder / "errors.txt", "w")  # noqa: SIM115
    nursery = subprocess.Popen(
        [sys.executable, "-m", "tests.search.nursery"], cwd=ROOT, stdin=subprocess.PIPE, stderr=errors, text=True
    )
    count = 0

    def begin(module: str, *arguments: str | Path, environment: dict | None = None, file_size: int = 0) -> Running:
        nonlocal count
        count += 1
        log = folder / f"{count}.txt"
        order = {
            "module": module,
            "arguments": [str(argument) for argument in arguments],
            "log": str(log),
            "environment": environment or {},
            "file_size": file_size,
        }
        assert nursery.stdin is not None
        nursery.stdin.write(json.dumps(order) + "\n")
        nursery.stdin.flush()
        return Running(log)

    yield begin
    nursery.stdin.close()
    nursery.wait(timeout=60)


@pytest.fixture(scope="session")
def story(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("search_text") / "story.txt"
    path.write_text("".join(f"Chapter {number}.\n{TEXT}" for number in range(60)), encoding="utf-8")
    return path


@pytest.fixture
def arguments(story: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """The flags of a tiny search in tmp_path/NAME."""

    def of(name: str, *more: str, space: str = SPACE) -> list[str]:
        path = tmp_path / "space.toml"
        path.write_text(space, encoding="utf-8")
        return [f"--train_text={story}", *TINY, f"--search_space={path}", f"--search_dir={tmp_path / name}", *more]

    return of


def table(directory: Path) -> list[dict[str, str]]:
    """The rows of trials.csv."""
    with open(directory / "trials.csv", newline="") as file:
        return list(csv.DictReader(file))


TIMES = ("tokens_per_second", "peak_memory_bytes", "seconds")


def timeless(directory: Path) -> list[dict[str, str]]:
    """The rows without what differs from run to run."""
    return [{name: value for name, value in row.items() if name not in TIMES} for row in table(directory)]
