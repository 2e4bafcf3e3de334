"""Checkpoints of a run, written atomically by a background thread.

A checkpoint is a directory `step-00001000` of two files: `state.safetensors`, every variable of the training step by
name, and `state.json`, its SHA-256 and the values that are not variables (data fingerprint, settings, best validation
loss). The directory is renamed to that name when both files are on the disk, so it is complete unless the disk fails,
which the SHA-256 detects. The newest checkpoint names the best as `best_step`, so that one rename changes both.

There is no random state: batches and dropout masks are functions of the seed and the step. Without TensorFlow's object
graph, a checkpoint of one device opens on four replicas or on another host.
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
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from tfgpt.training.distribution.collectives import HostGroup

FORMAT = 2
STATE, METADATA = "state.safetensors", "state.json"


class DamagedCheckpoint(UserError):
    """A checkpoint is not as it was written; another one may be."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk after `step` optimizer updates, with the `metadata` given to `Checkpoints.save`."""

    path: Path
    step: int
    metadata: dict[str, Any]

    def arrays(self) -> dict[str, np.ndarray]:
        return safetensors.numpy.load_file(self.path / STATE)


class Checkpoints:
    """The checkpoints of one run: the newest `kept` ones, and the best, in RUN_DIR/checkpoints.

    Example:

    >>> import tempfile, types
    >>> folder = tempfile.TemporaryDirectory()
    >>> checkpoints = Checkpoints(folder.name, kept=2)
    >>> checkpoints.save(10, {"scale": types.SimpleNamespace(numpy=lambda: np.float32(3.0))}, {})
    >>> checkpoints.close()
    >>> checkpoints.newest().arrays()["scale"].item()
    3.0
    >>> folder.cleanup()
    """

    def __init__(self, directory: str | os.PathLike, kept: int):
        self.directory, self.kept = Path(directory), kept
        self.writer = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self.pending: concurrent.futures.Future | None = None

    def save(
        self, step: int, variables: Mapping[str, Any], metadata: Mapping[str, Any], best_step: int | None = None
    ) -> None:
        """Copies the variables now and writes them in the background, after the previous write.

        The checkpoint of `best_step` is kept. Raises RunError, naming the last complete one, if that write failed.
        """
        self.wait()
        # numpy() copies, so that training can continue.
        arrays = {name: np.asarray(variable.numpy()) for name, variable in variables.items()}
        metadata = {**metadata, "format": FORMAT, "step": step, "best_step": best_step}
        self.pending = self.writer.submit(self.write, step, arrays, metadata)

    def wait(self) -> None:
        """Waits until the background write is on the disk; raises its error."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        try:
            self.wait()
        finally:
            self.writer.shutdown()

    def write(self, step: int, arrays: dict[str, np.ndarray], metadata: dict[str, Any]) -> None:
        """Writes one checkpoint, then removes all but the newest and the ones that they name as the best."""
        path = self.path_of(step)
        try:
            with atomic_directory(path) as temporary, readable_write_errors(path):
                save_arrays(arrays, temporary / STATE)
                size = (temporary / STATE).stat().st_size
                metadata = {**metadata, "sha256": sha256_of_file(temporary / STATE), "bytes": size}
                write_json(temporary / METADATA, metadata)
        except (RunError, UserError) as error:
            steps = [known for known in self.steps() if known != step]
            last = f"the last complete checkpoint is {self.path_of(steps[-1])}" if steps else "there is none before it"
            raise RunError(f"{error}; this checkpoint was not written, {last}") from error
        steps = self.steps()
        kept = set(steps[-self.kept :])
        for newest in steps[-self.kept :]:
            try:
                kept.add(read_metadata(self.path_of(newest))["best_step"])
            except UserError:
                return  # The best of a damaged one is not known.
        for old in set(steps) - kept:
            shutil.rmtree(self.path_of(old), ignore_errors=True)

    def path_of(self, step: int) -> Path:
        return self.directory / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Returns the steps of the checkpoints, oldest first."""
        if not self.directory.is_dir():
            return []
        names = (re.fullmatch(r"step-(\d+)", entry.name) for entry in self.directory.iterdir())
        return sorted(int(name[1]) for name in names if name)

    def newest(self, log: Callable[[str], None] = print) -> Checkpoint | None:
        """Returns the newest complete checkpoint; logs and sets aside damaged newer ones, never deletes them."""
        if self.directory.is_dir():
            recover_leftovers(self.directory)
        for step in reversed(self.steps()):
            checkpoint = self.open_if_complete(step, log, "trying the one before it")
            if checkpoint is not None:
                return checkpoint
        return None

    def open_if_complete(self, step: int, log: Callable[[str], None], remedy: str) -> Checkpoint | None:
        """Returns the checkpoint of a step, or None if it is missing or damaged; a damaged one is set aside.

        In both cases `log` receives a line that ends with `remedy`. Raises UserError for another format or an
        unreadable file.
        """
        path = self.path_of(step)
        if not path.exists():
            log(f"{path}: is gone; {remedy}")
            return None
        try:
            metadata, state = read_metadata(path), path / STATE
            with readable_read_errors(path):
                size, problem = state.stat().st_size, None
                if size != metadata["bytes"]:
                    problem = f"{STATE} has {size} bytes instead of {metadata['bytes']}"
                elif sha256_of_file(state) != metadata["sha256"]:
                    problem = f"the SHA-256 of {STATE} differs from the one in {METADATA}"
            if problem:
                raise DamagedCheckpoint(f"{path}: damaged, {problem}")
            return Checkpoint(path, metadata["step"], metadata)
        except DamagedCheckpoint as error:
            names = (f"{path.name}.damaged{number or ''}" for number in itertools.count())
            aside = next(free for name in names if not (free := path.with_name(name)).exists())
            with readable_write_errors(aside):
                os.rename(path, aside)
            log(f"{error}; set aside as {aside.name}, {remedy}")
            return None


def restore(
    checkpoints: Checkpoints,
    variables: Mapping[str, Any],
    hosts: HostGroup,
    check: Callable[[Checkpoint], None] = lambda checkpoint: None,
    log: Callable[[str], None] = print,
) -> dict[str, Any] | None:
    """Assigns the newest complete checkpoint to the variables, on every host; returns its metadata, or None.

    The chief reads it and broadcasts it, so that the hosts need no shared disk. Before anything is assigned `check` may
    raise UserError, which is also raised for a checkpoint of another model or optimizer.
    """

    def read() -> tuple[Checkpoint, dict[str, np.ndarray]] | None:
        checkpoint = checkpoints.newest(log)
        if checkpoint is None:
            return None
        check(checkpoint)
        arrays = checkpoint.arrays()
        check_fits(arrays, variables, checkpoint.path)
        return checkpoint, arrays

    found = hosts.run_on_chief(read)
    metadata = hosts.broadcast(found[0].metadata if found else None)
    if metadata is None:
        return None
    for name, array in hosts.broadcast_variables(found[1] if found else None, variables):
        variables[name].assign(array)
    return metadata


def read_metadata(path: Path) -> dict[str, Any]:
    with readable_read_errors(path):
        text = (path / METADATA).read_text(encoding="utf-8")
    try:
        metadata = json.loads(text)
    except ValueError as error:
        raise DamagedCheckpoint(f"{path}: damaged, {METADATA} is not valid JSON ({error})") from error
    names = {"format", "step", "best_step", "bytes", "sha256"}
    if isinstance(metadata, dict) and metadata.get("format", FORMAT) != FORMAT:
        raise UserError(
            f"{path}: is of format {metadata['format']}, this version of tfgpt reads format {FORMAT}; choose another "
            "--run_dir, or continue with the version that wrote it"
        )
    if not isinstance(metadata, dict) or not names <= set(metadata):
        raise DamagedCheckpoint(f"{path}: damaged, {METADATA} does not hold {', '.join(sorted(names))}")
    return metadata


@contextlib.contextmanager
def readable_read_errors(path: Path) -> Iterator[None]:
    """Tells a file that is missing or that the disk cannot read (damage) from one without read permission."""
    try:
        yield
    except OSError as error:
        name, reason = Path(error.filename or path).name, error.strerror or str(error)
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO):
            raise DamagedCheckpoint(f"{path}: damaged, {name} cannot be read ({reason})") from error
        raise UserError(f"{path}: {name} cannot be read ({reason}); make it readable and run again") from error


def save_arrays(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """Writes and syncs a safetensors file. The library's own writer hides the errno of an error in a text."""
    write_safetensors(
        path, [(name, array.shape, array.dtype, functools.partial(np.asarray, array)) for name, array in arrays.items()]
    )


def assign(arrays: Mapping[str, np.ndarray], variables: Mapping[str, Any], path: Path) -> None:
    """Assigns a checkpoint's arrays to the variables, or raises UserError before if they do not fit."""
    check_fits(arrays, variables, path)
    for name, variable in variables.items():
        variable.assign(arrays[name])


def check_fits(arrays: Mapping[str, np.ndarray], variables: Mapping[str, Any], path: Path) -> None:
    """Raises UserError if names or shapes of arrays and variables differ; the message names the first variable."""
    missing, surplus = sorted(set(variables) - set(arrays)), sorted(set(arrays) - set(variables))
    if missing or surplus:
        names = f"lacks {missing[0]}" if missing else f"has {surplus[0]}, which this model lacks"
        raise UserError(f"{path}: belongs to another model or optimizer: it {names}; choose another --run_dir")
    for name, variable in variables.items():
        if tuple(variable.shape) != arrays[name].shape:
            raise UserError(
                f"{path}: {name} has the shape {arrays[name].shape}, this model's is {tuple(variable.shape)}; "
                "choose another --run_dir or the flags it was trained with"
            )
