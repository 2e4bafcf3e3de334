"""The training loop: data → step → metrics → checkpoint.

One call of the step runs several updates. A call ends where something is due (a line of metrics, a validation, a
checkpoint, the end) and lasts at most about two seconds, so that stop signals are handled promptly. The results do not
depend on how updates are grouped into calls.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfgpt.common.errors import DivergedError
from tfgpt.common.progress import Progress
from tfgpt.model import cost
from tfgpt.training.checkpoints import Checkpoints, restore
from tfgpt.training.config import steps_or_minutes
from tfgpt.training.distribution.collectives import HostGroup
from tfgpt.training.metrics_writers import BY_SOURCE, JsonlMetricsWriter, TensorBoardWriter
from tfgpt.training.objectives.base import TrainingData
from tfgpt.training.peak_flops import measured_peak_flops
from tfgpt.training.stop_signals import StopSignals
from tfgpt.training.train_config import TrainConfig
from tfgpt.training.trainer import Trainer

LONGEST_CALL = 2.0  # seconds


@dataclasses.dataclass
class LoopState:
    """State of the loop that is not in variables. Checkpoints store it as JSON, under these names.

    Attributes:
        best_loss: the lowest validation loss so far, nats per token, at `best_step`.
        trained_seconds: time spent in updates, over all processes of the run.
        first_validation, last_validation: metrics before the first update, and the newest.
        nats, tokens: sums over the updates since the last line of metrics, which a resumed run completes.
        own: such sums of the loss function's `means`.
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


class TrainingLoop:
    """Runs the updates of a run until its end, a stop signal or a failure.

    Args:
        state: where the run starts.
        samples: returns sampled continuations by prompt, called at each validation.
        metadata: JSON values that every checkpoint stores in addition to the state.
        callbacks: Keras callbacks; an epoch is the time between two validations.
    """

    def __init__(
        self,
        recipe: TrainConfig,
        trainer: Trainer,
        data: TrainingData,
        state: LoopState,
        *,
        hosts: HostGroup,
        checkpoints: Checkpoints,
        metrics: JsonlMetricsWriter,
        tensorboard: TensorBoardWriter,
        samples: Callable[[], dict[str, str]],
        metadata: dict[str, Any],
        callbacks: Sequence[keras.callbacks.Callback] = (),
    ):
        self.recipe, self.trainer, self.data, self.state = recipe, trainer, data, state
        self.hosts, self.checkpoints, self.metrics, self.tensorboard = hosts, checkpoints, metrics, tensorboard
        self.samples, self.metadata = samples, metadata
        self.callbacks = keras.callbacks.CallbackList(list(callbacks), model=trainer)
        self.max_steps = recipe.run.max_steps
        self.validate_every = recipe.logging.validate_every or max(1, self.max_steps // 10)
        if data.updates_per_rollout:
            self.validate_every = -(-self.validate_every // data.updates_per_rollout) * data.updates_per_rollout
        self.checkpoint_steps, self.checkpoint_seconds = steps_or_minutes(recipe.run.checkpoint_every)
        self.saved_at, self.saved_step = time.monotonic(), state.step
        self.seconds_per_step: float | None = None
        self.profiling = False
        self.logs: dict[str, float] = {}
        self.timed_tokens, self.timed_seconds = 0, 0.0
        flops_per_token = cost.training_flops_per_token(trainer.decoder.config, recipe.batch.sequence_length)
        self.peak_tokens_per_second = measured_peak_flops(recipe.step.dtype) / flops_per_token

    def run(self, signals: StopSignals, progress: Progress) -> str:
        """Trains; returns "finished", "stopped" (by a signal) or "early" (the validation loss no longer improves).

        Raises RunError for too many roll-backs, or if a checkpoint could not be written.
        """
        state = self.state
        self.trainer.stop_training = False
        self.callbacks.on_train_begin()
        outcome = "finished"
        if state.step == 0 and state.first_validation is None:
            self.record({"step": 0, **self.validate()})
        iterator = None
        while state.step < self.max_steps:
            before = state.step
            if iterator is None or self.data.updates_per_rollout:
                iterator = self.data.batches(state.step)
            self.train_to(self.next_sync_step(), iterator)
            if 0 < self.recipe.run.rollback_after <= int(self.trainer.consecutive_skipped.numpy()):
                state = self.roll_back(progress)
                iterator = None
                continue
            improved = self.log_step(before, progress)
            stop, save = self.sync_decisions(signals)
            if save or (improved and self.recipe.run.save_best):
                self.save()
            if stop:
                outcome = "stopped"
                break
            if 0 < self.recipe.run.early_stopping_patience <= state.validations_since_best:
                progress.log(
                    f"step {state.step}: no lower validation loss in {state.validations_since_best} validations; "
                    f"the best was {state.best_loss:.4f} at step {state.best_step}"
                )
                outcome = "early"
                break
        self.save()
        self.checkpoints.wait()
        self.callbacks.on_train_end({})
        return outcome

    def next_sync_step(self) -> int:
        step, rollout = self.state.step, self.data.updates_per_rollout
        if rollout:
            return min(step - step % rollout + rollout, self.max_steps)
        periods = [self.recipe.logging.log_every, self.validate_every]
        if self.checkpoint_steps:
            periods.append(self.checkpoint_steps)
        ends = [step - step % period + period for period in periods]
        profiled = self.recipe.logging.profiled_steps()
        if profiled:
            ends += [edge for edge in (profiled[0] - 1, profiled[1]) if edge > step]
        # The first call is one update long: it traces, and measures the time of an update.
        longest = 1 if self.seconds_per_step is None else max(1, int(LONGEST_CALL / self.seconds_per_step))
        return min(*ends, step + (self.recipe.step.steps_per_execution or longest), self.max_steps)

    def train_to(self, end: int, iterator: Any) -> None:
        state = self.state
        if profiled := self.recipe.logging.profiled_steps():
            if not self.profiling and state.step == profiled[0] - 1:
                tf.profiler.experimental.start(str(self.recipe.run_dir / "tensorboard"))
                self.profiling = True
            elif self.profiling and state.step >= profiled[1]:
                tf.profiler.experimental.stop()
                self.profiling = False
        count = end - state.step
        started = time.perf_counter()
        self.logs = logs = self.trainer.train_steps(iterator, count)
        seconds = time.perf_counter() - started
        if self.seconds_per_step is None:
            # The first call mostly traces and compiles; the second one starts the measurement.
            self.seconds_per_step = 1e-9 + seconds if seconds < 0.2 else 0.2
        else:
            self.seconds_per_step = seconds / count
            self.timed_tokens += count * self.recipe.batch.batch_size * self.recipe.batch.sequence_length
            self.timed_seconds += seconds
        if logs["tokens"]:
            state.nats += logs["nll_per_token"] * logs["tokens"]
            state.tokens += logs["tokens"]
            for name in self.trainer.loss_function.means:
                state.own[name] = state.own.get(name, 0.0) + logs[name] * logs["tokens"]
        state.step, state.trained_seconds = end, state.trained_seconds + seconds
        self.callbacks.on_train_batch_end(end - 1, {"loss": logs["loss"]})

    def sync_decisions(self, signals: StopSignals) -> tuple[bool, bool]:
        """Returns whether to stop and whether to save, equal on every host.

        A signal on one host stops all. The chief's clock decides when to save. The slowest host decides the number of
        updates of a call, since all hosts must make calls of equal length.
        """
        if self.checkpoint_steps:
            due = self.state.step % self.checkpoint_steps == 0
        else:
            due = time.monotonic() - self.saved_at >= (self.checkpoint_seconds or 0.0)
        stop = bool(signals.requested) or self.trainer.stop_training
        decisions = self.hosts.gather([stop, due, self.seconds_per_step or 0.0])
        self.seconds_per_step = float(decisions[:, 2].max())
        return bool(decisions[:, 0].any()), bool(decisions[0, 1])

    def log_step(self, before: int, progress: Progress) -> bool:
        """Writes metrics and validates where due; returns whether the validation loss is the lowest so far."""
        state, logging = self.state, self.recipe.logging
        row: dict[str, Any] = {"step": state.step}
        last = state.step == self.max_steps
        logged = state.step % logging.log_every == 0 or last
        if logged:
            row.update(self.training_metrics())
        speed = {"tokens/s": f"{self.timed_tokens / self.timed_seconds:,.0f}"} if self.timed_seconds else {}
        progress.advance(state.step - before, loss=f"{self.logs['loss']:.3f}", **speed)
        improved = False
        if state.step % self.validate_every == 0 or last:
            metrics = self.validate()
            row.update(metrics)
            loss = metrics["validation_loss"]
            improved = bool(np.isfinite(loss)) and (state.best_loss is None or loss < state.best_loss)
            state.validations_since_best += 1
            if improved:
                state.best_loss, state.best_step, state.validations_since_best = loss, state.step, 0
            progress.log(f"step {state.step}: held-out {format_metrics(metrics)}{' (best)' if improved else ''}")
            by_source = [name for name in metrics if name.startswith(BY_SOURCE)]
            if by_source:
                words = (f"{name.removeprefix(BY_SOURCE)} {metrics[name]:.4f}" for name in by_source)
                progress.log(f"  by source: {', '.join(words)}")
            if self.hosts.is_chief:
                self.show_samples(progress)
            self.callbacks.on_epoch_end(state.step, {"val_loss": loss, **metrics})
        if len(row) > 1:
            self.record(row)
        if logged:
            self.timed_tokens, self.timed_seconds = 0, 0.0
            state.nats, state.tokens, state.own = 0.0, 0.0, {}
        return improved

    def training_metrics(self) -> dict[str, Any]:
        state = self.state
        # Rounded to float32: the last digits of a float64 sum depend on where calls ended.
        loss = float(np.float32(state.nats / state.tokens)) if state.tokens else float("nan")
        row: dict[str, Any] = {
            "train_loss": loss,
            **{f"train_{name}": float(np.float32(total / state.tokens)) for name, total in state.own.items()},
            "learning_rate": self.logs["learning_rate"],
            "gradient_norm": self.logs["gradient_norm"],
            "update_to_weight_ratio": self.logs["update_ratio"],
            "skipped_updates": int(self.trainer.skipped_updates.numpy()),
        }
        if self.timed_seconds:
            row["tokens_per_second"] = self.timed_tokens / self.timed_seconds
            row["model_flops_utilization"] = row["tokens_per_second"] / self.peak_tokens_per_second
        return row

    def validate(self) -> dict[str, float]:
        """Returns the metrics of the whole held-out set, with the averaged weights if there are any."""
        data, evaluate = self.data, self.trainer.evaluator.evaluate
        with self.trainer.averaged_weights():
            metrics = (
                data.evaluate_fn() if data.evaluate_fn else evaluate(data.validation.dataset, data.validation.steps)
            )
            by_source = {name: evaluate(part.dataset, part.steps) for name, part in data.validation_by_source.items()}
        row = {
            **{f"validation_{name}": float(value) for name, value in metrics.items() if name != "tokens"},
            **{f"{BY_SOURCE}{name}": float(part["loss"]) for name, part in by_source.items()},
        }
        self.state.first_validation = self.state.first_validation or row
        self.state.last_validation = row
        return row

    def record(self, row: dict[str, Any]) -> None:
        self.metrics.write(row)
        self.tensorboard.scalars(row)

    def show_samples(self, progress: Progress) -> None:
        step = self.state.step
        for prompt, text in self.samples().items():
            self.tensorboard.text(f"sample/{prompt or 'from nothing'}", step, text)
            one_line = " ".join(text.split())
            progress.log(f"  sample: {one_line[:160]}{'…' if len(one_line) > 160 else ''}")
        if self.recipe.logging.histograms:
            weights = self.trainer.decoder.weights
            self.tensorboard.histograms({weight.path: weight.value for weight in weights}, step)

    def save(self) -> None:
        """Writes a checkpoint in the background, on the chief, unless this step has one."""
        state = self.state
        if self.saved_step == state.step and state.step:
            return
        if self.hosts.is_chief:
            metadata = {**self.metadata, "state": dataclasses.asdict(state)}
            best = state.best_step if self.recipe.run.save_best and state.best_loss is not None else None
            self.checkpoints.save(state.step, self.trainer.state_variables(), metadata, best)
        self.saved_at, self.saved_step = time.monotonic(), state.step

    def roll_back(self, progress: Progress) -> LoopState:
        """Returns to the last checkpoint, with a lower learning rate, or raises DivergedError."""
        run, at, rollbacks = self.recipe.run, self.state.step, self.state.rollbacks + 1
        self.checkpoints.wait()
        metadata = restore(self.checkpoints, self.trainer.state_variables(), self.hosts, log=progress.log)
        skipped = f"step {at}: {run.rollback_after} updates in a row were not finite"
        if rollbacks > run.max_rollbacks or metadata is None:
            why = "no checkpoint to return to" if metadata is None else f"{run.max_rollbacks} roll-backs did not help"
            raise DivergedError(
                f"{skipped} and {why}; lower --learning_rate or --max_grad_norm, or lengthen --warmup_steps"
            )
        self.state = LoopState(**metadata["state"])
        self.state.rollbacks = rollbacks
        scale = float(run.rollback_factor) ** rollbacks
        self.trainer.learning_rate_scale.assign(scale)
        self.timed_tokens, self.timed_seconds = 0, 0.0
        # Saved at once: the lower rate survives a kill.
        self.saved_step = -1
        self.save()
        progress.advance(self.state.step - at)
        progress.log(
            f"{skipped}; back to step {self.state.step} with the learning rate times {scale:g} "
            f"(roll-back {rollbacks} of {run.max_rollbacks})"
        )
        return self.state


def format_metrics(metrics: dict[str, float]) -> str:
    """Formats validation metrics: loss and bits per byte, or else all that the objective measures."""
    if "validation_bits_per_byte" in metrics:
        return (
            f"loss {metrics['validation_loss']:.4f} nats per token, "
            f"{metrics['validation_bits_per_byte']:.4f} bits per byte"
        )
    plain = {name.removeprefix("validation_"): value for name, value in metrics.items()}
    return ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in plain.items() if "/" not in name)
