"""The training loop: data → step → metrics → checkpoint, from one event to the next.

The step runs several updates in one call; a call ends exactly where something is due (a line of metrics, a validation,
a checkpoint, the end), and is never longer than about two seconds, so that a wish to stop is heard soon. What the
updates compute does not depend on how they are grouped into calls.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfgpt.common.errors import DivergedError
from tfgpt.common.progress import Progress
from tfgpt.training.checkpoints import Checkpoint, Checkpoints, check_fits
from tfgpt.training.distribution.collectives import HostGroup
from tfgpt.training.metrics_writers import BY_SOURCE, JsonlMetricsWriter, TensorBoardWriter
from tfgpt.training.objectives.base import ValidationData
from tfgpt.training.run_config import steps_or_minutes
from tfgpt.training.stop_signals import StopSignals
from tfgpt.training.train_config import TrainConfig
from tfgpt.training.trainer import Trainer

LONGEST_CALL = 2.0  # seconds


@dataclasses.dataclass
class LoopState:
    """What the loop remembers besides the variables; a checkpoint carries it as JSON.

    Attributes:
        step: optimizer updates done.
        best_loss: the lowest validation loss so far, nats per token.
        best_step: where it was.
        validations_since_best: validations since then without a lower one.
        rollbacks: times the run went back to a checkpoint.
        trained_seconds: time spent in updates, over all processes of the run.
        first_validation: the numbers before the first update.
        last_validation: the newest numbers.
        nats, tokens: sums over the updates since the last line of metrics, so that a resumed run writes the same line.
        own: the same of what the objective adds up besides.
    """

    step: int = 0
    best_loss: float | None = None
    best_step: int = 0
    validations_since_best: int = 0
    rollbacks: int = 0
    trained_seconds: float = 0.0
    first_validation: dict[str, float] | None = None
    last_validation: dict[str, float] | None = None
    nats: float = 0.0
    tokens: float = 0.0
    own: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class LoopParts:
    """What the loop drives; made by `tfgpt.training.run`.

    Attributes:
        trainer: the decoder with its step.
        batches: first step → iterator of batches from that step on.
        hosts: the processes that train together.
        validation: the held-out set as a finite dataset, see `RunParts`.
        validation_steps: its batches.
        checkpoints: where the run is saved.
        metrics: metrics.jsonl.
        tensorboard: the event files.
        samples: called at a validation; returns the sampled continuations by prompt.
        facts: what every checkpoint carries besides the loop's state.
        flops_per_token: of a training step, for the utilization.
        peak_flops: per second, measured.
        callbacks: Keras callbacks of the caller; an epoch is the time between two validations.
        by_source: held-out sets of single sources; their losses are written down.
        updates_per_rollout, measure: as `objectives.base.TrainingData`'.
    """

    trainer: Trainer
    hosts: HostGroup
    batches: Callable[[int], Any]
    validation: Any
    validation_steps: int
    checkpoints: Checkpoints
    metrics: JsonlMetricsWriter
    tensorboard: TensorBoardWriter
    samples: Callable[[], dict[str, str]]
    facts: dict[str, Any]
    flops_per_token: float
    peak_flops: float
    callbacks: Sequence[keras.callbacks.Callback] = ()
    by_source: Mapping[str, ValidationData] = dataclasses.field(default_factory=dict)
    updates_per_rollout: int = 0
    measure: Callable[[], dict[str, float]] | None = None


class TrainingLoop:
    """One run from a step to its end, a wish to stop, or its failure.

    Args:
        recipe: the run's settings.
        parts: what it drives.
        state: where it begins.
    """

    def __init__(self, recipe: TrainConfig, parts: LoopParts, state: LoopState):
        self.recipe, self.parts, self.state = recipe, parts, state
        self.max_steps = recipe.run.max_steps
        self.validate_every = recipe.logging.validate_every or max(1, self.max_steps // 10)
        if parts.updates_per_rollout:
            self.validate_every = -(-self.validate_every // parts.updates_per_rollout) * parts.updates_per_rollout
        self.checkpoint_steps, self.checkpoint_seconds = steps_or_minutes(recipe.run.checkpoint_every)
        self.saved_at, self.saved_step = time.monotonic(), state.step
        self.seconds_per_step: float | None = None
        self.profiling = False
        self.interval = ThroughputMeter()
        self.callbacks = keras.callbacks.CallbackList(list(parts.callbacks), model=parts.trainer)

    def run(self, signals: StopSignals, progress: Progress) -> str:
        """Trains.

        Args:
            signals: asked between calls whether to stop.
            progress: the bar.

        Returns:
            "finished", "stopped" (a signal) or "early" (no lower validation loss any more).

        Raises:
            RunError: too many roll-backs, or a checkpoint could not be written.
        """
        parts, state = self.parts, self.state
        parts.trainer.stop_training = False
        self.callbacks.on_train_begin()
        outcome = "finished"
        if state.step == 0 and state.first_validation is None:
            self.record({"step": 0, **self.validate()})
        iterator = None
        while state.step < self.max_steps:
            before = state.step
            if iterator is None or parts.updates_per_rollout:
                iterator = parts.batches(state.step)
            self.train_to(self.next_event(), iterator)
            if self.must_roll_back():
                self.roll_back(progress)
                iterator = None
                continue
            improved = self.after_call(before, progress)
            stop, save = self.agreed(signals)
            if save or (improved and self.recipe.run.save_best):
                self.save()
            if stop:
                outcome = "stopped"
                break
            if self.out_of_patience():
                progress.log(
                    f"step {state.step}: no lower validation loss in {state.validations_since_best} validations; "
                    f"the best was {state.best_loss:.4f} at step {state.best_step}"
                )
                outcome = "early"
                break
        self.save()
        parts.checkpoints.wait()
        self.callbacks.on_train_end({})
        return outcome

    def next_event(self) -> int:
        """The step at which the next call must end."""
        step, round_length = self.state.step, self.parts.updates_per_rollout
        if round_length:
            return min(step - step % round_length + round_length, self.max_steps)
        every = [self.recipe.logging.log_every, self.validate_every]
        if self.checkpoint_steps:
            every.append(self.checkpoint_steps)
        ends = [step - step % period + period for period in every]
        profiled = self.recipe.logging.profiled_steps()
        if profiled:
            ends += [edge for edge in (profiled[0] - 1, profiled[1]) if edge > step]
        # The first call is one update long: it traces, and shows how long an update takes.
        longest = 1 if self.seconds_per_step is None else max(1, int(LONGEST_CALL / self.seconds_per_step))
        longest = self.recipe.step.steps_per_execution or longest
        return min(*ends, step + longest, self.max_steps)

    def train_to(self, end: int, iterator: Any) -> None:
        """Runs the updates up to `end` in one call and takes down what they report."""
        state = self.state
        self.profile_edges()
        count = end - state.step
        started = time.perf_counter()
        logs = self.parts.trainer.train_steps(iterator, count)
        seconds = time.perf_counter() - started
        tokens = count * self.recipe.batch.batch_size * self.recipe.batch.sequence_length
        if self.seconds_per_step is None:
            # The first call's time is mostly tracing and compiling: the next one begins the measure.
            self.seconds_per_step = 1e-9 + seconds if seconds < 0.2 else 0.2
        else:
            self.seconds_per_step = seconds / count
            self.interval.timed(tokens, seconds)
        self.interval.last = logs
        if logs["tokens"]:
            state.nats += logs["nats_per_token"] * logs["tokens"]
            state.tokens += logs["tokens"]
            for name in self.parts.trainer.objective.means:
                state.own[name] = state.own.get(name, 0.0) + logs[name] * logs["tokens"]
        state.step, state.trained_seconds = end, state.trained_seconds + seconds
        self.callbacks.on_train_batch_end(end - 1, {"loss": logs["loss"]})

    def agreed(self, signals: StopSignals) -> tuple[bool, bool]:
        """Whether to stop and whether to save, the same on every host.

        One host's signal stops all of them. The chief's clock says when to save, and the slowest host how many updates
        a call may have: all hosts must make calls of the same length.
        """
        stop = bool(signals.requested) or self.parts.trainer.stop_training
        wishes = self.parts.hosts.gather([stop, self.checkpoint_due(), self.seconds_per_step or 0.0])
        self.seconds_per_step = float(wishes[:, 2].max())
        return bool(wishes[:, 0].any()), bool(wishes[0, 1])

    def after_call(self, before: int, progress: Progress) -> bool:
        """Whatever is due at the step just reached; returns whether it validated better than ever."""
        state, logging = self.state, self.recipe.logging
        row: dict[str, Any] = {"step": state.step}
        last = state.step == self.max_steps
        if state.step % logging.log_every == 0 or last:
            row.update(self.metrics_row())
        progress.advance(state.step - before, **self.interval.figures())
        improved = False
        if state.step % self.validate_every == 0 or last:
            numbers = self.validate()
            row.update(numbers)
            improved = self.compare(numbers["validation_loss"])
            progress.log(f"step {state.step}: held-out {in_words(numbers)}{' (best)' if improved else ''}")
            by_source = [name for name in numbers if name.startswith(BY_SOURCE)]
            if by_source:
                words = (f"{name.removeprefix(BY_SOURCE)} {numbers[name]:.4f}" for name in by_source)
                progress.log(f"  by source: {', '.join(words)}")
            self.show_samples(progress)
            self.callbacks.on_epoch_end(state.step, {"val_loss": numbers["validation_loss"], **numbers})
        if len(row) > 1:
            self.record(row)
        if "train_loss" in row:
            self.interval, state.nats, state.tokens, state.own = ThroughputMeter(), 0.0, 0.0, {}
        return improved

    def metrics_row(self) -> dict[str, Any]:
        """The numbers of one metrics line: the mean training loss of the interval, the last update's other numbers."""
        state, interval = self.state, self.interval
        # Rounded to float32: the sum does not depend, in the last digits of float64, on where calls ended.
        loss = float(np.float32(state.nats / state.tokens)) if state.tokens else float("nan")
        row: dict[str, Any] = {
            "train_loss": loss,
            **{f"train_{name}": float(np.float32(total / state.tokens)) for name, total in state.own.items()},
            "learning_rate": interval.last["learning_rate"],
            "gradient_norm": interval.last["gradient_norm"],
            "update_to_weight_ratio": interval.last["update_ratio"],
            "skipped_updates": int(self.parts.trainer.skipped_updates.numpy()),
        }
        if interval.seconds:
            row["tokens_per_second"] = interval.tokens / interval.seconds
            row["model_flops_utilization"] = (
                self.parts.flops_per_token * row["tokens_per_second"] / self.parts.peak_flops
            )
        return row

    def checkpoint_due(self) -> bool:
        """Whether enough steps or minutes have passed."""
        if self.checkpoint_steps:
            return self.state.step % self.checkpoint_steps == 0
        return time.monotonic() - self.saved_at >= (self.checkpoint_seconds or 0.0)

    def save(self) -> None:
        """Writes a checkpoint in the background, unless this step's is there; the chief alone does."""
        state = self.state
        if self.saved_step == state.step and state.step:
            return
        if self.parts.hosts.is_chief:
            facts = {**self.parts.facts, "state": dataclasses.asdict(state)}
            best = state.best_step if self.recipe.run.save_best and state.best_loss is not None else None
            self.parts.checkpoints.save(state.step, self.parts.trainer.state_variables(), facts, best)
        self.saved_at, self.saved_step = time.monotonic(), state.step

    def validate(self) -> dict[str, float]:
        """The whole held-out set, once, with the averaged weights where there are any."""
        with self.parts.trainer.averaged_weights():
            evaluate = self.parts.trainer.evaluate_dataset
            measure = self.parts.measure
            numbers = measure() if measure else evaluate(self.parts.validation, self.parts.validation_steps)
            by_source = {name: evaluate(part.dataset, part.steps) for name, part in self.parts.by_source.items()}
        row = {
            **{f"validation_{name}": float(value) for name, value in numbers.items() if name != "tokens"},
            **{f"{BY_SOURCE}{name}": float(part["loss"]) for name, part in by_source.items()},
        }
        if self.state.first_validation is None:
            self.state.first_validation = row
        self.state.last_validation = row
        return row

    def compare(self, loss: float) -> bool:
        """Whether this validation is the best so far; counts those that are not."""
        state = self.state
        if np.isfinite(loss) and (state.best_loss is None or loss < state.best_loss):
            state.best_loss, state.best_step, state.validations_since_best = loss, state.step, 0
            return True
        state.validations_since_best += 1
        return False

    def out_of_patience(self) -> bool:
        """Whether early stopping is asked for and due."""
        patience = self.recipe.run.early_stopping_patience
        return 0 < patience <= self.state.validations_since_best

    def record(self, row: dict[str, Any]) -> None:
        """One line of metrics, to the file and to TensorBoard."""
        self.parts.metrics.write(row)
        self.parts.tensorboard.scalars(row)

    def show_samples(self, progress: Progress) -> None:
        """Text samples and, when asked for, histograms; the chief's."""
        if not self.parts.hosts.is_chief:
            return
        step = self.state.step
        for prompt, text in self.parts.samples().items():
            self.parts.tensorboard.text(f"sample/{prompt or 'from nothing'}", step, text)
            one_line = " ".join(text.split())
            progress.log(f"  sample: {one_line[:160]}{'…' if len(one_line) > 160 else ''}")
        if self.recipe.logging.histograms:
            decoder = self.parts.trainer.decoder
            self.parts.tensorboard.histograms({weight.path: weight.value for weight in decoder.weights}, step)

    def must_roll_back(self) -> bool:
        """Whether too many updates in a row were skipped."""
        limit = self.recipe.run.rollback_after
        return 0 < limit <= int(self.parts.trainer.consecutive_skipped.numpy())

    def roll_back(self, progress: Progress) -> None:
        """Back to the last checkpoint, with a lower learning rate.

        Raises:
            DivergedError: it happened too often, or there is no checkpoint.
        """
        run, state, trainer = self.recipe.run, self.state, self.parts.trainer
        at, rollbacks = state.step, state.rollbacks + 1
        self.parts.checkpoints.wait()
        facts = restored(self.parts.checkpoints, trainer, self.parts.hosts, report=progress.log)
        if rollbacks > run.max_rollbacks or facts is None:
            why = "no checkpoint to go back to" if facts is None else f"{run.max_rollbacks} roll-backs did not help"
            raise DivergedError(
                f"step {at}: {run.rollback_after} updates in a row were not finite and {why}; "
                "lower --learning_rate or --max_grad_norm, or lengthen --warmup_steps"
            )
        self.state = LoopState(**facts["state"])
        self.state.rollbacks = rollbacks
        trainer.learning_rate_scale.assign(float(run.rollback_factor) ** rollbacks)
        self.interval = ThroughputMeter()
        # Saved at once: a kill now must not forget the lower rate.
        self.saved_step = -1
        self.save()
        progress.advance(self.state.step - at)
        progress.log(
            f"step {at}: {run.rollback_after} updates in a row were not finite; back to step {self.state.step} with "
            f"the learning rate times {run.rollback_factor**rollbacks:g} (roll-back {rollbacks} of {run.max_rollbacks})"
        )

    def profile_edges(self) -> None:
        """Starts and stops the profiler trace at its steps."""
        profiled = self.recipe.logging.profiled_steps()
        if profiled is None:
            return
        if not self.profiling and self.state.step == profiled[0] - 1:
            tf.profiler.experimental.start(str(self.recipe.run_dir / "tensorboard"))
            self.profiling = True
        elif self.profiling and self.state.step >= profiled[1]:
            tf.profiler.experimental.stop()
            self.profiling = False


def in_words(numbers: dict[str, float]) -> str:
    """The numbers of a validation, for people: those that say how good the model is."""
    if "validation_bits_per_byte" in numbers:
        words = [f"loss {numbers['validation_loss']:.4f} nats per token"]
        return ", ".join([*words, f"{numbers['validation_bits_per_byte']:.4f} bits per byte"])
    plain = {name.removeprefix("validation_"): value for name, value in numbers.items()}
    return ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in plain.items() if "/" not in name)


def restored(
    checkpoints: Checkpoints,
    trainer: Trainer,
    hosts: HostGroup,
    check: Callable[[Checkpoint], None] = lambda checkpoint: None,
    report: Callable[[str], None] = print,
) -> dict[str, Any] | None:
    """Sets the trainer's variables to the newest whole checkpoint's, on every host, and returns its facts.

    The chief reads it and tells the others, so that the directory need not be on a disk that all of them share.

    Args:
        checkpoints: the run's.
        trainer: whose variables are set.
        hosts: the processes that train together.
        check: called with the checkpoint before anything is set; may raise UserError.
        report: gets a line about every damaged checkpoint.

    Returns:
        The facts, or None when there is no checkpoint; nothing is set then.

    Raises:
        UserError: the checkpoint belongs to another model or optimizer, or `check` refuses it.
    """
    variables = trainer.state_variables()

    def read() -> tuple[Checkpoint, dict[str, np.ndarray]] | None:
        checkpoint = checkpoints.newest(report)
        if checkpoint is None:
            return None
        check(checkpoint)
        arrays = checkpoint.arrays()
        check_fits(arrays, variables, checkpoint.path)
        return checkpoint, arrays

    found = hosts.chief_does(read)
    facts = hosts.share(found[0].facts if found else None)
    if facts is None:
        return None
    for name, array in hosts.share_variables(found[1] if found else None, variables):
        variables[name].assign(array)
    return facts


class ThroughputMeter:
    """What the calls since the last line of metrics reported.

    Attributes:
        last: the newest call's numbers, see `Trainer.train_steps`.
        tokens, seconds: of the calls that count towards the speed.
    """

    def __init__(self) -> None:
        self.last: dict[str, float] = {}
        self.tokens, self.seconds = 0, 0.0

    def timed(self, tokens: int, seconds: float) -> None:
        """Counts a call towards the speed."""
        self.tokens, self.seconds = self.tokens + tokens, self.seconds + seconds

    def figures(self) -> dict[str, str]:
        """What the progress bar shows."""
        figures = {"loss": f"{self.last['loss']:.3f}"}
        if self.seconds:
            figures["tokens/s"] = f"{self.tokens / self.seconds:,.0f}"
        return figures
