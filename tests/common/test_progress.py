"""Progress where standard error is not a terminal."""

import time

from tfgpt.common.progress import Progress


def test_plain_lines_tell_units_rate_time_left_and_metrics_every_ten_seconds(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Progress(100, "batch", "train", initial=10) as progress:
        for seconds, metrics in ((5, {}), (12, {"loss": "2.31"}), (21, {})):
            now[0] = 100.0 + seconds
            progress.advance(10, **metrics)
        progress.log("saved")
    line = "train: {}/100 batches, {}/s, {} left, loss 2.31"
    assert capsys.readouterr().err.splitlines() == [
        line.format(30, 1.67, "42s"), "saved", line.format(40, 1.43, "42s"),
    ]  # fmt: skip


def test_a_total_that_is_not_known_and_silence(capsys):
    with Progress(None, "document", "reading") as progress:
        progress.advance(3)
    assert capsys.readouterr().err.startswith("reading: 3 documents, ")
    with Progress(3, "document", "reading", silent=True) as progress:
        progress.advance(3)
        progress.log("saved")
    assert capsys.readouterr().err == ""
