"""Check results and the report of all of them: lines, exit code and JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

from tfgpt.common.progress import format_duration

OK, WARN, FAIL = "ok", "warn", "FAIL"


@dataclasses.dataclass(frozen=True)
class CheckResult:
    """The result of one check.

    Attributes:
        check: the name of the check, such as "causality".
        status: "ok", "warn" (the run can work) or "FAIL" (it cannot).
        line: the result in one line, with numbers and units.
        advice: what to change, one line per suggestion, with flags and values.
        numbers: the result as JSON values.

    Example:

    >>> CheckResult("memory", WARN, "that is tight", ("--rematerialize",)).lines()
    ['warn  memory: that is tight', '        → --rematerialize']
    """

    check: str
    status: str
    line: str
    advice: tuple[str, ...] = ()
    numbers: dict[str, Any] = dataclasses.field(default_factory=dict)

    def lines(self) -> list[str]:
        """Returns the line and an indented line for each advice."""
        return [f"{self.status:<4}  {self.check}: {self.line}", *(f"        → {advice}" for advice in self.advice)]


class Report:
    """Results in order; each is logged when it is added.

    Args:
        log: prints a line.

    Attributes:
        results: the check results.
        preview: lines that show the first batch.
        skipped: names of the checks that were not made.

    Example:

    >>> report = Report(log=print)
    >>> result = report.add(CheckResult("disk", OK, "checkpoints take 5 MiB"))
    ok    disk: checkpoints take 5 MiB
    >>> report.exit_code, report.summary()
    (0, 'It can work.')
    """

    def __init__(self, log: Callable[[str], None]):
        self.log = log
        self.results: list[CheckResult] = []
        self.preview: list[str] = []
        self.skipped: list[str] = []

    def add(self, result: CheckResult) -> CheckResult:
        """Logs and returns a result."""
        self.results.append(result)
        for line in result.lines():
            self.log(line)
        return result

    def skip(self, checks: tuple[str, ...], reason: str) -> None:
        """Logs which checks are not made, and why."""
        self.skipped += checks
        self.log(f"      not checked, {reason}: {', '.join(checks)}")

    def result(self, check: str) -> CheckResult:
        """Returns the result of a check that was made."""
        return next(result for result in self.results if result.check == check)

    def with_status(self, status: str) -> list[str]:
        """Returns the names of the checks with a status."""
        return [result.check for result in self.results if result.status == status]

    @property
    def exit_code(self) -> int:
        """1 if a check failed, otherwise 0."""
        return 1 if self.with_status(FAIL) else 0

    def summary(self) -> str:
        """Returns the last line."""
        failed, warned = self.with_status(FAIL), self.with_status(WARN)
        if failed:
            return f"It cannot work as it is: {', '.join(failed)}."
        return f"It can work; look at: {', '.join(warned)}." if warned else "It can work."

    def json(self) -> str:
        """Returns one line of JSON; NaN and infinity become null."""
        checks = {
            result.check: {"status": result.status, "line": result.line, "advice": result.advice, **result.numbers}
            for result in self.results
        }
        content = {
            "ok": not self.exit_code,
            "summary": self.summary(),
            "failed": self.with_status(FAIL),
            "warned": self.with_status(WARN),
            "skipped": self.skipped,
            "checks": checks,
            "preview": self.preview,
        }
        return json.dumps(_to_json(content), ensure_ascii=False)


def _to_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _to_json(content) for name, content in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_json(content) for content in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def format_bytes(size: float) -> str:
    """3221225472 → "3.0 GiB"; 5242880 → "5 MiB"."""
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.0f} MiB"


def format_count(count: float) -> str:
    """1234 → "1,234"; 2500000 → "2.5M"; 1.6e11 → "160.0B"."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if count >= size:
            return f"{count / size:,.1f}{letter}"
    return f"{count:,.0f}"


def pluralize(count: int, word: str) -> str:
    """(1, "row") → "1 row"; (2500, "row") → "2,500 rows"; (2, "bias") → "2 biases"."""
    ending = "" if count == 1 else "es" if word.endswith("s") else "s"
    return f"{count:,} {word}{ending}"


def format_seconds(seconds: float) -> str:
    """0.0123 → "12.3 ms"; 75 → "1m15s"; 7300 → "2h01m"; 400000 → "4.6 days"."""
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 2 * 86400:
        return format_duration(seconds)
    days = seconds / 86400
    return f"{days:,.1f} days" if days < 1000 else f"{days / 365.25:,.0f} years"
