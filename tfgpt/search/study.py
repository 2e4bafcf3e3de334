"""What a search is: base flags, space and tuner; the recipe of each trial; and the record that ties a directory to it.

    SEARCH_DIR/search.json        flags, space, seed, fingerprint
    SEARCH_DIR/trials.csv         one row a trial
    SEARCH_DIR/best.cfg           flags of the best trial, as `train` takes them
    SEARCH_DIR/trials/0007/       a run directory: flags.cfg, metrics.jsonl, checkpoints/, model/; log.txt, result.json
    SEARCH_DIR/keras_tuner/       the tuner's own state

No TensorFlow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfgpt.common.atomic_files import read_json, sha256_of_json, write_json
from tfgpt.common.command_line import Command
from tfgpt.common.errors import SettingError, UserError
from tfgpt.common.output_directories import check_format, make_working_directory
from tfgpt.search.config import SearchConfig
from tfgpt.search.space import Space, defaults, read_space, with_flags
from tfgpt.training.train_config import GROUPS, TrainConfig, default_run_dir

# Writes flag files that `train` reads.
TRAIN = Command("train", "", GROUPS, lambda **_: 0)
# Flags that each trial sets for itself, or that only say what is printed: a search may go on with others.
FREE_FLAGS = {"run_dir", "resume", "restarts", "preempted_exit_code", "cache_dir", "tfds_data_dir", "tensorboard"} | {
    "sample_prompt", "sample_tokens", "sample_temperature", "histograms", "profile_steps", "log_every",
}  # fmt: skip
# What may not be searched: a trial sets it itself, or trials could not be compared.
NOT_SEARCHED = {
    "run_dir", "resume", "restarts", "preempted_exit_code", "max_steps", "train_text", "validation_text",
    "validation_fraction", "split", "cache_dir", "seed", "validate_every", "objective",
}  # fmt: skip
# What makes a search what it is, besides flags and space.
FIXED_FOR_A_SEARCH = (
    "tuner", "search_objective", "search_seed", "trial_tokens", "trial_validations", "median_stopping_after",
    "hyperband_epochs", "hyperband_factor", "hyperband_iterations",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TrialSpec:
    """What a worker is to train.

    Attributes:
        trial_id: "0007".
        flags: what the trial changes.
        stop_at_step: with Hyperband, the update at which the trial's rung ends; 0: at the end of the training.
        continues: with Hyperband, the trial of the lower rung whose training goes on.
    """

    trial_id: str
    flags: dict[str, Any]
    stop_at_step: int = 0
    continues: str | None = None


@dataclasses.dataclass(frozen=True)
class Study:
    """A search.

    Attributes:
        settings: the flags of `train` by group, the space's fixed ones applied.
        search: the flags of the search.
        space: what is varied.
        directory: SEARCH_DIR.
    """

    settings: dict[str, Any]
    search: SearchConfig
    space: Space
    directory: Path

    def trial_dir(self, trial_id: str) -> Path:
        """A trial's run directory."""
        return self.directory / "trials" / trial_id

    def recipe(self, flags: Mapping[str, Any], trial_id: str) -> TrainConfig:
        """The training run of a trial.

        Flags that are searched but do not count in this trial have their defaults.

        Raises:
            UserError: the flags do not go together.
        """
        initial = defaults(GROUPS)
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

    def steps(self, settings: Mapping[str, Any]) -> int:
        """Updates of a trial: --max_steps, or what --trial_tokens comes to with the trial's batch."""
        steps = settings["run"].max_steps
        if self.search.trial_tokens:
            batch = settings["batch"]
            steps = max(1, round(self.search.trial_tokens / (batch.batch_size * batch.sequence_length)))
        if self.search.tuner == "hyperband":
            epochs = self.search.hyperband_epochs
            steps = max(1, round(steps / epochs)) * epochs
        return steps

    def fingerprint(self) -> dict[str, Any]:
        """What must be the same when the search goes on."""
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
        """Makes the directory this search's own, or sees that it is.

        Raises:
            UserError: it holds another search or other files, or cannot be written.
            RunError: the disk is full.
        """
        path = self.directory / "search.json"
        mine = self.fingerprint()
        if path.is_file():
            check_format(self.directory, "search")
            theirs = read_json(path)
            if theirs.get("fingerprint") != sha256_of_json(mine):
                raise UserError(
                    f"--search_dir: {self.directory} holds another search ({difference(theirs, mine)}); "
                    "choose another --search_dir, or delete it"
                )
            return
        make_working_directory(self.directory, "search", "search_dir")
        write_json(path, {"fingerprint": sha256_of_json(mine), "space_file": self.space.path, **mine})


def difference(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> str:
    """The first thing in which two searches differ, in words."""

    def flat(value: Any, name: str = "") -> dict[str, Any]:
        if not isinstance(value, dict):
            return {name: value}
        found: dict[str, Any] = {}
        for key, inner in value.items():
            found.update(flat(inner, f"{name}.{key}" if name else str(key)))
        return found

    for part in ("space", "search", "flags"):
        one, other = flat(theirs.get(part, {})), flat(mine[part])
        for name in [*one, *other]:
            if one.get(name) != other.get(name):
                label = f"the space's {name}" if part == "space" else f"--{name}"
                return f"{label} was {one.get(name, 'not there')}, is {other.get(name, 'not there')}"
    return "the format changed"


def make_study(search: SearchConfig, settings: Mapping[str, Any]) -> Study:
    """Reads the space and checks everything that can be checked before TensorFlow is imported.

    Args:
        search: the flags of the search.
        settings: the flags of `train` by group.

    Raises:
        UserError: flags or space are at fault.
    """
    space = read_space(str(search.search_space), GROUPS, settings)
    for name in [*space.columns(), *space.fixed]:
        if name in NOT_SEARCHED:
            raise UserError(f"{space.path}: --{name} cannot be part of a search space: {why_not(name)}")
    searched = space.columns()
    if search.search_objective == "validation_loss" and {"vocabulary_size", "tokenizer"} & set(searched):
        raise SettingError(
            "search_objective",
            "the loss per token does not compare across tokenizers; use validation_bits_per_byte",
        )
    if search.tuner == "hyperband" and search.search_objective in ("tokens_per_second", "peak_memory_bytes"):
        raise SettingError("search_objective", f"{search.search_objective} does not grow with training: no hyperband")
    directory = (
        search.search_dir or f"{settings['run'].run_dir or default_run_dir(settings['corpus'].train_text)}-search"
    )
    plan = Study(with_flags(GROUPS, dict(settings), space.fixed), search, space, Path(directory))
    check_corners(plan)
    return plan


def why_not(name: str) -> str:
    """Why a flag of NOT_SEARCHED is one."""
    if name == "max_steps":
        return "trials must train equally long (--max_steps or --trial_tokens)"
    if name in ("run_dir", "resume", "restarts", "preempted_exit_code", "validate_every"):
        return "every trial has its own"
    if name == "seed":
        return "the best seed is luck"
    return "trials must be judged by the same text"


def check_corners(plan: Study) -> None:
    """Builds the recipe with each value of each parameter by itself, the others at their first values.

    Raises:
        UserError: a value that the flags refuse even then.
    """
    first = first_values(plan.space)
    plan.recipe(plan.space.flags(first), "check")
    for parameter in plan.space.parameters:
        if parameter.name not in first or any(
            parameter.name == name for p in plan.space.parameters for name, _ in p.when
        ):
            continue
        for label in parameter.labels() if parameter.kind == "choice" else parameter.examples():
            try:
                plan.recipe(plan.space.flags({**first, parameter.name: label}), "check")
            except UserError as error:
                raise UserError(f"{plan.space.path}: search.{parameter.name} = {label}: {error}") from error


def first_values(space: Space) -> dict[str, Any]:
    """The first value of each parameter that counts then, as a tuner would choose them."""
    first: dict[str, Any] = {}
    for parameter in space.parameters:
        labels = parameter.labels() if parameter.kind == "choice" else parameter.examples()
        if all(first.get(name) in values for name, values in parameter.when):
            first[parameter.name] = labels[0]
    return first
