"""A scaling law from a few small runs: training, fit, and the error of the prediction on a held-out run.

    SCALING_DIR/runs/w64-t400000/   the run directory of a width and token count
    SCALING_DIR/runs.csv            width, parameters, tokens, FLOPs, measured and fitted loss
    SCALING_DIR/scaling.json        the law, the held-out run's error, the best size for the budget
    SCALING_DIR/scaling.png

No TensorFlow before the first run.
"""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any, ClassVar

from tfgpt.common.atomic_files import atomic_write, read_json, write_csv, write_json
from tfgpt.common.errors import SettingError
from tfgpt.common.output_directories import working_directory
from tfgpt.common.settings import Settings, setting
from tfgpt.model.cost import count_parameters
from tfgpt.search.cached_run import check_same_flags, run_once
from tfgpt.search.scaling_law import FLOPS_PER_PARAMETER_AND_TOKEN, Run, ScalingLaw, fit
from tfgpt.training.train_config import TrainConfig, default_run_dir


@dataclasses.dataclass(frozen=True)
class ScalingConfig(Settings):
    """The runs of a scaling law, the held-out run and the budget.

    Example:

    >>> ScalingConfig(held_out_run="256:3200000").held_out()
    (256, 3200000)
    """

    title: ClassVar[str] = "Scaling law"

    scaling_dir: str | None = setting(
        None,
        "Directory of the runs, runs.csv, scaling.json and scaling.png; the same command continues. Default: "
        "--run_dir with the suffix -scaling.",
        path=True,
    )
    scaling_runs: str = setting(
        "32:200000,32:800000,48:400000,64:200000,64:800000,96:400000",
        "The runs: width:tokens, separated by commas, five or more. Heads and MLP grow with the width.",
    )
    held_out_run: str = setting(
        "128:1600000", "A run, width:tokens, that is not used in the fit: its loss is predicted, then measured."
    )
    budget_flops: float | None = setting(
        None,
        "Floating-point operations of a training, 6 x parameters x tokens, for which to compute the best size; none: "
        "ten times those of the held-out run.",
        minimum=1.0,
    )

    def check(self) -> None:
        runs = self.runs()
        if len({width for width, _ in runs}) < 2 or len({tokens for _, tokens in runs}) < 2 or len(runs) < 5:
            raise SettingError("scaling_runs", "five runs or more are required, of two widths and two token counts")
        if self.held_out() in runs:
            raise SettingError("held_out_run", f"{self.held_out_run} is one of --scaling_runs")

    def runs(self) -> list[tuple[int, int]]:
        """Returns (width, tokens) of each run, without repetitions."""
        return list(dict.fromkeys(width_and_tokens("scaling_runs", text) for text in self.scaling_runs.split(",")))

    def held_out(self) -> tuple[int, int]:
        """Returns (width, tokens) of the held-out run."""
        return width_and_tokens("held_out_run", self.held_out_run)


def width_and_tokens(flag: str, text: str) -> tuple[int, int]:
    match = re.fullmatch(r"\s*([1-9]\d{0,8}):([1-9]\d{0,17})\s*", text)
    if not match:
        raise SettingError(flag, f"{text!r} is not WIDTH:TOKENS, such as 64:400000")
    return int(match[1]), int(match[2])


def scale(scaling: ScalingConfig, settings: dict[str, Any]) -> int:
    """Trains the missing runs, fits the law, predicts the held-out run and writes the files."""
    base = TrainConfig(**settings)
    run_dir = base.run.run_dir or default_run_dir(base.corpus.train_text)
    directory = Path(scaling.scaling_dir or f"{run_dir}-scaling")
    sizes = [*scaling.runs(), scaling.held_out()]
    configs = []
    for width, tokens in sizes:
        config = at_width(base, width)
        steps = max(1, round(tokens / (config.batch.batch_size * config.batch.sequence_length)))
        run = dataclasses.replace(config.run, run_dir=str(directory / f"runs/w{width}-t{tokens}"), max_steps=steps)
        logging = dataclasses.replace(config.logging, validate_every=steps)  # One validation, at the end.
        configs.append(dataclasses.replace(config, run=run, logging=logging))
    for config in configs:
        check_same_flags("scaling_dir", config)
    with working_directory(directory, "scaling runs", "scaling_dir"):
        runs = []
        for number, (config, (width, _)) in enumerate(zip(configs, sizes), 1):
            print(f"Run {number} of {len(configs)}: {config.run_dir}", flush=True)
            result = run_once(config)
            if result is None:
                print("Stopped; the same command continues.", flush=True)
                return 0
            per_byte = result["validation_bits_per_byte"]
            runs.append(Run(result["parameters"], result["tokens"], result["validation_loss"], width, per_byte))
            print(f"  {runs[-1]}", flush=True)
        record = read_json(configs[-1].run_dir / "model" / "training.json")
        report(scaling, base, directory, runs, record["decoder"]["vocabulary_size"])
    return 0


def report(scaling: ScalingConfig, base: TrainConfig, directory: Path, runs: list[Run], vocabulary_size: int) -> None:
    *fitted, held_out = runs
    law = fit(fitted)
    largest_error = max(abs(law.loss(run.parameters, run.tokens) / run.loss - 1) for run in fitted)
    predicted = law.loss(held_out.parameters, held_out.tokens)
    error = predicted / held_out.loss - 1
    budget = scaling.budget_flops or 10 * held_out.flops
    result: dict[str, Any] = {
        "law": dataclasses.asdict(law),
        "largest_error_of_the_fit": largest_error,
        "held_out": {**dataclasses.asdict(held_out), "predicted_loss": predicted, "relative_error": error},
        "budget_flops": budget,
    }
    print(
        f"L(N, D) = {law.irreducible:.4f} + {law.parameter_factor:.4g} / N^{law.parameter_exponent:.4f} + "
        f"{law.token_factor:.4g} / D^{law.token_exponent:.4f} nats per token; largest error of the fit "
        f"{100 * largest_error:.2f}%"
    )
    print(
        f"Held out: {held_out}: predicted {predicted:.4f}, measured {held_out.loss:.4f} nats per token; error "
        f"{100 * error:+.2f}%"
    )
    if law.has_optimum:
        size, tokens = law.compute_optimal(budget)
        width = nearest_width(base, size, vocabulary_size)
        best = {"parameters": size, "tokens": tokens, "loss": law.loss(size, tokens), "hidden_dim": width}
        result["compute_optimal"] = best
        updates = math.ceil(tokens / (base.batch.batch_size * base.batch.sequence_length))
        print(
            f"Best for {budget:.3g} FLOPs (6 N D): {size:,.0f} parameters and {tokens:,.0f} tokens, loss "
            f"{best['loss']:.4f} expected; about --hidden_dim={width} --max_steps={updates}"
        )
    else:
        print("More parameters or tokens made no difference, so that no size is best; spread --scaling_runs wider")
    names = ["width", "parameters", "tokens", "flops", "validation_loss", "law", "validation_bits_per_byte", "held_out"]
    rows = [
        [run.width, run.parameters, run.tokens, run.flops, run.loss, law.loss(run.parameters, run.tokens),
         run.bits_per_byte, "true" if run is held_out else "false"] for run in runs
    ]  # fmt: skip
    write_csv(directory / "runs.csv", names, rows)
    write_json(directory / "scaling.json", result)
    draw(directory / "scaling.png", runs, law, budget)
    print(f"Wrote {directory / 'runs.csv'}, {directory / 'scaling.json'}, {directory / 'scaling.png'}")


def at_width(config: TrainConfig, width: int) -> TrainConfig:
    """Returns the configuration with another `hidden_dim`; the inside of the MLP grows in proportion.

    The number of heads grows, except that of a single key-value head. With --base_head_dim the heads become wider
    instead. Sizes that do not come out as whole numbers are a SettingError.
    """
    now = config.decoder_config(vocabulary_size=1024)

    def scaled(name: str) -> int:
        value = getattr(now, name) * width
        if value % now.hidden_dim:
            problem = f"{name} = {getattr(now, name)} at --hidden_dim={now.hidden_dim} does not scale to a whole number"
            raise SettingError("hidden_dim", f"{width}: {problem}")
        return value // now.hidden_dim

    changes = {"hidden_dim": width, "intermediate_dim": scaled("intermediate_dim")}
    if config.parametrization.base_head_dim is None:
        shared = 1 if now.num_key_value_heads == 1 else scaled("num_key_value_heads")
        heads = {"num_query_heads": scaled("num_query_heads"), "num_key_value_heads": shared}
        changes |= {**heads, "head_dim": now.head_dim}
    else:
        heads = {"num_query_heads": now.num_query_heads, "num_key_value_heads": now.num_key_value_heads}
        changes |= {**heads, "head_dim": scaled("head_dim")}
    return dataclasses.replace(config, model={**config.model, **changes})


def nearest_width(base: TrainConfig, parameters: float, vocabulary_size: int) -> int:
    config = base.decoder_config(vocabulary_size)
    shared = config.num_query_heads if config.num_key_value_heads == 1 else config.num_key_value_heads
    step = config.hidden_dim // math.gcd(config.num_query_heads, shared, config.intermediate_dim, config.hidden_dim)

    def distance(width: int) -> float:
        return abs(math.log(count_parameters(at_width(base, width).decoder_config(vocabulary_size)) / parameters))

    width = step
    while distance(width + step) < distance(width):
        width += step
    return width


def draw(path: Path, runs: list[Run], law: ScalingLaw, budget: float) -> None:
    """Draws loss over tokens by size with the law's lines, and the law over the size at three budgets."""
    import matplotlib

    matplotlib.use("Agg")
    import numpy as np
    from matplotlib import pyplot

    *fitted, held_out = runs
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.8), constrained_layout=True)
    sizes = sorted({run.parameters for run in runs})
    tokens = np.geomspace(min(run.tokens for run in runs) / 1.5, max(run.tokens for run in runs) * 1.5, 100)
    for number, size in enumerate(sizes):
        color = pyplot.get_cmap("viridis")(number / max(1, len(sizes) - 1) * 0.9)
        left.plot(tokens, [law.loss(size, count) for count in tokens], color=color, linewidth=1, label=f"{size:,}")
        points = [run for run in fitted if run.parameters == size]
        left.plot([run.tokens for run in points], [run.loss for run in points], "o", color=color)
    left.plot([held_out.tokens], [held_out.loss], "*", color="crimson", markersize=14, label="held out")
    left.set(xscale="log", xlabel="training tokens", ylabel="held-out loss (nats per token)", title="Runs and law")
    left.legend(title="parameters", fontsize=8)
    for factor in (0.01, 0.1, 1.0):
        flops = budget * factor
        along = np.geomspace(min(sizes) / 3, max(sizes) * 30, 200)
        line = [law.loss(size, flops / (FLOPS_PER_PARAMETER_AND_TOKEN * size)) for size in along]
        right.plot(along, line, linewidth=1, label=f"{flops:.2g} FLOPs")
        if law.has_optimum:
            best = law.compute_optimal(flops)
            right.plot([best[0]], [law.loss(*best)], "k*")
    right.set(xscale="log", xlabel="parameters", ylabel="loss by the law", title="Best size of a budget (star)")
    right.set_ylim(law.irreducible, 1.3 * max(run.loss for run in runs))
    right.legend(fontsize=8)
    for axis in (left, right):
        axis.grid(alpha=0.3)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    pyplot.close(figure)
