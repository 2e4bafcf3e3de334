"""Settings of a run as a whole: how long, where to, what is watched, when it is saved. No TensorFlow."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import ClassVar

from tfgpt.common.errors import SettingError
from tfgpt.common.model_paths import MODEL_FORMS
from tfgpt.common.settings import Settings, setting


@dataclasses.dataclass(frozen=True)
class RunConfig(Settings):
    """How long a run goes on, where it writes, and how it is saved and resumed."""

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
        "auto: go on from the newest whole checkpoint in the run directory, or begin. never: begin, and refuse a "
        "run directory that already holds a run.",
        choices=("auto", "never"),
    )
    restarts: int = setting(
        0,
        "Times this process is started again, from the last checkpoint, when it is killed or loses another worker. "
        "A run that fails for a reason of its own (exit code 1 or 2) is not.",
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
        2, "Newest checkpoints kept; the best one is kept besides when --save_best is true.", minimum=1
    )
    save_best: bool = setting(
        True, "The model written at the end is the one of the lowest validation loss; false: the last one."
    )
    early_stopping_patience: int = setting(
        0, "Stop after this many validations in a row without a lower loss; 0: never.", minimum=0
    )
    rollback_after: int = setting(
        5,
        "A non-finite update is skipped and counted; after this many in a row the run goes back to its last checkpoint "
        "with the learning rate lowered by --rollback_factor. 0: never go back.",
        minimum=0,
    )
    rollback_factor: float = setting(0.5, "Factor on the learning rate at each roll-back.", minimum=0.0, maximum=1.0)
    max_rollbacks: int = setting(3, "Roll-backs before the run is given up (exit code 1).", minimum=0)

    def check(self) -> None:
        steps_or_minutes(self.checkpoint_every)


@dataclasses.dataclass(frozen=True)
class LoggingConfig(Settings):
    """What is measured on the way and where it shows."""

    title: ClassVar[str] = "Watching"

    log_every: int = setting(10, "Steps between lines of metrics.", minimum=1)
    validate_every: int = setting(
        0, "Steps between validations over the whole held-out set; 0: ten times in the run.", minimum=0
    )
    sample_prompt: tuple[str, ...] = setting(
        ("",), "Prompt continued at each validation, to see the model learn; an empty one starts a new document."
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
        """The first and last step of the profiler trace."""
        if not self.profile_steps:
            return None
        match = re.fullmatch(r"(\d{1,18}):(\d{1,18})", self.profile_steps)
        if not match or not 0 < int(match[1]) <= int(match[2]):
            raise SettingError("profile_steps", f"{self.profile_steps!r} is not FIRST:LAST with 0 < FIRST <= LAST")
        return int(match[1]), int(match[2])


def steps_or_minutes(text: str) -> tuple[int | None, float | None]:
    """`"500"` → (500, None); `"10m"` → (None, 600.0), in seconds.

    Raises:
        SettingError: neither form.
    """
    match = re.fullmatch(r"(\d{1,18})|(\d{1,9}(?:\.\d{1,9})?)m", text)
    if not match or float(match[1] or match[2]) <= 0:
        raise SettingError("checkpoint_every", f"{text!r} is neither a number of steps (500) nor of minutes (10m)")
    return (int(match[1]), None) if match[1] else (None, float(match[2]) * 60)


def default_run_dir(train_text: tuple[str, ...]) -> str:
    """runs/NAME, NAME from the first text: `my/*.txt` → runs/my, `sample:chitchat` → runs/chitchat."""
    first = train_text[0] if train_text else "default"
    if first.startswith(("sample:", "tfds:")):
        name = first.split(":", 1)[1].split("#")[0]
    else:
        plain = [part for part in Path(first).parts if not re.search(r"[*?\[]", part) and part not in ("/", "..")]
        name = plain[-1].split(".")[0] if plain and plain[-1].split(".")[0] else "text"
    return f"runs/{re.sub(r'[^A-Za-z0-9_-]+', '_', name).strip('_') or 'text'}"


def flags_of_a_moved_run(path: str, lines: list[str]) -> list[str]:
    """The lines of a flag file; those of a run's or a search's own name the run directory by where the file lies now.

    A run's own is the flags.cfg beside its metrics or checkpoints, a search's the best.cfg beside its search.json,
    whose run directory is best/. So a run that was moved or copied goes on where it is.

    Args:
        path: the flag file.
        lines: what is in it, a flag each.
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
