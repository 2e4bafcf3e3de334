"""A progress bar on a terminal, plain lines otherwise."""

from __future__ import annotations

import sys
import time

import tqdm

from tfgpt.common.formatting import format_duration, plural


class Progress:
    """Progress of one long job, on standard error.

    Args:
        total: units in the whole job, or None when unknown.
        unit: the name of a unit, such as "document" or "step".
        initial: units already done (a resumed job).
        silent: shows nothing (a worker whose chief shows it).

    Example:

    >>> with Progress(2, "step", "train", silent=True) as progress:
    ...     progress.advance(2, loss="2.31")
    >>> progress.done
    2
    """

    interval = 10.0
    """Seconds between plain lines."""

    def __init__(self, total: int | None, unit: str, title: str, initial: int = 0, silent: bool = False):
        self.title, self.total, self.silent = title, total, silent
        self.units = plural(unit)
        self.done, self.initial, self.metrics = initial, initial, ""
        self.started = self.last_line = time.monotonic()
        terminal = sys.stderr.isatty() and not silent
        self.plain = not terminal and not silent
        self.bar = tqdm.tqdm(
            total=total,
            unit=f" {unit}",
            desc=title,
            initial=initial,
            disable=not terminal,
            dynamic_ncols=True,
            unit_scale=unit == "byte",
        )

    def advance(self, count: int = 1, **metrics: str) -> None:
        """Counts `count` more units; shows `metrics`, such as loss="2.31", after the bar."""
        self.done += count
        if metrics:
            self.metrics = "".join(f", {name} {value}" for name, value in metrics.items())
            self.bar.set_postfix_str(self.metrics[2:], refresh=False)
        self.bar.update(count)
        if self.plain and time.monotonic() - self.last_line >= self.interval:
            self.last_line = time.monotonic()
            self.log(self.line())

    def line(self) -> str:
        """Returns the plain line: units done, rate, time left and metrics."""
        rate = (self.done - self.initial) / max(time.monotonic() - self.started, 1e-9)
        if not self.total:
            return f"{self.title}: {self.done} {self.units}, {rate:.3g}/s{self.metrics}"
        left = format_duration((self.total - self.done) / rate if rate > 0 else float("inf"))
        return f"{self.title}: {self.done}/{self.total} {self.units}, {rate:.3g}/s, {left} left{self.metrics}"

    def log(self, text: str) -> None:
        """Prints a line above the bar."""
        if self.plain:
            print(text, file=sys.stderr, flush=True)
        elif not self.silent:
            self.bar.write(text, file=sys.stderr)

    def close(self) -> None:
        """Ends the bar, or prints the last plain line."""
        if self.plain and self.done > self.initial:
            self.log(self.line())
        self.bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
