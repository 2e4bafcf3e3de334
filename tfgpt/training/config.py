"""Settings of training: optimizer, learning-rate schedule, step, devices, run and logging. No TensorFlow."""

from __future__ import annotations

import dataclasses
import re
from typing import ClassVar

from tfgpt.common.errors import SettingError
from tfgpt.common.model_paths import MODEL_FORMS
from tfgpt.common.settings import Settings, setting


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Settings):
    """Optimizer settings.

    Weight decay is decoupled (Loshchilov and Hutter 2019, arXiv:1711.05101: `w -= learning_rate * weight_decay * w`)
    for every optimizer. Variables of fewer than two dimensions (biases, scales of norms), and matrices whose
    path matches `weight_decay_exclude`, are not decayed.

    Example:

    >>> OptimizerConfig(optimizer="lion", learning_rate=3e-4).weight_decay
    0.1
    """

    title: ClassVar[str] = "Optimizer"

    optimizer: str = setting(
        "adamw",
        "adamw; muon: orthogonalized momentum for the blocks' matrices, AdamW for embeddings, head, norms and biases; "
        "lion: sign of the momentum, half of AdamW's memory; adafactor: factored second moments, memory as lion's.",
        choices=("adamw", "muon", "lion", "adafactor"),
    )
    learning_rate: float = setting(1e-3, "Highest learning rate, reached after the warm-up.", minimum=0.0)
    adam_learning_rate: float | None = setting(
        None,
        "With muon: highest learning rate of the variables that AdamW updates. Not given: the same as --learning_rate "
        "(Muon's updates are scaled to the size of AdamW's, arXiv:2502.16982).",
        minimum=0.0,
    )
    beta_1: float = setting(0.9, "Decay of the first moment (adamw, muon's AdamW, lion).", minimum=0.0, below=1.0)
    beta_2: float = setting(
        0.95, "Decay of the second moment (adamw, muon's AdamW) or of the momentum (lion).", minimum=0.0, below=1.0
    )
    epsilon: float = setting(1e-8, "Added to the root of the second moment (adamw, muon's AdamW).", above=0.0)
    momentum: float = setting(0.95, "Momentum of muon.", minimum=0.0, below=1.0)
    weight_decay: float = setting(0.1, "Decoupled weight decay, times the learning rate at each update.", minimum=0.0)
    weight_decay_exclude: tuple[str, ...] = setting(
        ("embedding",),
        "Regular expression searched in a variable's path (decoder/block_0/attention/query/kernel): a match is not "
        "decayed. Biases and norms never are. ^$ matches nothing: all matrices are decayed, as in nanoGPT.",
    )
    max_grad_norm: float = setting(
        1.0,
        "Gradients are scaled down to this global norm, after they are summed over replicas; 0: never.",
        minimum=0.0,
    )
    ema_decay: float = setting(
        0.0,
        "Keep an average of the weights with this decay, used for validation and for the model written; 0: none.",
        minimum=0.0,
        below=1.0,
    )

    def check(self) -> None:
        if self.adam_learning_rate is not None and self.optimizer != "muon":
            raise SettingError("adam_learning_rate", f"is only for --optimizer=muon, not {self.optimizer}")
        if self.adam_learning_rate is not None and self.learning_rate == 0:
            raise SettingError("adam_learning_rate", "is a ratio to --learning_rate, which must not be 0")
        if self.optimizer == "lion" and self.beta_1 == 0:
            raise SettingError("beta_1", "must be above 0 for --optimizer=lion")
        for pattern in self.weight_decay_exclude:
            try:
                re.compile(pattern)
            except re.error as error:
                raise SettingError(
                    "weight_decay_exclude", f"{pattern!r} is not a regular expression ({error})"
                ) from error


@dataclasses.dataclass(frozen=True)
class ScheduleConfig(Settings):
    """Learning-rate schedule settings.

    Example:

    >>> ScheduleConfig(schedule="wsd").decay_fraction
    0.2
    """

    title: ClassVar[str] = "Learning-rate schedule"

    schedule: str = setting(
        "cosine",
        "After a linear warm-up: cosine: half a cosine down to the end; wsd: constant, then linear down over the last "
        "--decay_fraction of the run (warm-up, stable, decay); linear: straight down; constant.",
        choices=("cosine", "wsd", "linear", "constant"),
    )
    warmup_steps: int = setting(100, "Updates over which the learning rate rises linearly.", minimum=0)
    decay_fraction: float = setting(
        0.2, "With wsd: the part of the run, at its end, over which the rate falls.", minimum=0.0, maximum=1.0
    )
    final_learning_rate_fraction: float = setting(
        0.1, "Learning rate at the end, as a fraction of the highest.", minimum=0.0, maximum=1.0
    )


@dataclasses.dataclass(frozen=True)
class StepConfig(Settings):
    """Settings of the training step."""

    title: ClassVar[str] = "Training step"

    gradient_accumulation_steps: int = setting(
        1,
        "Each update's batch is computed in this many parts, one after the other: less memory, the same result. "
        "Must divide the rows of the batch on each replica.",
        minimum=1,
        maximum=2**20,
    )
    label_smoothing: float = setting(
        0.0, "Probability spread evenly over the vocabulary in the training target.", minimum=0.0, maximum=0.999
    )
    z_loss: float = setting(
        0.0, "Factor on the squared log of the softmax's denominator, such as 0.0001 (arXiv:2204.02311).", minimum=0.0
    )
    cross_entropy_chunk_tokens: int = setting(
        0,
        "Tokens whose logits exist at once; the result is the same. 0: chosen by the size of the vocabulary.",
        minimum=0,
    )
    dtype: str = setting(
        "float32",
        "float32, or mixed_bfloat16: weights and optimizer in float32, matrix products (Muon's too) in bfloat16.",
    )
    compile: str = setting(
        "auto",
        "Kernels of the step. graph: TensorFlow's; xla: compiled by XLA; auto: both are measured for a few steps at "
        "the start, and the run, also a resumed one, uses the faster.",
        choices=("auto", "graph", "xla"),
    )
    steps_per_execution: int = setting(
        0,
        "Most updates in one call of the step; 0: about two seconds' worth. Does not change results.",
        minimum=0,
    )

    def check(self) -> None:
        if self.dtype in ("float16", "mixed_float16"):
            raise SettingError(
                "dtype",
                "float16 is not offered: it needs loss scaling, which Keras checks on the first replica only; "
                "use mixed_bfloat16",
            )
        if self.dtype not in ("float32", "mixed_bfloat16"):
            raise SettingError("dtype", f"{self.dtype!r} is not one of float32, mixed_bfloat16")


@dataclasses.dataclass(frozen=True)
class StrategyConfig(Settings):
    """Devices of the step.

    Example:

    >>> StrategyConfig(strategy="mirrored", logical_cpus=2).tpu
    'local'
    """

    title: ClassVar[str] = "Devices"

    strategy: str = setting(
        "auto",
        "one: the first device; mirrored: all GPUs (or all logical CPUs) of this machine, each with a part of the "
        "batch; multiworker: the same on several machines, the cluster from TF_CONFIG, a SLURM step or a Kubernetes "
        "Indexed Job; tpu: the TPU that --tpu names; auto: multiworker where TF_CONFIG is set, else mirrored when "
        "there is more than one device, else one. --batch_size is always the whole batch, shared by all devices.",
        choices=("auto", "one", "mirrored", "multiworker", "tpu"),
    )
    logical_cpus: int = setting(
        1,
        "Split the CPU into this many logical devices, to try --strategy=mirrored without GPUs.",
        minimum=1,
        maximum=1024,
    )
    tpu: str = setting("local", "With tpu: local, on a TPU VM; grpc://host:port; or the name of a Cloud TPU.")
    cluster_timeout: float = setting(
        600.0, "With multiworker: seconds to wait until all workers are there.", minimum=1.0, maximum=1e9
    )
    cluster_port: int = setting(
        8888,
        "With multiworker on SLURM or Kubernetes: the port of each host's first worker, as TensorFlow's SLURM resolver "
        "has it. TF_CONFIG names ports itself.",
        minimum=1,
        maximum=65535,
    )
    cluster_size: int = setting(
        0, "With multiworker on Kubernetes: the number of workers, which its pods do not know.", minimum=0
    )


@dataclasses.dataclass(frozen=True)
class RunConfig(Settings):
    """Settings of a run: its directory, length, checkpoints and faults."""

    title: ClassVar[str] = "Run"

    run_dir: str | None = setting(
        None,
        "Directory of the run: flags, metrics, checkpoints, model. Not given: runs/NAME, NAME from the text.",
        path=True,
    )
    max_steps: int = setting(2000, "Optimizer updates in the whole run.", minimum=1)
    seed: int = setting(0, "Seed of the initial weights, the order of the data and dropout.", minimum=0)
    init_from: str | None = setting(
        None,
        "Model whose weights and tokenizer the run starts from (fine-tuning) instead of random weights: "
        + MODEL_FORMS
        + ".",
        path=True,
    )
    resume: str = setting(
        "auto",
        "auto: continue from the newest complete checkpoint in the run directory, or begin. never: begin, and refuse a "
        "run directory that already holds a run.",
        choices=("auto", "never"),
    )
    restarts: int = setting(
        0,
        "Times this process is started again, from the last checkpoint, when it is killed or loses another worker. "
        "A run that fails (exit code 1 or 2) is not started again.",
        minimum=0,
    )
    preempted_exit_code: int = setting(
        0,
        "Exit code when a signal stopped the run before its end. A scheduler that starts a job again only when it "
        "fails (Kubernetes) needs another than 0, such as 76.",
        minimum=0,
        maximum=125,
    )
    checkpoint_every: str = setting(
        "5m", "How often a checkpoint is written: a number of steps (500) or of minutes (10m). The end always is."
    )
    checkpoints_kept: int = setting(
        2, "Newest checkpoints kept; the best one is kept too when --save_best is true.", minimum=1
    )
    save_best: bool = setting(
        True, "The model written at the end is that of the lowest validation loss; false: the last one."
    )
    early_stopping_patience: int = setting(
        0, "Stop after this many validations in a row without a lower loss; 0: never.", minimum=0
    )
    rollback_after: int = setting(
        5,
        "A non-finite update is skipped and counted; after this many in a row the run returns to its last checkpoint "
        "with the learning rate lowered by --rollback_factor. 0: never.",
        minimum=0,
    )
    rollback_factor: float = setting(0.5, "Factor on the learning rate at each roll-back.", minimum=0.0, maximum=1.0)
    max_rollbacks: int = setting(3, "Roll-backs before the run is given up (exit code 1).", minimum=0)

    def check(self) -> None:
        steps_or_minutes(self.checkpoint_every)


@dataclasses.dataclass(frozen=True)
class LoggingConfig(Settings):
    """Settings of metrics, validation, samples and profiles."""

    title: ClassVar[str] = "Logging"

    log_every: int = setting(10, "Steps between lines of metrics.", minimum=1)
    validate_every: int = setting(
        0, "Steps between validations over the whole held-out set; 0: ten times in the run.", minimum=0
    )
    sample_prompt: tuple[str, ...] = setting(
        ("",), "Prompt continued at each validation; an empty one starts a new document."
    )
    sample_tokens: int = setting(64, "Tokens of each sampled continuation; 0: no samples.", minimum=0)
    sample_temperature: float = setting(0.8, "Temperature of the sampled continuations.", minimum=0.0)
    tensorboard: bool = setting(True, "Write TensorBoard event files to RUN_DIR/tensorboard.")
    histograms: bool = setting(False, "Write TensorBoard histograms of every weight at each validation.")
    profile_steps: str | None = setting(
        None, "FIRST:LAST steps to record a TensorBoard profiler trace of, such as 20:25. Not given: no trace."
    )

    def check(self) -> None:
        self.profiled_steps()

    def profiled_steps(self) -> tuple[int, int] | None:
        if not self.profile_steps:
            return None
        match = re.fullmatch(r"(\d{1,18}):(\d{1,18})", self.profile_steps)
        if not match or not 0 < int(match[1]) <= int(match[2]):
            raise SettingError("profile_steps", f"{self.profile_steps!r} is not FIRST:LAST with 0 < FIRST <= LAST")
        return int(match[1]), int(match[2])


def steps_or_minutes(text: str) -> tuple[int | None, float | None]:
    """Parses --checkpoint_every: "500" → (500, None), "10m" → (None, 600.0), in seconds."""
    match = re.fullmatch(r"(\d{1,18})|(\d{1,9}(?:\.\d{1,9})?)m", text)
    if not match or float(match[1] or match[2]) <= 0:
        raise SettingError("checkpoint_every", f"{text!r} is neither a number of steps (500) nor of minutes (10m)")
    return (int(match[1]), None) if match[1] else (None, float(match[2]) * 60)
