"""Doctor's findings: one line a check, advice below it, an exit code, the same as JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

OK, WARN, FAIL = "ok", "warn", "FAIL"


@dataclasses.dataclass(frozen=True)
class CheckResult:
    """What one check found.

    Attributes:
        check: the check's name, such as "causality".
        status: "ok", "warn" (it can work, but look) or "FAIL" (it cannot).
        line: what was found, in one line, with numbers and units.
        advice: what to change, each a line that names flags with values.
        numbers: the same for programs: plain JSON values.
    """

    check: str
    status: str
    line: str
    advice: tuple[str, ...] = ()
    numbers: dict[str, Any] = dataclasses.field(default_factory=dict)

    def lines(self) -> list[str]:
        """For people: the line, and an indented line for each advice."""
        return [f"{self.status:<4}  {self.check}: {self.line}", *(f"        → {advice}" for advice in self.advice)]


class Report:
    """Findings in the order in which they were made, each printed when it comes.

    Args:
        say: prints a line.
    """

    def __init__(self, say: Callable[[str], None]):
        self.say = say
        self.findings: list[CheckResult] = []
        self.preview: list[str] = []
        self.skipped: list[str] = []

    def add(self, finding: CheckResult) -> CheckResult:
        """Takes a finding and prints it."""
        self.findings.append(finding)
        for line in finding.lines():
            self.say(line)
        return finding

    def skip(self, checks: tuple[str, ...], reason: str) -> None:
        """Says which checks were not made, and why."""
        self.skipped += checks
        self.say(f"      not checked, {reason}: {', '.join(checks)}")

    def finding(self, check: str) -> CheckResult:
        """The finding of a check.

        Raises:
            KeyError: it was not made.
        """
        for finding in self.findings:
            if finding.check == check:
                return finding
        raise KeyError(check)

    @property
    def failed(self) -> list[str]:
        """The checks that failed."""
        return [finding.check for finding in self.findings if finding.status == FAIL]

    @property
    def warned(self) -> list[str]:
        """The checks that gave a warning."""
        return [finding.check for finding in self.findings if finding.status == WARN]

    @property
    def exit_code(self) -> int:
        """0 when it can work, 1 when a check failed."""
        return 1 if self.failed else 0

    def summary(self) -> str:
        """The last line for people."""
        if self.failed:
            return f"It cannot work as it is: {', '.join(self.failed)}."
        if self.warned:
            return f"It can work; look at: {', '.join(self.warned)}."
        return "It can work."

    def json(self) -> str:
        """One line of JSON: `ok`, `summary`, `checks` (name → status, line, advice, numbers), `skipped`, `preview`."""
        checks = {
            finding.check: {
                "status": finding.status,
                "line": finding.line,
                "advice": list(finding.advice),
                **finding.numbers,
            }
            for finding in self.findings
        }
        content = {
            "ok": not self.failed,
            "summary": self.summary(),
            "failed": self.failed,
            "warned": self.warned,
            "skipped": self.skipped,
            "checks": checks,
            "preview": self.preview,
        }
        return json.dumps(plain(content), ensure_ascii=False)


def plain(value: Any) -> Any:
    """The value with NumPy numbers as Python's and numbers that JSON cannot write (nan, inf) as None."""
    if isinstance(value, dict):
        return {str(name): plain(content) for name, content in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(content) for content in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def in_bytes(count: float) -> str:
    """3221225472 → "3.0 GiB"; 5242880 → "5 MiB"."""
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"


def in_numbers(count: float) -> str:
    """1234 → "1,234"; 2500000 → "2.5M"; 1.6e11 → "160.0B"."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if count >= size:
            return f"{count / size:,.1f}{letter}"
    return f"{count:,.0f}"


def counted(count: int, word: str) -> str:
    """(1, "row") → "1 row"; (2500, "row") → "2,500 rows"; (2, "bias") → "2 biases"."""
    ending = "" if count == 1 else "es" if word.endswith("s") else "s"
    return f"{count:,} {word}{ending}"


def in_time(seconds: float) -> str:
    """How people speak of it: 0.0123 → "12 ms", 75 → "1m15s", 7300 → "2h01m", 400000 → "4.6 days"."""
    from tfgpt.common.progress import format_duration

    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 2 * 86400:
        return format_duration(seconds)
    days = seconds / 86400
    return f"{days:,.1f} days" if days < 1000 else f"{days / 365.25:,.0f} years"
