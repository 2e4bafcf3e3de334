"""How much activations and logits change in the first updates, by width: flat is what carries over.

Yang et al. 2022 (arXiv:2203.03466, appendix D.1 and figure 5): in the maximal update parametrization the size of a
coordinate's change after a few updates does not depend on the width; in the standard one it grows, first of all in
the logits, and a learning rate that was best for a small model makes a wide one diverge.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np

from tfgpt.common.atomic_files import atomic_write
from tfgpt.pipeline.prepare import PreparedData
from tfgpt.search.resettable_trainer import ResettableTrainer
from tfgpt.search.scale_width import at_width, with_parametrization
from tfgpt.training.train_config import TrainConfig


@dataclasses.dataclass(frozen=True)
class Change:
    """How far an activation moved.

    Attributes:
        parametrization: "standard" or "maximal_update".
        width: `hidden_dim`.
        activation: "embedding", "block_0", …, "final_norm" (without the width's factor in its scale), "logits".
        step: updates done.
        size: root of the mean of squares of the activation's change since the beginning, over one batch.
    """

    parametrization: str
    width: int
    activation: str
    step: int
    size: float


def coordinate_check(
    recipe: TrainConfig,
    data: PreparedData,
    widths: Sequence[int],
    parametrizations: Sequence[str] = ("standard", "maximal_update"),
    steps: int = 4,
) -> list[Change]:
    """Trains every width for a few updates and measures how far its activations moved.

    Args:
        recipe: model and learning rate; `at_width` says how it grows.
        data: tokenizer and shards.
        widths: values of `hidden_dim`.
        parametrizations: which to compare.
        steps: updates.
    """
    changes = []
    for name in parametrizations:
        for width in widths:
            wide = with_parametrization(at_width(recipe, width), name)
            keras.backend.clear_session()
            changes += changes_of(ResettableTrainer(wide, data), name, width, recipe.optimizer.learning_rate, steps)
    return changes


def changes_of(
    reusable: ResettableTrainer, parametrization: str, width: int, learning_rate: float, steps: int
) -> list[Change]:
    """One model's changes, after 1, 2, …, `steps` updates."""
    decoder = reusable.trainer.decoder
    names = ["embedding", *(f"block_{number}" for number in range(len(decoder.blocks))), "final_norm", "logits"]
    outputs = [
        decoder.blocks[0].input[0],
        *(block.output for block in decoder.blocks),
        decoder.final_norm.output,
        decoder.output,
    ]
    watcher = keras.Model(decoder.inputs, outputs)
    batch = reusable.first_batch()
    inputs = {name: batch[name] for name in ("token_ids", "positions", "segment_ids") if name in batch}

    def activations() -> list[np.ndarray]:
        # The last norm is looked at before the factor that belongs to the logits.
        values = [np.asarray(value, np.float64) for value in watcher(inputs)]
        values[-2] = values[-2] / decoder.config.final_norm_initial_scale
        return values

    iterator = reusable.begin(learning_rate)
    before, changes = activations(), []
    for step in range(1, steps + 1):
        reusable.trainer.train_steps(iterator, 1)
        for name, old, new in zip(names, before, activations(), strict=True):
            size = float(np.sqrt(np.mean(np.square(new - old))))
            changes.append(Change(parametrization, width, name, step, size))
    return changes


def slope(changes: Sequence[Change], parametrization: str, activation: str, step: int) -> float:
    """The exponent e of size ~ width^e, by least squares on logarithms: 0 is flat."""
    points = [
        (change.width, change.size)
        for change in changes
        if (change.parametrization, change.activation, change.step) == (parametrization, activation, step)
    ]
    return float(np.polyfit(np.log([width for width, _ in points]), np.log([size for _, size in points]), 1)[0])


def table(changes: Sequence[Change]) -> str:
    """The slopes after the last update, as Markdown: a line an activation, a column a parametrization."""
    last = max(change.step for change in changes)
    kinds = list(dict.fromkeys(change.parametrization for change in changes))
    names = list(dict.fromkeys(change.activation for change in changes))
    lines = [f"| change after {last} updates ~ width^… | {' | '.join(kinds)} |", "| --- |" + " --- |" * len(kinds)]
    for name in names:
        lines.append(f"| {name} | " + " | ".join(f"{slope(changes, kind, name, last):+.2f}" for kind in kinds) + " |")
    return "\n".join(lines)


def draw(changes: Sequence[Change], path: Path) -> None:
    """A PNG: a panel a parametrization and activation, the size of the change over the width, a line an update."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    kinds = list(dict.fromkeys(change.parametrization for change in changes))
    names = list(dict.fromkeys(change.activation for change in changes))
    steps = sorted({change.step for change in changes})
    shape = {"figsize": (2.9 * len(names), 3.2 * len(kinds)), "sharex": True, "sharey": "col", "squeeze": False}
    figure, axes = pyplot.subplots(len(kinds), len(names), constrained_layout=True, **shape)
    figure.suptitle("Coordinate check: root mean square of the change of an activation since the beginning")
    for row, kind in zip(axes, kinds):
        for axis, name in zip(row, names):
            for number, step in enumerate(steps):
                line = [
                    (change.width, change.size)
                    for change in changes
                    if (change.parametrization, change.activation, change.step) == (kind, name, step)
                ]
                color = pyplot.get_cmap("viridis")(number / max(1, len(steps) - 1))
                axis.loglog(*zip(*line), marker="o", markersize=3, color=color, label=f"{step}", base=2)
            axis.set_title(f"{kind}: {name}", fontsize=9)
            axis.set_xlabel("width", fontsize=8)
            axis.grid(alpha=0.3)
    axes[0, 0].legend(title="updates", fontsize=8)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    pyplot.close(figure)
