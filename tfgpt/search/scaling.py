"""A scaling law from a handful of small runs: trains them, fits, and measures the prediction on a run held out.

    SCALING_DIR/runs/w64-t400000/   a run directory each; killed, it goes on where it was
    SCALING_DIR/runs.csv            width, parameters, tokens, FLOPs, measured and fitted loss
    SCALING_DIR/scaling.json        the law, the held-out run's error, the best size for the budget
    SCALING_DIR/scaling.png

Imports no TensorFlow before the first run.
"""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any, ClassVar

from tfgpt.common.atomic_files import atomic_write, write_csv, write_json
from tfgpt.common.errors import SettingError
from tfgpt.common.output_directories import working_directory
from tfgpt.common.settings import Settings, setting
from tfgpt.model.cost import count_parameters
from tfgpt.search.resumable_run import check_same_flags, finished_run
from tfgpt.search.scale_width import at_width
from tfgpt.search.scaling_law import FLOPS_PER_PARAMETER_AND_TOKEN, Run, ScalingLaw, fit
from tfgpt.training.train_config import TrainConfig, default_run_dir


@dataclasses.dataclass(frozen=True)
class ScalingConfig(Settings):
    """Which runs the law is fitted to, which one it must predict, and for what budget it is asked."""

    title: ClassVar[str] = "Scaling law"

    scaling_dir: str | None = setting(
        None,
        "Directory of the runs, runs.csv, scaling.json and scaling.png; the same command goes on. Not given: that of "
        "--run_dir, with -scaling behind it.",
        path=True,
    )
    scaling_runs: str = setting(
        "32:200000,32:800000,48:400000,64:200000,64:800000,96:400000",
        "The runs: width:tokens, with commas between them; heads and MLP grow with the width. Five or more.",
    )
    held_out_run: str = setting(
        "128:1600000", "A run, width:tokens, that the law is not fitted to: its loss is predicted, then measured."
    )
    budget_flops: float | None = setting(
        None,
        "Floating-point operations of a training, 6 x parameters x tokens, for which the best size is wanted; none: "
        "ten times the held-out run's.",
        minimum=1.0,
    )

    def check(self) -> None:
        runs = self.runs()
        if len({width for width, _ in runs}) < 2 or len({tokens for _, tokens in runs}) < 2 or len(runs) < 5:
            raise SettingError("scaling_runs", "five runs or more are needed, of two widths and two token counts")
        if self.held_out() in runs:
            raise SettingError("held_out_run", f"{self.held_out_run} is one of --scaling_runs")

    def runs(self) -> list[tuple[int, int]]:
        """(width, tokens) of each run, without repetitions."""
        return list(dict.fromkeys(width_and_tokens("scaling_runs", text) for text in self.scaling_runs.split(",")))

    def held_out(self) -> tuple[int, int]:
        """(width, tokens) of the run to predict."""
        return width_and_tokens("held_out_run", self.held_out_run)


def width_and_tokens(flag: str, text: str) -> tuple[int, int]:
    """`"64:400000"` → (64, 400000)."""
    match = re.fullmatch(r"\s*([1-9]\d{0,8}):([1-9]\d{0,17})\s*", text)
    if not match:
        raise SettingError(flag, f"{text!r} is not WIDTH:TOKENS, such as 64:400000")
    return int(match[1]), int(match[2])


@dataclasses.dataclass(frozen=True)
class Measured:
    """A run and what came of it.

    Attributes:
        width: its `hidden_dim`.
        run: parameters, tokens and loss.
        bits_per_byte: held out.
    """

    width: int
    run: Run
    bits_per_byte: float


def scale(scaling: ScalingConfig, settings: dict[str, Any]) -> int:
    """Trains what is missing, fits, predicts, writes and says.

    Args:
        scaling: the runs.
        settings: those of `train`, by group.

    Returns:
        The exit code.

    Raises:
        UserError: the settings are at fault, or the directory holds runs with others.
        RunError: a run failed.
    """
    whole = TrainConfig(**settings)
    base = settings["run"].run_dir or default_run_dir(whole.corpus.train_text)
    directory = Path(scaling.scaling_dir or f"{base}-scaling")
    wanted = [*scaling.runs(), scaling.held_out()]
    recipes = [recipe_of(whole, directory, width, tokens) for width, tokens in wanted]
    for recipe in recipes:
        check_same_flags("scaling_dir", recipe)
    with working_directory(directory, "scaling runs", "scaling_dir"):
        measured = []
        for number, (recipe, (width, _)) in enumerate(zip(recipes, wanted), 1):
            if not (recipe.run_dir / "result.json").is_file():
                print(f"Run {number} of {len(recipes)}: {recipe.run_dir}", flush=True)
            result = finished_run(recipe)
            if result is None:
                print("Stopped; the same command goes on where it stopped.", flush=True)
                return 0
            run = Run(result["parameters"], result["tokens"], result["validation_loss"])
            measured.append(Measured(width, run, result["validation_bits_per_byte"]))
            say(measured[-1])
        law = fit([each.run for each in measured[:-1]])
        tell(scaling, whole, directory, measured, law)
    return 0


def recipe_of(whole: TrainConfig, directory: Path, width: int, tokens: int) -> TrainConfig:
    """The recipe of one run: its width, its updates, its directory; one validation, at the end."""
    recipe = at_width(whole, width)
    steps = max(1, round(tokens / (recipe.batch.batch_size * recipe.batch.sequence_length)))
    changes: dict[str, Any] = {"run_dir": str(directory / "runs" / f"w{width}-t{tokens}"), "max_steps": steps}
    logging = dataclasses.replace(recipe.logging, validate_every=steps)
    return dataclasses.replace(recipe, run=dataclasses.replace(recipe.run, **changes), logging=logging)


def say(measured: Measured) -> None:
    """A line on a finished run."""
    run = measured.run
    words = f"width {measured.width}, {run.parameters:,} parameters, {run.tokens:,} tokens"
    print(f"  {words}: {run.loss:.4f} nats per token, {measured.bits_per_byte:.4f} bits per byte", flush=True)


def tell(
    scaling: ScalingConfig, whole: TrainConfig, directory: Path, measured: list[Measured], law: ScalingLaw
) -> None:
    """Writes the files and says what the law is, how well it predicts, and what is best for the budget."""
    *fitted, held_out = measured
    errors = [law.loss(each.run.parameters, each.run.tokens) / each.run.loss - 1 for each in fitted]
    predicted = law.loss(held_out.run.parameters, held_out.run.tokens)
    error = predicted / held_out.run.loss - 1
    per_byte = held_out.bits_per_byte / held_out.run.loss
    budget = scaling.budget_flops or 10 * flops(held_out.run)
    result: dict[str, Any] = {
        "law": dataclasses.asdict(law),
        "largest_error_of_the_fit": max(map(abs, errors)),
        "held_out": {**dataclasses.asdict(held_out.run), "predicted_loss": predicted, "relative_error": error},
        "budget_flops": budget,
    }
    print(
        f"L(N, D) = {law.irreducible:.4f} + {law.parameter_factor:.4g} / N^{law.parameter_exponent:.4f} + "
        f"{law.token_factor:.4g} / D^{law.token_exponent:.4f} nats per token; largest error of the fit "
        f"{100 * max(map(abs, errors)):.2f}%"
    )
    print(
        f"Held out: width {held_out.width}, {held_out.run.parameters:,} parameters, {held_out.run.tokens:,} tokens: "
        f"predicted {predicted:.4f}, measured {held_out.run.loss:.4f} nats per token ({predicted * per_byte:.4f}, "
        f"{held_out.bits_per_byte:.4f} bits per byte); error {100 * error:+.2f}%"
    )
    if law.parameter_exponent > 0 and law.token_exponent > 0:
        size, tokens = law.compute_optimal(budget)
        width = nearest_width(whole, size, vocabulary_of(directory, scaling))
        best = {"parameters": size, "tokens": tokens, "loss": law.loss(size, tokens), "hidden_dim": width}
        result["compute_optimal"] = best
        updates = math.ceil(tokens / (whole.batch.batch_size * whole.batch.sequence_length))
        print(
            f"Best for {budget:.3g} FLOPs (6 N D): {size:,.0f} parameters and {tokens:,.0f} tokens, loss "
            f"{best['loss']:.4f} expected; about --hidden_dim={width} --max_steps={updates}"
        )
    else:
        print("More parameters or more tokens made no difference: there is no best size; spread --scaling_runs wider")
    write_table(directory / "runs.csv", measured, law)
    write_json(directory / "scaling.json", result)
    draw(directory / "scaling.png", measured, law, budget)
    print(f"Wrote {directory / 'runs.csv'}, {directory / 'scaling.json'}, {directory / 'scaling.png'}")


def flops(run: Run) -> float:
    """What the run cost, as Hoffmann et al. count: 6 N D."""
    return FLOPS_PER_PARAMETER_AND_TOKEN * run.parameters * run.tokens


def vocabulary_of(directory: Path, scaling: ScalingConfig) -> int:
    """The vocabulary that all runs share."""
    from tfgpt.model.checkpoints.huggingface import load_config

    width, tokens = scaling.held_out()
    return load_config(directory / "runs" / f"w{width}-t{tokens}" / "model").vocabulary_size


def nearest_width(whole: TrainConfig, parameters: float, vocabulary_size: int) -> int:
    """The width, in steps of one head, whose model has about so many parameters."""
    config = whole.decoder_config(vocabulary_size)
    shared = config.num_query_heads if config.num_key_value_heads == 1 else config.num_key_value_heads
    step = config.hidden_dim // math.gcd(config.num_query_heads, shared, config.intermediate_dim, config.hidden_dim)

    def distance(width: int) -> float:
        return abs(math.log(count_parameters(at_width(whole, width).decoder_config(vocabulary_size)) / parameters))

    width = step
    while distance(width + step) < distance(width):
        width += step
    return width


def write_table(path: Path, measured: list[Measured], law: ScalingLaw) -> None:
    """runs.csv; the last row is the held-out run."""
    names = ["width", "parameters", "tokens", "flops", "validation_loss", "law", "validation_bits_per_byte", "held_out"]
    rows = []
    for each in measured:
        run, expected = each.run, law.loss(each.run.parameters, each.run.tokens)
        last = "true" if each is measured[-1] else "false"
        rows.append([each.width, run.parameters, run.tokens, flops(run), run.loss, expected, each.bits_per_byte, last])
    write_csv(path, names, rows)


def draw(path: Path, measured: list[Measured], law: ScalingLaw, budget: float) -> None:
    """A PNG: loss over tokens by size, with the law's lines; and the law along the size at three budgets."""
    import matplotlib

    matplotlib.use("Agg")
    import numpy as np
    from matplotlib import pyplot

    *fitted, held_out = measured
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.8), constrained_layout=True)
    sizes = sorted({each.run.parameters for each in measured})
    tokens = np.geomspace(min(e.run.tokens for e in measured) / 1.5, max(e.run.tokens for e in measured) * 1.5, 100)
    for number, size in enumerate(sizes):
        color = pyplot.get_cmap("viridis")(number / max(1, len(sizes) - 1) * 0.9)
        left.plot(tokens, [law.loss(size, count) for count in tokens], color=color, linewidth=1, label=f"{size:,}")
        mine = [each.run for each in fitted if each.run.parameters == size]
        left.plot([run.tokens for run in mine], [run.loss for run in mine], "o", color=color)
    left.plot([held_out.run.tokens], [held_out.run.loss], "*", color="crimson", markersize=14, label="held out")
    left.set(xscale="log", xlabel="training tokens", ylabel="held-out loss (nats per token)", title="Runs and law")
    left.legend(title="parameters", fontsize=8)
    for factor in (0.01, 0.1, 1.0):
        flop = budget * factor
        along = np.geomspace(min(sizes) / 3, max(sizes) * 30, 200)
        line = [law.loss(size, flop / (FLOPS_PER_PARAMETER_AND_TOKEN * size)) for size in along]
        right.plot(along, line, linewidth=1, label=f"{flop:.2g} FLOPs")
        if law.parameter_exponent > 0 and law.token_exponent > 0:
            best = law.compute_optimal(flop)
            right.plot([best[0]], [law.loss(*best)], "k*")
    right.set(xscale="log", xlabel="parameters", ylabel="loss by the law", title="Best size of a budget (star)")
    right.set_ylim(law.irreducible, 1.3 * max(each.run.loss for each in measured))
    right.legend(fontsize=8)
    for axis in (left, right):
        axis.grid(alpha=0.3)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    pyplot.close(figure)
