"""What came of a search, for people: a table on the console, report.html, and TensorBoard's HParams page.

report.html needs no network: plotly's script is inside. Everything is made from trials.csv, so that it can be made
again at any time (`tune --report_only`). Importing this imports neither TensorFlow nor plotly.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfgpt.common.atomic_files import atomic_directory, read_json, write_text
from tfgpt.search.trials import Trial, Trials, in_words

MEASURED = (
    "validation_bits_per_byte", "validation_loss", "tokens", "tokens_per_second", "peak_memory_bytes", "seconds",
    "parameters",
)  # fmt: skip
LEAST_TRIALS = 8  # for importances: fewer say nothing


def console_table(trials: Trials, most: int = 10) -> str:
    """The best trials, one a line, and how many failed."""
    shown = trials.ranked()[:most]
    names = ["trial", "objective", *trials.parameters, "tokens", "tokens_per_second", "peak_memory_bytes"]
    rows = [names]
    for trial in shown:
        known = {"trial": trial.trial_id, "objective": trial.objective, **trial.flags, **trial.numbers}
        rows.append([in_words(name, known.get(name)) if name != "trial" else trial.trial_id for name in names])
    widths = [max(len(row[column]) for row in rows) for column in range(len(names))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows]
    counts = {status: sum(trial.status == status for trial in trials.trials) for status in ("stopped", "failed")}
    lines.append(
        f"{len(trials.trials)} trials: {counts['failed']} failed, {counts['stopped']} stopped early; "
        f"objective: {trials.objective}, {'higher' if trials.more_is_better else 'lower'} is better"
    )
    return "\n".join(lines)


def importances(trials: Trials) -> dict[str, float]:
    """How much each hyperparameter mattered: by how much a forest's error grows when its column is shuffled.

    Permutation importance (Breiman 2001; scikit-learn's `permutation_importance`) of a random forest from
    hyperparameters to the objective's rank, as shares of 1. Failed trials are not in it. A flag that does not count in
    a trial has the median of the others there; a choice is a column for each of its values, added up.

    Returns:
        Hyperparameter → share, most important first; empty with fewer than eight finished trials.
    """
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    finished = trials.ranked()
    columns, owners = [], []
    for name in trials.parameters:
        for column in numeric_columns([trial.flags.get(name) for trial in finished]):
            if np.ptp(column) > 0:
                columns.append(column)
                owners.append(name)
    if len(finished) < LEAST_TRIALS or not columns:
        return {}
    objective = np.array([trial.objective for trial in finished], float)
    ranks = np.argsort(np.argsort(objective)).astype(float)
    inputs = np.stack(columns, axis=1)
    forest = RandomForestRegressor(n_estimators=200, random_state=0).fit(inputs, ranks)
    found = permutation_importance(forest, inputs, ranks, n_repeats=20, random_state=0).importances_mean
    shares = dict.fromkeys(trials.parameters, 0.0)
    for name, value in zip(owners, np.maximum(found, 0.0)):
        shares[name] += float(value)
    total = sum(shares.values())
    if not total:
        return {}
    return {name: share / total for name, share in sorted(shares.items(), key=lambda item: -item[1])}


def numeric_columns(values: Sequence[Any]) -> list[np.ndarray]:
    """A hyperparameter as columns of numbers: itself (its logarithm over wide ranges), or one column a choice."""
    known = [value for value in values if value is not None]
    if known and all(isinstance(value, (int, float)) for value in known):
        scale = np.log if is_logarithmic(known) else np.asarray
        middle = float(np.median(known))
        return [scale(np.array([middle if value is None else value for value in values], float))]
    return [np.array([value == choice for value in values], float) for choice in sorted(map(str, set(known)))]


def parallel_coordinates(trials: Trials) -> Any:
    """plotly's figure: a line a finished trial through its hyperparameters to its objective, coloured by that."""
    import plotly.graph_objects as go

    finished = trials.ranked()
    axes = [axis_of(name, [trial.flags.get(name) for trial in finished]) for name in trials.parameters]
    objective = [trial.objective for trial in finished]
    axes.append({"label": trials.objective, "values": objective})
    line = {
        "color": objective, "colorscale": "Viridis", "reversescale": not trials.more_is_better, "showscale": True,
    }  # fmt: skip
    figure = go.Figure(go.Parcoords(line=line, dimensions=axes))
    return figure.update_layout(title="Finished trials: drag along an axis to select", height=460, margin_t=110)


def is_logarithmic(values: Sequence[float]) -> bool:
    """Whether positive values over a wide range crowd at its lower end, as those drawn on a logarithmic scale do."""
    low, high = min(values), max(values)
    return low > 0 and high / low > 8 and float(np.median(values)) - low < 0.25 * (high - low)


def axis_of(name: str, values: Sequence[Any]) -> dict[str, Any]:
    """An axis of the parallel coordinates; wide ranges by their logarithm, a flag that does not count as "none"."""
    known = [value for value in values if value is not None]
    if not known or not all(isinstance(value, (int, float)) for value in known):
        order = [*sorted(set(map(str, known))), *(["none"] if None in values else [])]
        places = [order.index("none" if value is None else str(value)) for value in values]
        return {"label": name, "values": places, "tickvals": list(range(len(order))), "ticktext": order}
    logarithmic = is_logarithmic(known)
    scaled = [math.log10(value) if logarithmic else float(value) for value in known]
    low, high = min(scaled), max(scaled)
    ticks = np.linspace(low, high, 6).tolist() if low < high else [low]
    words = [f"{10**tick if logarithmic else tick:.3g}" for tick in ticks]
    beyond = high + 0.2 * ((high - low) or 1.0)
    if len(known) < len(values):
        ticks, words = [*ticks, beyond], [*words, "none"]
    following = iter(scaled)
    positions = [beyond if value is None else next(following) for value in values]
    return {"label": name, "values": positions, "tickvals": ticks, "ticktext": words}


def progress_figure(trials: Trials) -> Any:
    """The objective of each trial in the order they began, and the best so far."""
    import plotly.graph_objects as go

    points = [trial for trial in trials.trials if trial.objective is not None]
    values = np.array([trial.objective for trial in points], float)
    best = (np.maximum if trials.more_is_better else np.minimum).accumulate(values)
    words = ["<br>".join(f"{name} {in_words(name, value)}" for name, value in trial.flags.items()) for trial in points]
    names = [trial.trial_id for trial in points]
    figure = go.Figure()
    figure.add_scatter(x=names, y=values, mode="markers", name="trial", text=words)
    figure.add_scatter(x=names, y=best, mode="lines", name="best so far", line_shape="hv")
    return figure.update_layout(
        title="In order", xaxis_title="trial", yaxis_title=trials.objective, height=360, xaxis_type="category"
    )


def importance_figure(shares: dict[str, float]) -> Any:
    """A bar a hyperparameter."""
    import plotly.graph_objects as go

    names = list(shares)[::-1]
    figure = go.Figure(go.Bar(x=[shares[name] for name in names], y=names, orientation="h"))
    return figure.update_layout(
        title="Importance: share of a forest's permutation importance",
        height=140 + 28 * len(names),
        xaxis_tickformat=".0%",
        yaxis_automargin=True,
    )


def report_page(trials: Trials, judged: dict[str, Any] | None = None) -> str:
    """report.html's text: the judged settings if there are any, pictures, and a table of all trials."""
    figures = []
    if trials.ranked():
        figures = [parallel_coordinates(trials), progress_figure(trials)]
        shares = importances(trials)
        figures += [importance_figure(shares)] if shares else []
    # The first one brings plotly's script along, for all of them.
    pictures = [
        figure.to_html(full_html=False, include_plotlyjs=number == 0, config={"displaylogo": False})
        for number, figure in enumerate(figures)
    ]
    names = ["trial", "status", "objective", *trials.parameters, *MEASURED, "error"]
    rows = [cells(trial, names) for trial in [*trials.ranked(), *unranked(trials)]]
    title = html.escape(f"Search {trials.directory}")
    direction = "higher" if trials.more_is_better else "lower"
    parts = [
        "<!DOCTYPE html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>',
        "body{font-family:system-ui,sans-serif;margin:2rem;color:#222;background:#fff}",
        "table{border-collapse:collapse;font-size:.85rem}th,td{padding:.3rem .6rem;border-bottom:1px solid #ddd;",
        "text-align:right;white-space:nowrap}td.text{text-align:left;white-space:normal}.wide{overflow-x:auto}",
        "</style></head><body>",
        f"<h1>{title}</h1>",
        f"<p>{len(trials.trials)} trials, judged by {html.escape(trials.objective)} ({direction} is better).</p>",
        judged_table(judged) if judged else "",
        *pictures,
        "<h2>All trials, best first</h2>",
        html_table(names, rows),
        "</body></html>",
    ]
    return "\n".join(part for part in parts if part)


def unranked(trials: Trials) -> list[Trial]:
    """Failed, running and waiting ones."""
    ranked = {trial.trial_id for trial in trials.ranked()}
    return [trial for trial in trials.trials if trial.trial_id not in ranked]


def cells(trial: Trial, names: Sequence[str]) -> list[str]:
    """A row of the page's table."""
    known: dict[str, Any] = {"objective": trial.objective, **trial.flags, **trial.numbers}
    texts = {"trial": trial.trial_id, "status": trial.status, "error": trial.error}
    return [texts[name] if name in texts else in_words(name, known.get(name)) for name in names]


def html_table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that scrolls sideways by itself where it is too wide."""
    head = "".join(f"<th>{html.escape(name.replace('_', ' '))}</th>" for name in names)
    lines = []
    for row in rows:
        kinds = [' class="text"' if name in ("error", "settings") else "" for name in names]
        lines.append(
            "<tr>" + "".join(f"<td{kind}>{html.escape(cell)}</td>" for kind, cell in zip(kinds, row)) + "</tr>"
        )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def judged_table(judged: dict[str, Any]) -> str:
    """The settings that were trained again with several seeds, against the default ones."""
    names = ["settings", "mean", "standard deviation", "seeds", "minus default (95% interval)"]
    rows = []
    for each in judged["settings"]:
        difference = each.get("difference")
        words = ""
        if difference is not None:
            words = f"{difference['mean']:+.4f} ({difference['low']:+.4f} to {difference['high']:+.4f})"
        values = each["values"]
        rows.append([each["name"], f"{each['mean']:.4f}", f"{each['standard_deviation']:.4f}", f"{len(values)}", words])
    heading = f"<h2>Trained again: {html.escape(judged['objective'])} after {judged['tokens']:,} tokens</h2>"
    return heading + html_table(names, rows)


def write_hyperparameters(trials: Trials) -> None:
    """SEARCH_DIR/tensorboard for TensorBoard's HParams page: one run a trial, its hyperparameters and its numbers."""
    import tensorflow as tf
    from tensorboard.plugins.hparams import api

    metrics = [api.Metric(f"trial/{name}", display_name=name.replace("_", " ")) for name in MEASURED]
    parameters = [api.HParam(name, domain_of([trial.flags.get(name) for trial in trials.trials]))
                  for name in trials.parameters]  # fmt: skip
    target = trials.directory / "tensorboard"
    with atomic_directory(target) as temporary:
        with tf.summary.create_file_writer(str(temporary)).as_default(step=0):
            api.hparams_config(hparams=parameters, metrics=metrics)
        for trial in trials.trials:
            writer = tf.summary.create_file_writer(str(temporary / trial.trial_id))
            with writer.as_default(step=0):
                api.hparams(trial.flags, trial_id=trial.trial_id)
                for name in MEASURED:
                    if math.isfinite(trial.numbers.get(name, math.nan)):
                        tf.summary.scalar(f"trial/{name}", trial.numbers[name])
            writer.close()


def domain_of(values: Sequence[Any]) -> Any:
    """The values that a hyperparameter had, as TensorBoard wants them."""
    from tensorboard.plugins.hparams import api

    known = [value for value in values if value is not None]
    if known and all(isinstance(value, (int, float)) for value in known):
        low, high = float(min(known)), float(max(known))
        return api.RealInterval(low, high) if low < high else api.Discrete([low], dtype=float)
    return api.Discrete(sorted({str(value) for value in known}) or [""], dtype=str)


def write_report(trials: Trials) -> None:
    """report.html and tensorboard/, with what the seed comparison wrote, if it has."""
    path = trials.directory / "seed_comparison.json"
    judged = read_json(path) if path.is_file() else None
    write_text(trials.directory / "report.html", report_page(trials, judged))
    write_hyperparameters(trials)
