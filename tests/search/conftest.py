"""Searches as a user starts them. Their trials run in spawned processes, as always."""

import csv
import importlib
import itertools
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, TEXT
from tfgpt.common.standard_streams import redirect_output

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


class Running:
    def __init__(self, log: Path, process: Any):
        self.log, self.process = log, process

    def kill(self) -> None:
        """Sends SIGKILL to the search only: its trial processes must end by themselves."""
        self.process.kill()
        self.ended()

    def ended(self) -> int:
        self.process.join(240)
        assert self.process.exitcode is not None, self.output
        return self.process.exitcode

    @property
    def output(self) -> str:
        return self.log.read_text() if self.log.is_file() else ""


def wait_for(condition: Callable[[], object], running: Running) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline, running.output
        time.sleep(0.02)


Start = Callable[..., Running]

# For a fork server: commands start as forks of a process that has imported TensorFlow.
PRELOADED = ["tfgpt.train", "tfgpt.training.run", "tfgpt.diagnosis.run_checks", "tfgpt.search.cluster",
             "tfgpt.search.oracle", "tfgpt.search.report", "tfgpt.search.seed_comparison", "tfgpt.search.worker_pool",
             "plotly.graph_objects"]  # fmt: skip


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Starts `python -m tfgpt.MODULE ARGUMENTS` as a fork of a process that has imported TensorFlow."""
    folder, numbers = tmp_path_factory.mktemp("commands"), itertools.count()
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(PRELOADED)

    def begin(module: str, *arguments: str | Path, environment: dict | None = None, file_size: int = 0) -> Running:
        log = folder / f"{next(numbers)}.txt"
        order = module, [str(argument) for argument in arguments], log, environment or {}, file_size
        process = forks.Process(target=run_command, args=order)
        process.start()
        return Running(log, process)

    return begin


def run_command(
    module: str, arguments: list[str], log: Path, environment: dict[str, str], file_size: int = 0, folder: Path = ROOT
) -> None:
    os.setsid()
    os.chdir(folder)
    redirect_output(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644))
    os.environ.update(environment)
    if file_size:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    sys.exit(importlib.import_module(f"tfgpt.{module}").main(arguments))


@pytest.fixture(scope="session")
def story(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("search_text") / "story.txt"
    path.write_text("".join(f"Chapter {number}.\n{TEXT}" for number in range(60)), encoding="utf-8")
    return path


@pytest.fixture
def arguments(story: Path, tmp_path: Path) -> Callable[..., list[str]]:
    def of(name: str, *more: str, space: str = SPACE) -> list[str]:
        path = tmp_path / "space.toml"
        path.write_text(space, encoding="utf-8")
        return [f"--train_text={story}", *TINY, f"--search_space={path}", f"--search_dir={tmp_path / name}", *more]

    return of


def table(directory: Path) -> list[dict[str, str]]:
    with open(directory / "trials.csv", newline="") as file:
        return list(csv.DictReader(file))
