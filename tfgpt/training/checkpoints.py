"""Checkpoints of a run: everything a restart needs, written whole or not at all, by a thread beside the training.

A checkpoint is a directory `step-00001000` of two files: `state.safetensors`, every variable of the training step by
name (weights, optimizer slots, averages, counters), and `state.json`, its SHA-256 and what is no variable (data
fingerprint, settings, best validation loss). The directory is written under another name and renamed when both files
are on the disk, so a directory of that name is whole unless the disk itself fails; the SHA-256 finds that out. There
is no random state to save: batches and dropout masks are functions of the seed and the step.

The best checkpoint is the one whose step the newest one names as `best_step`: it stays in its place when older ones are
removed. One rename makes both known, so they cannot contradict each other, whenever the process is killed.

We write safetensors rather than TensorFlow's own checkpoint format because it is one file, hashed as it stands, without
an object graph: a checkpoint of one device opens on four replicas or on another host.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import errno
import functools
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from tfgpt.common.atomic_files import (
    atomic_directory,
    readable_write_errors,
    recover_leftovers,
    sha256_of_file,
    write_json,
)
from tfgpt.common.errors import RunError, UserError
from tfgpt.model.checkpoints.safetensors_file import write_safetensors

FORMAT = 2
STATE, FACTS = "state.safetensors", "state.json"


class DamagedCheckpoint(UserError):
    """A checkpoint is not as it was written; another one may be."""


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

    def save(
        self, step: int, variables: Mapping[str, Any], facts: Mapping[str, Any], best_step: int | None = None
    ) -> None:
        """Copies the variables now and writes them in the background; waits only for the write before this one.

        Args:
            step: the optimizer updates done.
            variables: name → variable; `.numpy()` gives the value.
            facts: JSON values to keep beside them.
            best_step: the step of the lowest validation loss so far: its checkpoint stays, whatever comes later.

        Raises:
            RunError: the write before this one failed (disk full); the line names the last whole checkpoint.
        """
        self.wait()
        # numpy() copies, so the training step may go on.
        arrays = {name: np.asarray(variable.numpy()) for name, variable in variables.items()}
        facts = {**facts, "format": FORMAT, "step": step, "best_step": best_step}
        self.pending = self.writer.submit(self.write, step, arrays, facts)

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

    def write(self, step: int, arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
        """Writes one checkpoint and then removes the surplus ones."""
        path = self.path_of(step)
        try:
            with atomic_directory(path) as temporary:
                with readable_write_errors(path):
                    save_arrays(arrays, temporary / STATE)
                    size = (temporary / STATE).stat().st_size
                    facts = {**facts, "sha256": sha256_of_file(temporary / STATE), "bytes": size}
                    write_json(temporary / FACTS, facts)
        except (RunError, UserError) as error:
            steps = [known for known in self.steps() if known != step]
            last = f"the last whole checkpoint is {self.path_of(steps[-1])}" if steps else "there is none before it"
            raise RunError(f"{error}; this checkpoint was not written, {last}") from error
        self.remove_surplus()

    def remove_surplus(self) -> None:
        """Removes all but the newest checkpoints and what each of them names as the best."""
        steps = self.steps()
        kept = set(steps[-self.kept :])
        for step in steps[-self.kept :]:
            try:
                kept.add(read_facts(self.path_of(step))["best_step"])
            except UserError:
                return  # What a damaged one would keep is not known.
        for step in steps:
            if step not in kept:
                shutil.rmtree(self.path_of(step), ignore_errors=True)

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
        """The newest whole checkpoint; a damaged newer one is named by `report` and set aside, never deleted.

        Raises:
            UserError: it is of another format, or may not be read.
        """
        if self.directory.is_dir():
            recover_leftovers(self.directory)
        for step in reversed(self.steps()):
            checkpoint = self.whole(step, report, "trying the one before it")
            if checkpoint is not None:
                return checkpoint
        return None

    def whole(self, step: int, report: Callable[[str], None], remedy: str) -> Checkpoint | None:
        """The checkpoint of a step, or None: it is gone or damaged, and set aside; `report` is told, with the remedy.

        Raises:
            UserError: as `newest`.
        """
        path = self.path_of(step)
        if not path.exists():
            report(f"{path}: is gone; {remedy}")
            return None
        try:
            return opened(path)
        except DamagedCheckpoint as error:
            names = (f"{path.name}.damaged{number or ''}" for number in itertools.count())
            aside = next(free for name in names if not (free := path.with_name(name)).exists())
            with readable_write_errors(aside):
                os.rename(path, aside)
            report(f"{error}; set aside as {aside.name}, {remedy}")
            return None


def read_facts(path: Path) -> dict[str, Any]:
    """A checkpoint's JSON values.

    Raises:
        DamagedCheckpoint: they are missing or unreadable.
        UserError: they are of another format, or may not be read.
    """
    with clear_read_errors(path):
        text = (path / FACTS).read_text(encoding="utf-8")
    try:
        facts = json.loads(text)
    except ValueError as error:
        raise DamagedCheckpoint(f"{path}: damaged, {FACTS} cannot be read as JSON ({error})") from error
    names = {"format", "step", "best_step", "bytes", "sha256"}
    if not isinstance(facts, dict) or "format" not in facts or (facts["format"] == FORMAT and not names <= set(facts)):
        raise DamagedCheckpoint(f"{path}: damaged, {FACTS} does not hold {', '.join(sorted(names))}")
    if facts["format"] != FORMAT:
        raise UserError(
            f"{path}: is of format {facts['format']}, this version of tfgpt reads format {FORMAT}; choose another "
            "--run_dir, or go on with the version that wrote it"
        )
    return facts


def opened(path: Path) -> Checkpoint:
    """Checks a checkpoint's hash and returns it.

    Raises:
        DamagedCheckpoint: it is torn or damaged; the line names it and says why.
        UserError: it is of another format, or may not be read.
    """
    facts, state = read_facts(path), path / STATE
    with clear_read_errors(path):
        size = state.stat().st_size
        if size != facts["bytes"]:
            raise DamagedCheckpoint(f"{path}: damaged, {STATE} has {size} bytes instead of {facts['bytes']}")
        if sha256_of_file(state) != facts["sha256"]:
            raise DamagedCheckpoint(f"{path}: damaged, the SHA-256 of {STATE} differs from the one in {FACTS}")
    return Checkpoint(path, facts["step"], facts)


@contextlib.contextmanager
def clear_read_errors(path: Path) -> Iterator[None]:
    """Tells a file that is gone or that the disk cannot read (damage) from one that may not be read at the moment."""
    try:
        yield
    except OSError as error:
        name, reason = Path(error.filename or path).name, error.strerror or str(error)
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO):
            raise DamagedCheckpoint(f"{path}: damaged, {name} cannot be read ({reason})") from error
        raise UserError(f"{path}: {name} cannot be read ({reason}); make it readable and run again") from error


def save_arrays(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """Writes arrays as one safetensors file, on the disk when this returns.

    Not by the safetensors library, which hides the number of the operating system's error in a text.
    """
    write_safetensors(
        path, [(name, array.shape, array.dtype, functools.partial(np.asarray, array)) for name, array in arrays.items()]
    )


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
