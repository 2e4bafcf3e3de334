"""All settings of a training run in one object, checked before TensorFlow is imported. No TensorFlow."""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path
from typing import Any, ClassVar, cast

from tfgpt.common.errors import SettingError, UserError
from tfgpt.common.flags import Group, Overrides
from tfgpt.common.settings import Settings, setting
from tfgpt.conversion.cached_conversion import model_directory
from tfgpt.corpus.config import CorpusConfig
from tfgpt.model import presets
from tfgpt.model.config import DecoderConfig
from tfgpt.model.lora import LoraConfig
from tfgpt.model.maximal_update import ParametrizationConfig, with_initial_weights
from tfgpt.pipeline.config import AugmentationConfig, BatchConfig, MixtureConfig
from tfgpt.tokenization.config import TokenizerConfig
from tfgpt.training.config import (
    LoggingConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    StepConfig,
    StrategyConfig,
    steps_or_minutes,
)
from tfgpt.training.objective_config import NEED_INIT_FROM, ObjectiveConfig, PreferenceConfig, RewardConfig


@dataclasses.dataclass(frozen=True)
class PresetConfig(Settings):
    """The named shape that the model's settings start from."""

    title: ClassVar[str] = "Model size"

    preset: str = setting(
        "tiny", "The decoder's shape; the flags under Model change parts of it.", choices=tuple(presets.PRESETS)
    )


# Flags that must stay for a checkpoint to be usable: its weights or its data position depend on them.
FIXED_FOR_A_RUN = (
    "objective",
    "sequence_length",
    "batch_size",
    "document_masking",
    "seed",
    "optimizer",
    "validation_fraction",
    "split",
    "preset",
    "parametrization",
    "base_hidden_dim",
    "mixture",
    "mixture_temperature",
    *(field.name for field in dataclasses.fields(AugmentationConfig)),
    "lora_rank",
    "lora_alpha",
    "lora_target_modules",
    "base_weights",
)
# Flags whose change is not logged: they only say where to write or what to print.
NEVER_MENTIONED = {
    field.name for group in (RunConfig, LoggingConfig, CorpusConfig) for field in dataclasses.fields(group)
}


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The settings of a training run.

    Attributes:
        model: decoder fields that differ from the preset's.

    Example:

    >>> config = TrainConfig(corpus=CorpusConfig(train_text=("stories/*.txt",)))
    >>> str(config.run_dir), config.decoder_config(vocabulary_size=512).max_sequence_length
    ('runs/stories', 256)
    """

    corpus: CorpusConfig = dataclasses.field(default_factory=CorpusConfig)
    tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)
    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
    preset: PresetConfig = dataclasses.field(default_factory=PresetConfig)
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    parametrization: ParametrizationConfig = dataclasses.field(default_factory=ParametrizationConfig)
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)
    preference: PreferenceConfig = dataclasses.field(default_factory=PreferenceConfig)
    reward: RewardConfig = dataclasses.field(default_factory=RewardConfig)
    batch: BatchConfig = dataclasses.field(default_factory=BatchConfig)
    mixture: MixtureConfig = dataclasses.field(default_factory=MixtureConfig)
    augmentation: AugmentationConfig = dataclasses.field(default_factory=AugmentationConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    step: StepConfig = dataclasses.field(default_factory=StepConfig)
    strategy: StrategyConfig = dataclasses.field(default_factory=StrategyConfig)
    run: RunConfig = dataclasses.field(default_factory=RunConfig)
    logging: LoggingConfig = dataclasses.field(default_factory=LoggingConfig)

    def __post_init__(self) -> None:
        if self.run.run_dir is None:
            run = dataclasses.replace(self.run, run_dir=default_run_dir(self.corpus.train_text))
            object.__setattr__(self, "run", run)
        self.check()

    def check(self) -> None:
        if not self.corpus.train_text:
            raise SettingError("train_text", "is needed: a file, a folder, a glob, tfds:… or sample:…")
        if not self.corpus.validation_text and self.corpus.validation_fraction == 0:
            raise SettingError("validation_fraction", "must not be 0 without --validation_text: a run validates")
        given = len(self.mixture.mixture)
        if given and given != len(self.corpus.train_text):
            raise SettingError("mixture", f"has {given} weights for {len(self.corpus.train_text)} --train_text")
        if self.batch.batch_size % self.step.gradient_accumulation_steps:
            raise SettingError(
                "gradient_accumulation_steps",
                f"{self.step.gradient_accumulation_steps} does not divide --batch_size={self.batch.batch_size}",
            )
        if self.optimizer.optimizer == "adafactor" and self.parametrization.parametrization == "maximal_update":
            raise SettingError("parametrization", "maximal_update is for --optimizer=adamw, muon or lion")
        objective = self.objective.objective
        if objective in NEED_INIT_FROM and self.run.init_from is None:
            raise SettingError("objective", f"{objective} starts from a trained model: name it with --init_from")
        if objective == "ipo" and self.preference.preference_beta == 0:
            raise SettingError("preference_beta", "must be above 0 for --objective=ipo, which divides by it")
        if objective == "grpo":
            self.check_rollouts()
        if self.lora.lora_rank and self.run.init_from is None:
            raise SettingError("lora_rank", "adapts a trained model: name it with --init_from")
        if self.run.init_from is None:
            # Any vocabulary size shows whether the shapes fit; the real one comes with the tokenizer.
            config = self.decoder_config(vocabulary_size=1024)
        else:
            config = self.initial_config()
            if self.initial_model.resolve().is_relative_to(self.run_dir.resolve()):
                problem = f"{self.run_dir} is the run that --init_from starts from, whose model would be replaced"
                raise SettingError("run_dir", f"{problem}; choose another one")
        if self.batch.sequence_length > config.max_sequence_length:
            raise SettingError(
                "sequence_length",
                f"{self.batch.sequence_length} is longer than the model's positions, "
                f"--max_sequence_length={config.max_sequence_length}",
            )

    def check_rollouts(self) -> None:
        """Raises SettingError unless groups and periods divide the rollouts of grpo evenly."""
        length, answers = self.reward.updates_per_rollout, self.batch.batch_size * self.reward.updates_per_rollout
        if answers % self.reward.group_size:
            raise SettingError(
                "group_size",
                f"{self.reward.group_size} does not divide the {answers} answers of a rollout (--batch_size)",
            )
        if self.reward.max_completion_length > self.batch.sequence_length:
            raise SettingError(
                "max_completion_length",
                f"{self.reward.max_completion_length} leave no room for a prompt in --sequence_length="
                f"{self.batch.sequence_length}",
            )
        periods = {"log_every": self.logging.log_every, "validate_every": self.logging.validate_every}
        periods["checkpoint_every"] = steps_or_minutes(self.run.checkpoint_every)[0] or 0
        for name, period in periods.items():
            if period % length:
                raise SettingError(name, f"{period} is not a multiple of --updates_per_rollout={length}")

    def cautions(self) -> list[str]:
        """Returns a line for each setting that works but is hardly intended."""
        warmup, steps, highest = self.schedule.warmup_steps, self.run.max_steps, self.optimizer.learning_rate
        if warmup < steps:
            return []
        reached = steps / (warmup + 1)
        return [
            f"Warm-up: {warmup:,} updates (--warmup_steps) of a run of {steps:,}: the learning rate reaches "
            f"only {reached * highest:.2g}, {reached:.1%} of --learning_rate"
        ]

    def decoder_config(self, vocabulary_size: int) -> DecoderConfig:
        """Returns the decoder's configuration for a tokenizer of `vocabulary_size` ids."""
        if self.run.init_from is not None:
            config = self.initial_config()
            if vocabulary_size > config.vocabulary_size:
                raise UserError(
                    f"--init_from: {self.run.init_from} has {config.vocabulary_size} ids, the tokenizer "
                    f"{vocabulary_size}; leave --tokenizer out to use the model's own"
                )
            return config
        overrides = {"max_sequence_length": self.batch.sequence_length, **self.model}
        config = presets.resolve(self.preset.preset, vocabulary_size, overrides)
        return with_initial_weights(config, self.parametrization)

    def initial_config(self) -> DecoderConfig:
        """Returns the configuration of --init_from's model, with the overrides that do not change its weights."""
        from tfgpt.model.checkpoints.huggingface import load_config

        for name in self.model:
            if name not in ("dropout", "rematerialize"):
                raise SettingError(name, "cannot change together with --init_from; only dropout and rematerialize can")
        return dataclasses.replace(load_config(self.initial_model), **self.model)

    @functools.cached_property
    def initial_model(self) -> Path:
        """The directory of --init_from's model or adapter; other formats are converted into the cache."""
        return model_directory(str(self.run.init_from), "init_from", self.corpus.cache_dir)

    def tokenizer_config(self) -> TokenizerConfig:
        """Returns the tokenizer's settings; with --init_from and no --tokenizer, those of the model's tokenizer."""
        if self.run.init_from is None or self.tokenizer.tokenizer != TokenizerConfig().tokenizer:
            return self.tokenizer
        return dataclasses.replace(self.tokenizer, tokenizer=str(self.initial_model))

    @property
    def run_dir(self) -> Path:
        return Path(str(self.run.run_dir)).expanduser()

    def settings(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def flags(self) -> dict[str, Any]:
        flat: dict[str, Any] = {}
        for part in self.settings().values():
            flat.update(part if isinstance(part, dict) else part.to_dict())
        return flat

    def changes(self, earlier: dict[str, Any]) -> list[str]:
        """Returns a phrase for each flag that differs from a checkpoint's; raises UserError if it depends on one."""
        now = self.flags()
        for name in FIXED_FOR_A_RUN:
            if name in earlier and earlier[name] != now.get(name):
                raise UserError(
                    f"--{name}: is {now.get(name)}, but the run in {self.run_dir} began with {earlier[name]}; "
                    f"continue with --{name}={earlier[name]} or choose another --run_dir"
                )
        names = sorted((set(earlier) | set(now)) - NEVER_MENTIONED | {"max_steps"})
        return [
            f"--{name} was {earlier.get(name)}, is {now.get(name)}"
            for name in names
            if earlier.get(name) != now.get(name)
        ]


# max_sequence_length follows --sequence_length unless it is given; vocabulary_size is the tokenizer's.
MODEL_FLAGS = Overrides(DecoderConfig, "model", exclude=("vocabulary_size",))
GROUPS: tuple[Group, ...] = tuple(
    MODEL_FLAGS if field.name == "model" else cast(Group, field.default_factory)
    for field in dataclasses.fields(TrainConfig)
)


def default_run_dir(train_text: tuple[str, ...]) -> str:
    """Returns runs/NAME, with NAME from the first text: `my/*.txt` → runs/my, `sample:chitchat` → runs/chitchat."""
    first = train_text[0] if train_text else "default"
    if first.startswith(("sample:", "tfds:")):
        name = first.split(":", 1)[1].split("#")[0]
    else:
        plain = [part for part in Path(first).parts if not re.search(r"[*?\[]", part) and part not in ("/", "..")]
        name = plain[-1].split(".")[0] if plain and plain[-1].split(".")[0] else "text"
    return f"runs/{re.sub(r'[^A-Za-z0-9_-]+', '_', name).strip('_') or 'text'}"


def relocate_run_dir(path: str, lines: list[str]) -> list[str]:
    """Adds --run_dir to the lines of a moved run's flag file, so that a moved or copied run continues where it is.

    That file is a flags.cfg next to the metrics or checkpoints of a run, or the best.cfg next to the search.json of a
    search, whose run directory is best/. The lines of other files are returned as they are.
    """
    file = Path(path).expanduser()
    folder = file.parent
    if file.name == "flags.cfg" and any((folder / name).exists() for name in ("metrics.jsonl", "checkpoints")):
        run_dir = folder
    elif file.name == "best.cfg" and (folder / "search.json").is_file():
        run_dir = folder / "best"
    else:
        return lines
    named = [line.split("=", 1)[1] for line in lines if line.startswith("--run_dir=")]
    if named and Path(named[-1]).expanduser().resolve() == run_dir.resolve():
        return lines
    return [*lines, f"--run_dir={run_dir}"]
