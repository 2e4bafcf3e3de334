"""Learning rates across widths: coordinate check and sweep, with plots (arXiv:2203.03466).

    python scripts/learning_rate_transfer.py --flagfile=configs/transfer.cfg --output=transfer

Trains the model of the flags at several widths in the standard and the maximal update parametrization, and writes
coordinate_check.png, learning_rate_transfer.png and learning_rate_transfer.csv into the output directory. It takes all
flags of `tfgpt.train`. The last line is JSON.

In the maximal update parametrization the change of an activation after a few updates does not depend on the width. In
the standard one it grows, first in the logits, and the best learning rate of a small model makes a wide one diverge.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tfgpt.common.atomic_files import atomic_write, write_csv
from tfgpt.common.command_line import Command
from tfgpt.common.errors import SettingError
from tfgpt.common.settings import Settings, setting
from tfgpt.common.tf_logging import import_tensorflow
from tfgpt.search.scaling import at_width
from tfgpt.training.train_config import GROUPS, TrainConfig

PARAMETRIZATIONS = ("standard", "maximal_update")


@dataclasses.dataclass(frozen=True)
class TransferConfig(Settings):
    """The widths and learning rates that are compared."""

    title: ClassVar[str] = "Transfer"

    output: str = setting("transfer", "Directory of the plots and the table.")
    widths: str = setting("64,128,256", "Values of --hidden_dim, that of the tuned model first.")
    learning_rates: str = setting(
        "0.004,0.008,0.016,0.032,0.064", "Learning rates of the sweep; empty: only the coordinate check."
    )
    seeds: int = setting(1, "Runs of each point of the sweep.", minimum=1)
    check_steps: int = setting(4, "Updates of the coordinate check.", minimum=1)

    def check(self) -> None:
        self.numbers("learning_rates", float)
        if len(self.numbers("widths", int)) < 2:
            raise SettingError("widths", "two or more are required")

    def numbers(self, name: str, kind: type) -> list[Any]:
        """Returns the comma-separated numbers of a flag."""
        try:
            found = [kind(word) for word in getattr(self, name).split(",") if word]
        except ValueError as error:
            raise SettingError(name, f"{getattr(self, name)!r} is not numbers separated by commas") from error
        if any(number <= 0 for number in found):
            raise SettingError(name, "must be above 0")
        return found


class ResettableTrainer:
    """A trainer that restarts with another learning rate without a new trace.

    `reset` replaces --learning_rate; --adam_learning_rate keeps its ratio to it.
    """

    def __init__(self, config: TrainConfig, data: Any, parametrization: str, seed: int):
        import keras
        import tensorflow as tf

        from tfgpt.training.compilation import choose_compilation
        from tfgpt.training.trainer_builder import build_trainer_and_data

        keras.backend.clear_session()
        adam = config.optimizer.adam_learning_rate
        ratio = None if adam is None else adam / config.optimizer.learning_rate
        config = dataclasses.replace(
            config,
            optimizer=dataclasses.replace(config.optimizer, learning_rate=1.0, adam_learning_rate=ratio),
            parametrization=dataclasses.replace(config.parametrization, parametrization=parametrization),
            run=dataclasses.replace(config.run, seed=seed),
        )
        self.trainer, self.data = build_trainer_and_data(config, data, tf.distribute.get_strategy())
        choose_compilation(self.trainer, self.data.batches, config.step.compile, log=lambda line: None)
        self.state = {name: variable.numpy() for name, variable in self.trainer.state_variables().items()}

    def reset(self, learning_rate: float) -> Iterator[Any]:
        """Restores the initial weights and returns the batches from the first one."""
        for name, variable in self.trainer.state_variables().items():
            variable.assign(self.state[name])
        self.trainer.learning_rate_scale.assign(learning_rate)
        return self.data.batches(0)

    def validation_loss(self) -> float:
        """Returns the loss on the validation set in nats per token, infinite if the run diverged."""
        validation = self.data.validation
        loss = float(self.trainer.evaluator.evaluate(validation.dataset, validation.steps)["loss"])
        return loss if math.isfinite(loss) else math.inf

    def activation_changes(self, learning_rate: float, steps: int) -> dict[str, list[float]]:
        """Returns activation → root mean square of its change after 1, 2, …, `steps` updates, over one batch."""
        import keras

        decoder = self.trainer.decoder
        names = ["embedding", *(f"block_{number}" for number in range(len(decoder.blocks))), "final_norm", "logits"]
        blocks = [decoder.blocks[0].input[0], *(block.output for block in decoder.blocks)]
        model = keras.Model(decoder.inputs, [*blocks, decoder.final_norm.output, decoder.output])
        batch = next(self.data.batches(0))
        inputs = {name: batch[name] for name in ("token_ids", "positions", "segment_ids") if name in batch}

        def activations() -> list[np.ndarray]:
            values = [np.asarray(value, np.float64) for value in model(inputs)]
            values[-2] = values[-2] / decoder.config.final_norm_initial_scale  # The factor belongs to the logits.
            return values

        batches, changes = self.reset(learning_rate), {name: [] for name in names}  # type: ignore[var-annotated]
        before = activations()
        for _ in range(steps):
            self.trainer.train_steps(batches, 1)
            for name, old, new in zip(names, before, activations(), strict=True):
                changes[name].append(float(np.sqrt(np.mean(np.square(new - old)))))
        return changes


def coordinate_check(config: TrainConfig, data: Any, widths: list[int], steps: int) -> dict[str, dict[str, Any]]:
    """Returns parametrization → activation → for each update: width → size of the change."""
    found: dict[str, dict[str, Any]] = {name: {} for name in PARAMETRIZATIONS}
    for name, width in itertools.product(PARAMETRIZATIONS, widths):
        trainer = ResettableTrainer(at_width(config, width), data, name, config.run.seed)
        for activation, sizes in trainer.activation_changes(config.optimizer.learning_rate, steps).items():
            for line, size in zip(found[name].setdefault(activation, [{} for _ in range(steps)]), sizes, strict=True):
                line[width] = size
    return found


def slope(sizes: dict[int, float]) -> float:
    """Returns the exponent e of size ~ width^e, by least squares on logarithms; 0 is flat."""
    return float(np.polyfit(np.log(list(sizes)), np.log(list(sizes.values())), 1)[0])


def sweep(config: TrainConfig, data: Any, parametrization: str, widths: list[int], rates: list[float], seeds: int = 1
          ) -> dict[int, dict[float, float]]:  # fmt: skip
    """Returns width → learning rate → mean validation loss over the seeds."""
    losses = {width: dict.fromkeys(rates, 0.0) for width in widths}
    for width, seed in itertools.product(widths, range(seeds)):
        trainer = ResettableTrainer(at_width(config, width), data, parametrization, config.run.seed + seed)
        for rate in rates:
            trainer.trainer.train_steps(trainer.reset(rate), config.run.max_steps)
            loss = trainer.validation_loss()
            losses[width][rate] += loss / seeds
            words = f"{parametrization}, width {width}, learning rate {rate:g}"
            print(f"{words}: {loss:.4f} nats per token", flush=True)
    return losses


def best_rate(losses: dict[float, float]) -> float:
    return min(losses, key=lambda rate: losses[rate])


def draw(path: Path, panels: dict[str, dict[Any, dict[Any, float]]], columns: int, labels: dict[str, str]) -> None:
    """Draws a PNG with panels of lines; `panels` is title → label → x → y."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = math.ceil(len(panels) / columns)
    size = (1 + 3.2 * columns, 4.0 * rows)
    figure, axes = pyplot.subplots(rows, columns, figsize=size, sharey="col", squeeze=False, constrained_layout=True)
    for axis, (title, lines) in zip(axes.flat, panels.items()):
        for label, line in lines.items():
            finite = {x: y for x, y in line.items() if math.isfinite(y)}
            axis.loglog(list(finite), list(finite.values()), marker="o", markersize=4, label=label, base=2)
        axis.set(title=title, **labels)
        axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=8)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def run(transfer: TransferConfig, **settings: Any) -> None:
    """Prepares the text, compares and draws."""
    config = TrainConfig(**settings)
    widths, rates = transfer.numbers("widths", int), transfer.numbers("learning_rates", float)
    for width in widths:
        at_width(config, width).check()
    import_tensorflow()
    from tfgpt.pipeline.prepare import prepare

    output = Path(transfer.output)
    data = prepare(config.corpus, config.tokenizer_config())
    changes = coordinate_check(config, data, widths, transfer.check_steps)
    panels, result = {}, {"slopes": {}, "best_learning_rate": {}}  # type: ignore[var-annotated]
    for name, activations in changes.items():
        slopes = {activation: slope(lines[-1]) for activation, lines in activations.items()}
        result["slopes"][name] = slopes
        exponents = ", ".join(f"{activation} {exponent:+.2f}" for activation, exponent in slopes.items())
        print(f"{name}: change after {transfer.check_steps} updates ~ width^…: {exponents}", flush=True)
        for activation, lines in activations.items():
            panels[f"{name}: {activation}"] = {f"{step} updates": line for step, line in enumerate(lines, 1)}
    axes = {"xlabel": "width", "ylabel": "root mean square of the change"}
    draw(output / "coordinate_check.png", panels, len(panels) // len(changes), axes)
    if rates:
        losses = {name: sweep(config, data, name, widths, rates, transfer.seeds) for name in PARAMETRIZATIONS}
        axes = {"xlabel": "learning rate", "ylabel": "held-out loss (nats per token)"}
        draw(output / "learning_rate_transfer.png", losses, len(losses), axes)
        table = [(name, width, rate, loss) for name, found in losses.items() for width, line in found.items()
                 for rate, loss in line.items()]  # fmt: skip
        write_csv(output / "learning_rate_transfer.csv", ["parametrization", "width", "learning_rate", "loss"], table)
        for name, found in losses.items():
            best = result["best_learning_rate"][name] = {width: best_rate(line) for width, line in found.items()}
            for width, line in found.items():
                words = f"{name}, width {width}: best learning rate {best[width]:.3g}, loss {line[best[width]]:.4f}"
                print(f"{words}; at that of width {widths[0]}: {line[best[widths[0]]]:.4f}")
    print(json.dumps(result))


COMMAND = Command("learning_rate_transfer", __doc__, (TransferConfig, *GROUPS), run)

if __name__ == "__main__":
    sys.exit(COMMAND.run())
