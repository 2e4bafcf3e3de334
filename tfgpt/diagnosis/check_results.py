"""Check results and the report of all of them: lines, exit code and JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

OK, WARN, FAIL = "ok", "warn", "FAIL"


@dataclasses.dataclass(frozen=True)
class CheckResult:
    """The result of one check."""

    check: str
    status: str  # "ok", "warn" (the run can work) or "FAIL" (it cannot)
    line: str  # the result in words, with numbers and units
    advice: tuple[str, ...] = ()  # what to change, with flags and values
    numbers: dict[str, Any] = dataclasses.field(default_factory=dict)  # the result as JSON values


class Report:
    """Results in order; each is logged when it is added."""

    def __init__(self, log: Callable[[str], None]):
        self.log = log
        self.results: dict[str, CheckResult] = {}
        self.preview: list[str] = []
        self.skipped: list[str] = []

    def add(self, result: CheckResult) -> CheckResult:
        self.results[result.check] = result
        self.log(f"{result.status:<4}  {result.check}: {result.line}")
        for advice in result.advice:
            self.log(f"        → {advice}")
        return result

    def skip(self, checks: tuple[str, ...], reason: str) -> None:
        self.skipped += checks
        self.log(f"      not checked, {reason}: {', '.join(checks)}")

    def with_status(self, status: str) -> list[str]:
        return [name for name, result in self.results.items() if result.status == status]

    @property
    def exit_code(self) -> int:
        return 1 if self.with_status(FAIL) else 0

    def summary(self) -> str:
        failed, warned = self.with_status(FAIL), self.with_status(WARN)
        if failed:
            return f"It cannot work as it is: {', '.join(failed)}."
        return f"It can work; look at: {', '.join(warned)}." if warned else "It can work."

    def json(self) -> str:
        """Returns one line of JSON; NaN and infinity become null."""
        checks = {
            name: {"status": result.status, "line": result.line, "advice": result.advice, **result.numbers}
            for name, result in self.results.items()
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
