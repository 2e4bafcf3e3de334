"""Reports of a search: a table on the console, report.html, and TensorBoard's HParams page.

All are made from trials.csv. report.html contains plotly's script, so that it needs no network.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfgpt.common.atomic_files import atomic_directory, read_json, write_text
from tfgpt.search.trials import MEASURED, TrialTable, format_value

MIN_TRIALS = 8  # for importances
STYLE = """body{font-family:system-ui,sans-serif;margin:2rem;color:#222;background:#fff}
table{border-collapse:collapse;font-size:.85rem}th,td{padding:.3rem .6rem;border-bottom:1px solid #ddd;
text-align:right;white-space:nowrap}td.text{text-align:left;white-space:normal}.wide{overflow-x:auto}"""


def console_table(table: TrialTable, limit: int = 10) -> str:
    """Returns the best trials, one a line, and the number of failures."""
    names = ["trial", "objective", *table.parameters, "tokens", "tokens_per_second", "peak_memory_bytes"]
    rows = [names, *table_cells(table, names)[: min(limit, len(table.ranked()))]]
    widths = [max(len(row[column]) for row in rows) for column in range(len(names))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows]
    counts = {status: sum(trial.status == status for trial in table.trials) for status in ("stopped", "failed")}
    lines.append(
        f"{len(table.trials)} trials: {counts['failed']} failed, {counts['stopped']} stopped early; "
        f"objective: {table.objective}, {'higher' if table.more_is_better else 'lower'} is better"
    )
    return "\n".join(lines)


def write_report(table: TrialTable) -> None:
    """Writes report.html and tensorboard/, with the seed comparison if there is one."""
    path = table.directory / "seed_comparison.json"
    write_text(table.directory / "report.html", report_page(table, read_json(path) if path.is_file() else None))
    write_hparams(table)


def report_page(table: TrialTable, comparison: dict[str, Any] | None = None) -> str:
    figures = []
    if table.ranked():
        figures = [parallel_coordinates(table), progress_figure(table)]
        shares = importances(table)
        if shares:
            import plotly.graph_objects as go

            names = list(shares)[::-1]
            figure = go.Figure(go.Bar(x=[shares[name] for name in names], y=names, orientation="h"))
            title, height = "Importance: share of a forest's permutation importance", 140 + 28 * len(names)
            figure.update_layout(title=title, height=height, xaxis_tickformat=".0%", yaxis_automargin=True)
            figures.append(figure)
    # The first figure includes plotly's script for all of them.
    pictures = [
        figure.to_html(full_html=False, include_plotlyjs=number == 0, config={"displaylogo": False})
        for number, figure in enumerate(figures)
    ]
    names = ["trial", "status", "objective", *table.parameters, *MEASURED, "error"]
    title = html.escape(f"Search {table.directory}")
    direction = "higher" if table.more_is_better else "lower"
    parts = [
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
        f"<style>{STYLE}</style></head><body><h1>{title}</h1>",
        f"<p>{len(table.trials)} trials; objective: {html.escape(table.objective)} ({direction} is better).</p>",
        *([comparison_table(comparison)] if comparison else []),
        *pictures,
        "<h2>All trials, best first</h2>",
        html_table(names, table_cells(table, names)),
        "</body></html>",
    ]
    return "\n".join(parts)


def importances(table: TrialTable) -> dict[str, float]:
    """Returns each hyperparameter's share of the permutation importance, the largest first.

    A random forest (Breiman 2001; scikit-learn) predicts the rank of the finished trials by the objective. The result
    is empty with fewer than `MIN_TRIALS` of them.
    """
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    finished = table.ranked()
    if len(finished) < MIN_TRIALS or not table.parameters:
        return {}
    ranks = np.argsort(np.argsort([float(trial.objective or 0.0) for trial in finished])).astype(float)
    columns = [numeric_column([trial.flags.get(name) for trial in finished]) for name in table.parameters]
    inputs = np.stack(columns, axis=1)  # (trials, parameters)
    forest = RandomForestRegressor(n_estimators=200, random_state=0).fit(inputs, ranks)
    found = permutation_importance(forest, inputs, ranks, n_repeats=20, random_state=0).importances_mean
    shares = np.maximum(found, 0.0) / (np.maximum(found, 0.0).sum() or math.inf)
    order = np.argsort(-shares)
    return {table.parameters[index]: float(shares[index]) for index in order} if shares.any() else {}


def numeric_column(values: Sequence[Any]) -> np.ndarray:
    """Returns a hyperparameter as numbers: missing ones are the median, choices their position in sorted order."""
    if known := numbers_of(values):
        return np.array([np.median(known) if value is None else value for value in values], float)
    order = sorted(set(map(str, values)))
    return np.array([order.index(str(value)) for value in values], float)


def numbers_of(values: Sequence[Any]) -> list[Any]:
    known = [value for value in values if value is not None]
    return known if all(isinstance(value, (int, float)) for value in known) else []


def parallel_coordinates(table: TrialTable) -> Any:
    import plotly.graph_objects as go

    finished = table.ranked()
    axes = [parallel_axis(name, [trial.flags.get(name) for trial in finished]) for name in table.parameters]
    objective = [trial.objective for trial in finished]
    line = {
        "color": objective, "colorscale": "Viridis", "reversescale": not table.more_is_better, "showscale": True,
    }  # fmt: skip
    figure = go.Figure(go.Parcoords(line=line, dimensions=[*axes, {"label": table.objective, "values": objective}]))
    return figure.update_layout(title="Finished trials: drag along an axis to select", height=460, margin_t=110)


def parallel_axis(name: str, values: Sequence[Any]) -> dict[str, Any]:
    """Returns an axis: wide ranges by their logarithm, choices by their order, a flag that does not apply as "none"."""
    if not (known := numbers_of(values)):
        order = [*sorted({str(value) for value in values if value is not None}), *(["none"] if None in values else [])]
        codes = [order.index("none" if value is None else str(value)) for value in values]
        return {"label": name, "values": codes, "tickvals": list(range(len(order))), "ticktext": order}
    low, high = min(known), max(known)
    # Values drawn on a logarithmic scale crowd at the lower end of a linear one.
    logarithmic = low > 0 and high / low > 8 and float(np.median(known)) - low < 0.25 * (high - low)
    scaled = [None if value is None else math.log10(value) if logarithmic else float(value) for value in values]
    low, high = (math.log10(low), math.log10(high)) if logarithmic else (low, high)
    ticks = np.linspace(low, high, 6).tolist() if low < high else [low]
    labels = [f"{10**tick if logarithmic else tick:.3g}" for tick in ticks]
    missing = high + 0.2 * ((high - low) or 1.0)
    if None in values:
        ticks, labels = [*ticks, missing], [*labels, "none"]
    positions = [missing if value is None else value for value in scaled]
    return {"label": name, "values": positions, "tickvals": ticks, "ticktext": labels}


def progress_figure(table: TrialTable) -> Any:
    import plotly.graph_objects as go

    points = [trial for trial in table.trials if trial.objective is not None]
    values = np.array([trial.objective for trial in points], float)
    best = (np.maximum if table.more_is_better else np.minimum).accumulate(values)
    names = [trial.trial_id for trial in points]
    figure = go.Figure()
    texts = [trial.describe().replace(", ", "<br>") for trial in points]
    figure.add_scatter(x=names, y=values, mode="markers", name="trial", text=texts)
    figure.add_scatter(x=names, y=best, mode="lines", name="best so far", line_shape="hv")
    return figure.update_layout(
        title="In order", xaxis_title="trial", yaxis_title=table.objective, height=360, xaxis_type="category"
    )


def table_cells(table: TrialTable, names: Sequence[str]) -> list[list[str]]:
    ranked = table.ranked()
    rows = []
    for trial in [*ranked, *(trial for trial in table.trials if trial not in ranked)]:
        values = {**trial.numbers, **trial.flags, "trial": trial.trial_id, "status": trial.status, "error": trial.error}
        texts = {name: format_value(name, values.get(name)) for name in names}
        rows.append([{**texts, "objective": format_value(table.objective, trial.objective)}[name] for name in names])
    return rows


def html_table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(name.replace('_', ' '))}</th>" for name in names)
    kinds = [' class="text"' if name in ("error", "settings") else "" for name in names]
    lines = ("".join(f"<td{kind}>{html.escape(cell)}</td>" for kind, cell in zip(kinds, row)) for row in rows)
    body = "".join(f"<tr>{line}</tr>\n" for line in lines)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def comparison_table(comparison: dict[str, Any]) -> str:
    names = ["settings", "mean", "standard deviation", "seeds", "minus default (95% interval)"]
    rows = []
    for each in comparison["settings"]:
        interval = ""
        if "difference" in each:
            interval = "{mean:+.4f} ({low:+.4f} to {high:+.4f})".format(**each["difference"])
        numbers = [f"{each['mean']:.4f}", f"{each['standard_deviation']:.4f}", f"{len(each['values'])}"]
        rows.append([each["name"], *numbers, interval])
    objective = html.escape(comparison["objective"])
    return f"<h2>Trained again: {objective} after {comparison['tokens']:,} tokens</h2>" + html_table(names, rows)


def write_hparams(table: TrialTable) -> None:
    from tfgpt.common.tf_logging import import_tensorflow

    import_tensorflow()
    import tensorflow as tf
    from tensorboard.plugins.hparams import api

    def domain(values: Sequence[Any]) -> Any:
        if known := numbers_of(values):
            low, high = float(min(known)), float(max(known))
            return api.RealInterval(low, high) if low < high else api.Discrete([low], dtype=float)
        return api.Discrete(sorted({str(value) for value in values if value is not None}) or [""], dtype=str)

    metrics = [api.Metric(f"trial/{name}", display_name=name.replace("_", " ")) for name in MEASURED]
    hparams = [api.HParam(name, domain([trial.flags.get(name) for trial in table.trials]))
               for name in table.parameters]  # fmt: skip
    with atomic_directory(table.directory / "tensorboard") as temporary:
        with tf.summary.create_file_writer(str(temporary)).as_default(step=0):
            api.hparams_config(hparams=hparams, metrics=metrics)
        for trial in table.trials:
            writer = tf.summary.create_file_writer(str(temporary / trial.trial_id))
            with writer.as_default(step=0):
                api.hparams(trial.flags, trial_id=trial.trial_id)
                for name, value in trial.numbers.items():
                    if name in MEASURED and math.isfinite(value):
                        tf.summary.scalar(f"trial/{name}", value)
            writer.close()
