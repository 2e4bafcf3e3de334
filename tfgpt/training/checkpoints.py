"""Checkpoints of a run: everything a restart needs, written whole or not at all, by a thread beside the training.

A checkpoint is a directory `step-00001000` of two files: `state.safetensors`, every variable of the training step by
name (weights, optimizer slots, averages, counters), and `state.json`, its SHA-256 and what is no variable (data
fingerprint, settings, best validation loss). The directory is written under another name and renamed when both files
are on the disk, so a directory of that name is whole unless the disk itself fails; the SHA-256 finds that out. There
is no random state to save: batches and dropout masks are functions of the seed and the step.

We write safetensors rather than TensorFlow's own checkpoint format because it is one file, hashed as it stands, without
an object graph: a checkpoint of one device opens on four replicas or on another host.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from tfgpt.common.errors import RunError, UserError
from tfgpt.common.files import (
    clear_write_errors,
    directory_written_beside,
    read_json,
    sha256_of_file,
    write_json,
)

FORMAT = 1
STATE, FACTS = "state.safetensors", "state.json"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk.

    Attributes:
        path: its directory.
        step: the optimizer updates done.
        facts: what is no variable: JSON values under the names that `Checkpoints.save` was given.
    """

    path: Path
    step: int
    facts: dict[str, Any]

    def arrays(self) -> dict[str, np.ndarray]:
        """Every variable's value by name."""
        return safetensors.numpy.load_file(self.path / STATE)


class Checkpoints:
    """The checkpoints of one run directory.

    Args:
        directory: where they are, RUN_DIR/checkpoints.
        kept: how many of the newest stay; older ones go after a new one is whole.
    """

    def __init__(self, directory: str | os.PathLike, kept: int):
        self.directory, self.kept = Path(directory), kept
        self.writer = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self.pending: concurrent.futures.Future | None = None

    def save(self, step: int, variables: Mapping[str, Any], facts: Mapping[str, Any], best: bool = False) -> None:
        """Copies the variables now and writes them in the background; waits only for the write before this one.

        Args:
            step: the optimizer updates done.
            variables: name → variable; `.numpy()` gives the value.
            facts: JSON values to keep beside them.
            best: the lowest validation loss so far: also keep it as `best`, whatever comes later.

        Raises:
            RunError: the write before this one failed (disk full); the line names the last whole checkpoint.
        """
        self.wait()
        # A copy: the training step goes on and may write into the buffer that numpy() shares.
        arrays = {name: np.array(variable.numpy()) for name, variable in variables.items()}
        facts = {**facts, "format": FORMAT, "step": step}
        self.pending = self.writer.submit(self.write, step, arrays, facts, best)

    def wait(self) -> None:
        """Returns when the write in the background is on the disk; raises what it raised."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Waits and ends the thread."""
        try:
            self.wait()
        finally:
            self.writer.shutdown()

    def write(self, step: int, arrays: dict[str, np.ndarray], facts: dict[str, Any], best: bool) -> None:
        """Writes one checkpoint and then removes the surplus ones."""
        path = self.path_of(step)
        try:
            with directory_written_beside(path) as temporary:
                with clear_write_errors(path):
                    save_arrays(arrays, temporary / STATE)
                    size = (temporary / STATE).stat().st_size
                    facts = {**facts, "sha256": sha256_of_file(temporary / STATE), "bytes": size}
                    write_json(temporary / FACTS, facts)
            if best:
                self.keep_as_best(path)
        except (RunError, UserError) as error:
            steps = [known for known in self.steps() if known != step]
            last = f"the last whole checkpoint is {self.path_of(steps[-1])}" if steps else "there is none before it"
            raise RunError(f"{error}; this checkpoint was not written, {last}") from error
        for old in self.steps()[: -self.kept]:
            shutil.rmtree(self.path_of(old), ignore_errors=True)

    def keep_as_best(self, path: Path) -> None:
        """Makes `best` a second name of the checkpoint's files (hard links cost no space; a copy where none can be)."""
        with directory_written_beside(self.directory / "best") as temporary:
            for name in (STATE, FACTS):
                try:
                    os.link(path / name, temporary / name)
                except OSError:
                    shutil.copyfile(path / name, temporary / name)

    def path_of(self, step: int) -> Path:
        """The directory of one step's checkpoint."""
        return self.directory / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """The steps of the checkpoints there are, oldest first."""
        if not self.directory.is_dir():
            return []
        names = (re.fullmatch(r"step-(\d+)", entry.name) for entry in self.directory.iterdir())
        return sorted(int(name[1]) for name in names if name)

    def newest(self, report=print) -> Checkpoint | None:
        """The newest whole checkpoint; a damaged newer one is named by `report` and set aside, never deleted."""
        self.remove_leftovers()
        for step in reversed(self.steps()):
            path = self.path_of(step)
            try:
                return opened(path)
            except UserError as error:
                aside = path.with_name(f"{path.name}.damaged")
                shutil.rmtree(aside, ignore_errors=True)
                with clear_write_errors(aside):
                    os.rename(path, aside)
                report(f"{error}; set aside as {aside.name}, trying the one before it")
        return None

    def best(self) -> Checkpoint | None:
        """The checkpoint of the lowest validation loss, or None."""
        path = self.directory / "best"
        return opened(path) if path.is_dir() else None

    def remove_leftovers(self) -> None:
        """Deletes the temporary directories of a killed process."""
        if self.directory.is_dir():
            for entry in self.directory.iterdir():
                if entry.name.startswith(".") and entry.name.endswith((".tmp", ".old")):
                    shutil.rmtree(entry, ignore_errors=True)


def opened(path: Path) -> Checkpoint:
    """Checks a checkpoint's hash and returns it.

    Raises:
        UserError: it is torn, damaged or of another format; the line names it and says why.
    """
    facts = read_json(path / FACTS)
    if facts.get("format") != FORMAT:
        raise UserError(f"{path}: is of format {facts.get('format')}, this version reads format {FORMAT}")
    state = path / STATE
    if not state.is_file():
        raise UserError(f"{path}: damaged, {STATE} is missing")
    if state.stat().st_size != facts["bytes"]:
        raise UserError(f"{path}: damaged, {STATE} has {state.stat().st_size} bytes instead of {facts['bytes']}")
    if sha256_of_file(state) != facts["sha256"]:
        raise UserError(f"{path}: damaged, the SHA-256 of {STATE} differs from the one in {FACTS}")
    return Checkpoint(path, facts["step"], facts)


def save_arrays(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """Writes arrays as one safetensors file; a full disk raises OSError as every other writer does."""
    try:
        safetensors.numpy.save_file(dict(arrays), path)
    except safetensors.SafetensorError as error:
        # The library wraps the operating system's error; its number is only in the text: "... (os error 28)".
        number = re.search(r"os error (\d+)", str(error))
        if number:
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
        raise
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def assign(arrays: Mapping[str, np.ndarray], variables: Mapping[str, Any], path: Path) -> None:
    """Sets every variable to the checkpoint's value.

    Raises:
        UserError: see `check_fits`. Nothing is set then.
    """
    check_fits(arrays, variables, path)
    for name, variable in variables.items():
        variable.assign(arrays[name])


def check_fits(arrays: Mapping[str, np.ndarray], variables: Mapping[str, Any], path: Path) -> None:
    """Whether the arrays are those of the variables.

    Raises:
        UserError: names or shapes differ; the line names the checkpoint and the first variable.
    """
    missing = sorted(set(variables) - set(arrays))
    surplus = sorted(set(arrays) - set(variables))
    if missing or surplus:
        names = f"lacks {missing[0]}" if missing else f"has {surplus[0]}, which this model lacks"
        raise UserError(f"{path}: belongs to another model or optimizer: it {names}; choose another --run_dir")
    for name, variable in variables.items():
        if tuple(variable.shape) != arrays[name].shape:
            raise UserError(
                f"{path}: {name} has the shape {arrays[name].shape}, this model's is {tuple(variable.shape)}; "
                "choose another --run_dir or the flags it was trained with"
            )
