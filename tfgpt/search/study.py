"""A search: base flags, space and tuner; the configuration of each trial; the record of a search directory.

    SEARCH_DIR/search.json        flags, space, seed, fingerprint
    SEARCH_DIR/trials.csv         one row a trial
    SEARCH_DIR/best.cfg           flags of the best trial, as `train` takes them
    SEARCH_DIR/trials/0007/       a run directory: flags.cfg, metrics.jsonl, checkpoints/, model/; log.txt, result.json
    SEARCH_DIR/keras_tuner/       the tuner's state

No TensorFlow.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfgpt.common.atomic_files import read_json, sha256_of_json, write_json
from tfgpt.common.command_line import Command
from tfgpt.common.errors import SettingError, UserError
from tfgpt.common.output_directories import check_format, make_working_directory
from tfgpt.search.config import SearchConfig
from tfgpt.search.space import Space, flag_defaults, read_space, with_flags
from tfgpt.training.train_config import GROUPS, TrainConfig, default_run_dir

# Writes flag files that `train` reads.
TRAIN = Command("train", "", GROUPS, lambda **_: 0)
# Flags that each trial sets itself, or that only change the output: a search may continue with other values.
FREE_FLAGS = {"run_dir", "resume", "restarts", "preempted_exit_code", "cache_dir", "tfds_data_dir", "tensorboard"} | {
    "sample_prompt", "sample_tokens", "sample_temperature", "histograms", "profile_steps", "log_every",
}  # fmt: skip
OWN_VALUES, SAME_TEXT = "each trial has its own value", "trials must be compared on the same text"
# Flags that cannot be searched, with the reason.
NOT_SEARCHED = {
    **dict.fromkeys(("run_dir", "resume", "restarts", "preempted_exit_code", "validate_every"), OWN_VALUES),
    **dict.fromkeys(("train_text", "validation_text", "validation_fraction", "split", "cache_dir"), SAME_TEXT),
    "objective": SAME_TEXT,
    "max_steps": "trials must train equally long (--max_steps or --trial_tokens)",
    "seed": "the best seed is luck",
}
# The flags of a search that cannot change when it continues.
FIXED_FOR_A_SEARCH = (
    "tuner", "search_objective", "search_seed", "trial_tokens", "trial_validations", "median_stopping_after",
    "hyperband_epochs", "hyperband_factor", "hyperband_iterations",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TrialSpec:
    """The task of a worker.

    Attributes:
        flags: the flags that the trial changes.
        stop_at_step: with Hyperband, the update at which the trial's rung ends; 0: at the end of the training.
        continues: with Hyperband, the trial of the lower rung whose training continues.
    """

    trial_id: str
    flags: dict[str, Any]
    stop_at_step: int = 0
    continues: str | None = None


@dataclasses.dataclass(frozen=True)
class Study:
    """A search. `settings` are the flags of `train` by group, with the fixed ones of the space."""

    settings: dict[str, Any]
    search: SearchConfig
    space: Space
    directory: Path

    def trial_dir(self, trial_id: str) -> Path:
        """Returns the run directory of a trial."""
        return self.directory / "trials" / trial_id

    def result(self, trial_id: str) -> dict[str, Any]:
        """Returns the content of a trial's result.json, NaN as None; empty if the trial has not ended."""
        path = self.trial_dir(trial_id) / "result.json"
        result = read_json(path) if path.is_file() else {}
        return {name: None if isinstance(value, float) and math.isnan(value) else value
                for name, value in result.items()}  # fmt: skip

    def train_config(self, flags: Mapping[str, Any], trial_id: str) -> TrainConfig:
        """Returns the configuration of a trial; searched flags that are not in `flags` have their defaults."""
        initial = flag_defaults(GROUPS)
        absent = {name: initial[name] for name in self.space.columns() if name not in flags}
        settings = with_flags(GROUPS, self.settings, {**absent, **flags})
        steps = self.steps(settings)
        run = dataclasses.replace(
            settings["run"],
            run_dir=str(self.trial_dir(trial_id)), resume="auto", restarts=0, preempted_exit_code=0, max_steps=steps,
        )  # fmt: skip
        logging = dataclasses.replace(settings["logging"], sample_tokens=0, profile_steps=None)
        # With Hyperband a rung ends at a validation.
        hyperband = self.search.tuner == "hyperband"
        validations = self.search.hyperband_epochs if hyperband else self.search.trial_validations
        if validations:
            logging = dataclasses.replace(logging, validate_every=max(1, steps // validations))
        return TrainConfig(**{**settings, "run": run, "logging": logging})

    def trial_spec(self, trial_id: str, values: Mapping[str, Any]) -> TrialSpec:
        """Returns the task for KerasTuner's values; those of Hyperband include epochs and the lower rung's trial."""
        flags = self.space.flags(values)
        if "tuner/epochs" not in values:
            return TrialSpec(trial_id, flags)
        epochs = self.search.hyperband_epochs
        steps = epochs
        with contextlib.suppress(UserError):  # The trial fails with the message.
            steps = self.train_config(flags, trial_id).run.max_steps
        stop_at_step = values["tuner/epochs"] * (steps // epochs)
        return TrialSpec(trial_id, flags, stop_at_step, values.get("tuner/trial_id"))

    def steps(self, settings: Mapping[str, Any]) -> int:
        """Returns the updates of a trial: --max_steps, or as many as --trial_tokens allows with its batch."""
        steps = settings["run"].max_steps
        if self.search.trial_tokens:
            batch = settings["batch"]
            steps = max(1, round(self.search.trial_tokens / (batch.batch_size * batch.sequence_length)))
        if self.search.tuner == "hyperband":
            epochs = self.search.hyperband_epochs
            steps = max(1, round(steps / epochs)) * epochs
        return steps

    def fingerprint(self) -> dict[str, Any]:
        """Returns the settings that cannot change when the search continues."""
        base = {
            name: value
            for part in self.settings.values()
            for name, value in (part if isinstance(part, dict) else part.to_dict()).items()
            if name not in FREE_FLAGS
        }
        if self.search.trial_tokens:
            base.pop("max_steps")
        search = {name: getattr(self.search, name) for name in FIXED_FOR_A_SEARCH}
        return {"flags": base, "search": search, "space": self.space.content}

    def claim(self) -> None:
        """Makes the search directory, or checks that it contains this search."""
        path = self.directory / "search.json"
        settings = self.fingerprint()
        if path.is_file():
            check_format(self.directory, "search")
            earlier = read_json(path)
            if earlier.get("fingerprint") != sha256_of_json(settings):
                raise UserError(
                    f"--search_dir: {self.directory} holds another search ({describe_difference(earlier, settings)}); "
                    "choose another --search_dir, or delete it"
                )
            return
        make_working_directory(self.directory, "search", "search_dir")
        write_json(path, {"fingerprint": sha256_of_json(settings), "space_file": self.space.path, **settings})


def make_study(search: SearchConfig, settings: Mapping[str, Any]) -> Study:
    """Reads the space and checks it with the flags of `train` by group, before TensorFlow is imported."""
    space = read_space(str(search.search_space), GROUPS, settings)
    for name in [*space.columns(), *space.fixed]:
        if name in NOT_SEARCHED:
            raise UserError(f"{space.path}: --{name} cannot be part of a search space: {NOT_SEARCHED[name]}")
    if search.search_objective == "validation_loss" and {"vocabulary_size", "tokenizer"} & set(space.columns()):
        problem = "the loss per token does not compare across tokenizers; use validation_bits_per_byte"
        raise SettingError("search_objective", problem)
    if search.tuner == "hyperband" and search.search_objective in ("tokens_per_second", "peak_memory_bytes"):
        raise SettingError("search_objective", f"{search.search_objective} does not grow with training: no hyperband")
    base = settings["run"].run_dir or default_run_dir(settings["corpus"].train_text)
    directory = Path(search.search_dir or f"{base}-search")
    study = Study(with_flags(GROUPS, dict(settings), space.fixed), search, space, directory)
    # Each value of each parameter, with the first values of the others.
    first = first_values(space)
    study.train_config(space.flags(first), "check")
    conditions = {name for parameter in space.parameters for name, _ in parameter.when}
    for parameter in space.parameters:
        if parameter.name in first and parameter.name not in conditions:
            for value in parameter.tuner_values():
                try:
                    study.train_config(space.flags({**first, parameter.name: value}), "check")
                except UserError as error:
                    raise UserError(f"{space.path}: search.{parameter.name} = {value}: {error}") from error
    return study


def first_values(space: Space) -> dict[str, Any]:
    """Returns the first value of each parameter whose condition holds, in KerasTuner's terms."""
    first: dict[str, Any] = {}
    for parameter in space.parameters:
        if all(first.get(name) in values for name, values in parameter.when):
            first[parameter.name] = parameter.tuner_values()[0]
    return first


def describe_difference(earlier: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    def flat(value: Any, name: str = "") -> dict[str, Any]:
        if not isinstance(value, dict):
            return {name.lstrip("."): value}
        parts = [flat(inner, f"{name}.{key}") for key, inner in value.items()]
        return {key: inner for part in parts for key, inner in part.items()}

    for part in ("space", "search", "flags"):
        before, now = flat(earlier.get(part, {})), flat(settings[part])
        for name in [*before, *now]:
            if before.get(name) != now.get(name):
                label = f"the space's {name}" if part == "space" else f"--{name}"
                return f"{label} was {before.get(name, 'not there')}, is {now.get(name, 'not there')}"
    return "the format changed"
