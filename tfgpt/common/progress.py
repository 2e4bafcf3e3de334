"""A progress bar with rate and time left on a terminal, plain lines now and then when piped."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

import tqdm


class Progress:
    """Progress of one long job, on standard error.

    Args:
        total: units in the whole job, or None when unknown.
        unit: the name of a unit, such as "document" or "step".
        title: what the job does, in a word or two.
        initial: units already done (a resumed job).
        every: seconds between plain lines when standard error is not a terminal.
        silent: shows nothing (a worker whose chief shows it).
    """

    def __init__(
        self, total: int | None, unit: str, title: str, initial: int = 0, every: float = 10.0, silent: bool = False
    ):
        self.title, self.total, self.every = title, total, every
        self.units = f"{unit}es" if unit.endswith("ch") else f"{unit}s"
        self.done, self.start_at, self.started = initial, initial, time.monotonic()
        self.last_line = self.started
        self.figures = ""
        self.silent = silent
        self.terminal = sys.stderr.isatty() and not silent
        self.bar = tqdm.tqdm(
            total=total,
            unit=f" {unit}",
            desc=title,
            initial=initial,
            disable=not self.terminal,
            dynamic_ncols=True,
            unit_scale=unit == "byte",
        )

    def advance(self, count: int = 1, **figures: str) -> None:
        """Counts `count` more units; `figures` are shown behind the bar (loss="2.31")."""
        self.done += count
        if figures:
            self.show(figures)
        self.bar.update(count)
        if not self.terminal and not self.silent and time.monotonic() - self.last_line >= self.every:
            self.last_line = time.monotonic()
            print(self.line(), file=sys.stderr, flush=True)

    def show(self, figures: Mapping[str, str]) -> None:
        """Sets the figures behind the bar."""
        self.figures = "".join(f", {name} {value}" for name, value in figures.items())
        self.bar.set_postfix_str(self.figures[2:], refresh=False)

    def line(self) -> str:
        """The plain line: how far, how fast, how long still."""
        rate = (self.done - self.start_at) / max(time.monotonic() - self.started, 1e-9)
        text = f"{self.title}: {self.done}"
        if self.total:
            left = (self.total - self.done) / rate if rate > 0 else float("inf")
            text += f"/{self.total} {self.units}, {rate:.3g}/s, {format_duration(left)} left"
        else:
            text += f" {self.units}, {rate:.3g}/s"
        return text + self.figures

    def log(self, text: str) -> None:
        """Prints a line without tearing the bar."""
        if self.silent:
            return
        if self.terminal:
            self.bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Ends the bar; when piped, prints the last line."""
        if not self.terminal and not self.silent and self.done > self.start_at:
            print(self.line(), file=sys.stderr, flush=True)
        self.bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def format_duration(seconds: float) -> str:
    """75.4 → "1m15s"; 7300 → "2h01m"."""
    if seconds == float("inf"):
        return "unknown"
    whole = int(seconds + 0.5)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def format_bytes(count: int) -> str:
    """1234567 → "1.2 MB"."""
    if count < 1000:
        return f"{count} bytes"
    value, units = count / 1000, ["kB", "MB", "GB", "TB"]
    while value >= 999.95 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.1f} {units[0]}"


def format_count(count: int, noun: str) -> str:
    """Formats a number of things: (2000, "document") → "2,000 documents"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
