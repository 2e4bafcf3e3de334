"""Whether the best learning rate of a narrow model is a wide one's as well: the same sweep at several widths."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import keras

from tfgpt.common.atomic_files import atomic_write, write_csv
from tfgpt.pipeline.prepare import PreparedData
from tfgpt.search.resettable_trainer import ResettableTrainer
from tfgpt.search.scale_width import at_width, with_parametrization
from tfgpt.training.train_config import TrainConfig


@dataclasses.dataclass(frozen=True)
class Point:
    """One short run.

    Attributes:
        parametrization: "standard" or "maximal_update".
        width: `hidden_dim`.
        learning_rate: the highest one of the run.
        seed: of initial weights and order of the data.
        loss: held out, nats per token; infinite where the run diverged.
    """

    parametrization: str
    width: int
    learning_rate: float
    seed: int
    loss: float


def sweep(
    recipe: TrainConfig,
    data: PreparedData,
    widths: Sequence[int],
    learning_rates: Sequence[float],
    parametrizations: Sequence[str] = ("standard", "maximal_update"),
    seeds: Sequence[int] = (0,),
    report: Callable[[Point], None] = lambda point: None,
) -> list[Point]:
    """Trains every width with every learning rate, all else equal; a width is traced once for all its rates.

    Args:
        recipe: model, schedule and --max_steps; `at_width` says how the model grows.
        data: tokenizer and shards.
        widths: values of `hidden_dim`.
        learning_rates: values of --learning_rate; --adam_learning_rate keeps its ratio.
        parametrizations: which to compare.
        seeds: one run of each.
        report: is told every point.
    """
    points = []
    for name in parametrizations:
        for width in widths:
            for seed in seeds:
                wide = with_parametrization(at_width(recipe, width), name)
                wide = dataclasses.replace(wide, run=dataclasses.replace(wide.run, seed=seed))
                keras.backend.clear_session()
                reusable = ResettableTrainer(wide, data)
                for rate in learning_rates:
                    reusable.trainer.train_steps(reusable.begin(rate), recipe.run.max_steps)
                    loss = reusable.validation_loss()
                    points.append(Point(name, width, rate, seed, loss if math.isfinite(loss) else math.inf))
                    report(points[-1])
    return points


def mean_losses(points: Sequence[Point], parametrization: str, width: int) -> dict[float, float]:
    """Learning rate → loss, averaged over seeds."""
    losses: dict[float, list[float]] = {}
    for point in points:
        if (point.parametrization, point.width) == (parametrization, width):
            losses.setdefault(point.learning_rate, []).append(point.loss)
    return {rate: sum(found) / len(found) for rate, found in sorted(losses.items())}


def best_learning_rate(points: Sequence[Point], parametrization: str, width: int) -> float:
    """The learning rate of the lowest mean loss."""
    losses = mean_losses(points, parametrization, width)
    return min(losses, key=lambda rate: losses[rate])


def table(points: Sequence[Point]) -> str:
    """Markdown: for every parametrization and width the best rate, its loss, and the loss at the first width's rate."""
    kinds = list(dict.fromkeys(point.parametrization for point in points))
    widths = sorted({point.width for point in points})
    lines = [f"| parametrization | width | best learning rate | loss there | loss at the best of width {widths[0]} |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for kind in kinds:
        first = best_learning_rate(points, kind, widths[0])
        for width in widths:
            losses, best = mean_losses(points, kind, width), best_learning_rate(points, kind, width)
            lines.append(f"| {kind} | {width} | {best:.3g} | {losses[best]:.4f} | {losses[first]:.4f} |")
    return "\n".join(lines)


def write(points: Sequence[Point], path: Path) -> None:
    """All points as CSV."""
    names = [field.name for field in dataclasses.fields(Point)]
    write_csv(path, names, (dataclasses.astuple(point) for point in points))


def draw(points: Sequence[Point], path: Path) -> None:
    """A PNG: loss over learning rate, a panel a parametrization, a line a width, the lowest point marked."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    kinds = list(dict.fromkeys(point.parametrization for point in points))
    widths = sorted({point.width for point in points})
    figure, axes = pyplot.subplots(
        1, len(kinds), figsize=(5.5 * len(kinds), 4.5), sharey=True, squeeze=False, constrained_layout=True
    )
    for axis, kind in zip(axes[0], kinds):
        for number, width in enumerate(widths):
            losses = mean_losses(points, kind, width)
            color = pyplot.get_cmap("viridis")(number / max(1, len(widths) - 1) * 0.9)
            finite = {rate: loss for rate, loss in losses.items() if math.isfinite(loss)}
            axis.plot(list(finite), list(finite.values()), marker="o", markersize=4, color=color, label=str(width))
            best = best_learning_rate(points, kind, width)
            axis.plot([best], [losses[best]], marker="*", markersize=14, color=color)
        axis.set_xscale("log", base=2)
        axis.set_title(kind)
        axis.set_xlabel("learning rate")
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("held-out loss (nats per token)")
    axes[0, 0].legend(title="width")
    lowest = min(point.loss for point in points)
    axes[0, 0].set_ylim(lowest - 0.1, lowest + 1.6)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    pyplot.close(figure)
