"""Metrics writers: metrics.jsonl, TensorBoard and curves.png."""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from tfgpt.common.atomic_files import atomic_write, readable_write_errors

# Names in metrics.jsonl → tags in TensorBoard. Other metrics, those of an objective, are under objective/.
TENSORBOARD_NAMES = {
    "train_loss": "loss/train",
    "validation_loss": "loss/validation",
    "validation_bits_per_byte": "bits_per_byte/validation",
    "validation_accuracy": "accuracy/validation",
    "learning_rate": "optimizer/learning_rate",
    "gradient_norm": "optimizer/gradient_norm",
    "update_to_weight_ratio": "optimizer/update_to_weight_ratio",
    "skipped_updates": "optimizer/skipped_updates",
    "tokens_per_second": "speed/tokens_per_second",
    "model_flops_utilization": "speed/model_flops_utilization",
}
BY_SOURCE = "validation_loss/"
"""Prefix of the losses of single sources in metrics.jsonl."""


class JsonlMetricsWriter:
    """metrics.jsonl: one JSON object a line, each with its `step`; without a path nothing is written.

    Lines after `step`, where a resumed run starts, are removed: a killed run wrote them after its last checkpoint.

    Example:

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> writer = JsonlMetricsWriter(Path(folder.name) / "metrics.jsonl", step=0)
    >>> writer.write({"step": 1, "train_loss": 2.5})
    >>> writer.close()
    >>> read_metrics(writer.path)
    [{'step': 1, 'train_loss': 2.5}]
    >>> folder.cleanup()
    """

    def __init__(self, path: Path | None, step: int):
        self.path, self.file = path, None
        if path is not None:
            kept = [row for row in read_metrics(path) if row["step"] <= step] if step else []
            with atomic_write(path) as temporary:
                temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
            self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (open as long as the run)

    def write(self, row: Mapping[str, Any]) -> None:
        """Appends a line; NaN and infinity are written as null."""
        if self.file is None or self.path is None:
            return
        clean = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in row.items()
        }
        with readable_write_errors(self.path):
            self.file.write(json.dumps(clean) + "\n")
            self.file.flush()

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Returns the rows of a metrics.jsonl without lines that a kill or a power cut damaged."""
    rows = []
    if Path(path).is_file():
        for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                row = json.loads(line.strip("\0"))
                rows += [row] if isinstance(row, dict) and isinstance(row.get("step"), int) else []
    return rows


class TensorBoardWriter:
    """TensorBoard event files of a run; without a directory nothing is written.

    TensorBoard hides steps after `step`, where a resumed run starts, which a killed run wrote.
    """

    def __init__(self, directory: Path | None, step: int):
        self.writer = None
        if directory is not None:
            with readable_write_errors(directory):
                directory.mkdir(parents=True, exist_ok=True)
                from tensorboard.compat.proto import event_pb2
                from tensorboard.summary.writer.record_writer import RecordWriter

                # TensorFlow 2's writer omits the event that makes TensorBoard discard later steps. TensorBoard reads
                # files in the order of their names; this one precedes the file of the writer that is opened next.
                # Source: https://github.com/tensorflow/tensorboard#how-should-i-handle-tensorflow-restarts.
                now = time.time()
                name = f"events.out.tfevents.{int(now):010d}.{socket.gethostname()}.{os.getpid()}.!start"
                start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
                events = RecordWriter(open(directory / name, "wb"))  # noqa: SIM115 (the writer closes it)
                for event in (
                    event_pb2.Event(wall_time=now, file_version="brain.Event:2"),
                    event_pb2.Event(wall_time=now, step=step + 1, session_log=start),
                ):
                    events.write(event.SerializeToString())
                events.close()
                self.writer = tf.summary.create_file_writer(str(directory))

    def scalars(self, row: Mapping[str, Any]) -> None:
        if self.writer is None:
            return
        with self.writer.as_default(step=row["step"]):
            for name, value in row.items():
                shown = f"loss_by_source/{name.removeprefix(BY_SOURCE)}" if name.startswith(BY_SOURCE) else None
                shown = shown or TENSORBOARD_NAMES.get(name, f"objective/{name}")
                if name != "step" and value is not None:
                    tf.summary.scalar(shown, value)

    def text(self, name: str, step: int, text: str) -> None:
        """Writes a text, indented as Markdown code."""
        if self.writer is not None:
            with self.writer.as_default(step=step):
                tf.summary.text(name, "\n".join("    " + line for line in text.splitlines()))

    def histograms(self, variables: Mapping[str, Any], step: int) -> None:
        if self.writer is not None:
            with self.writer.as_default(step=step):
                for name, variable in variables.items():
                    tf.summary.histogram(name, variable)

    def hyperparameters(self, settings: Mapping[str, Any]) -> None:
        """Writes the settings for TensorBoard's HParams page."""
        if self.writer is not None:
            from tensorboard.plugins.hparams import api

            plain = {
                name: value if isinstance(value, (bool, int, float, str)) else json.dumps(value)
                for name, value in settings.items()
                if value is not None
            }
            with self.writer.as_default(step=0):
                api.hparams(plain)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


def draw_curves(rows: list[dict[str, Any]], path: Path, title: str) -> None:
    """Draws the rows of metrics.jsonl over the steps as a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    objective_panels: list[tuple[str, tuple[str, ...], bool]]
    names = list(dict.fromkeys(name for row in rows for name in row if "/" not in name))
    if "validation_bits_per_byte" in names:
        objective_panels = [("bits per byte, held out", ("validation_bits_per_byte",), False)]
    else:
        metrics = dict.fromkeys(name.split("_", 1)[1] for name in names if name.startswith(("train_", "validation_")))
        metrics.pop("loss", None)
        objective_panels = [
            (metric.replace("_", " "), (f"train_{metric}", f"validation_{metric}"), False) for metric in metrics
        ]
    # Titles, names in metrics.jsonl, and whether the axis is logarithmic.
    panels = [
        ("loss", ("train_loss", "validation_loss"), False),
        *objective_panels,
        ("learning rate", ("learning_rate",), False),
        ("gradient norm", ("gradient_norm",), True),
        ("update / weight", ("update_to_weight_ratio",), True),
        ("tokens per second", ("tokens_per_second",), False),
    ]
    lines = -(-len(panels) // 3)
    figure, axes = pyplot.subplots(lines, 3, figsize=(13, 3.5 * lines), constrained_layout=True)
    # A path may hold dollar signs, which would begin a formula.
    figure.suptitle(title, parse_math=False)
    for axis, (label, curves, logarithmic) in zip(axes.flat, panels):
        for name in curves:
            points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
            if points:
                style = {"marker": "o", "markersize": 3} if len(points) < 40 else {}
                axis.plot(*zip(*points, strict=True), label=name.replace("_", " "), linewidth=1, **style)
        axis.set_title(label, fontsize=10, parse_math=False)
        axis.set_xlabel("step", fontsize=8)
        axis.grid(alpha=0.3)
        if logarithmic and any(height > 0 for line in axis.lines for height in line.get_ydata()):
            axis.set_yscale("log")
        if len(axis.lines) > 1:
            axis.legend(fontsize=8)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    pyplot.close(figure)
