"""Claims about the report: lines, exit code, JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tfgpt.diagnosis.check_results import (
    FAIL,
    OK,
    WARN,
    CheckResult,
    Report,
    format_bytes,
    format_count,
    format_seconds,
)


def report(*statuses: str) -> tuple[Report, list[str]]:
    lines: list[str] = []
    made = Report(lines.append)
    for number, status in enumerate(statuses):
        made.add(CheckResult(f"check {number}", status, "a line", ("--flag=1",) if status != OK else ()))
    return made, lines


@pytest.mark.parametrize(
    ("statuses", "exit_code", "summary"),
    [
        ((OK, OK), 0, "It can work."),
        ((OK, WARN), 0, "It can work; look at: check 1."),
        ((FAIL, WARN, FAIL), 1, "It cannot work as it is: check 0, check 2."),
    ],
)
def test_exit_code_is_1_exactly_when_a_check_failed(statuses, exit_code, summary):
    made, _ = report(*statuses)
    assert (made.exit_code, made.summary()) == (exit_code, summary)


def test_every_check_has_a_line_that_begins_with_its_status_and_advice_below_it():
    _, lines = report(OK, WARN, FAIL)
    assert lines == [
        "ok    check 0: a line",
        "warn  check 1: a line",
        "        → --flag=1",
        "FAIL  check 2: a line",
        "        → --flag=1",
    ]


def test_json_is_one_line_and_strict_also_with_numbers_that_json_cannot_write():
    made = Report(lambda line: None)
    made.add(
        CheckResult("loss", FAIL, "nan ✂", numbers={"loss": float("nan"), "count": np.int64(3), "by": {"x": np.inf}})
    )
    text = made.json()
    assert "\n" not in text and "NaN" not in text and "Infinity" not in text
    read = json.loads(text)
    assert read["ok"] is False
    assert read["checks"]["loss"] == {
        "status": "FAIL", "line": "nan ✂", "advice": [], "loss": None, "count": 3, "by": {"x": None}
    }  # fmt: skip


def test_sizes_counts_and_times_are_written_as_people_speak():
    assert [format_bytes(3 << 30), format_bytes(5 << 20)] == ["3.0 GiB", "5 MiB"]
    assert [format_count(1234), format_count(2_500_000), format_count(1.6e11)] == ["1,234", "2.5M", "160.0B"]
    times = [format_seconds(seconds) for seconds in (0.0123, 7.25, 75, 7300, 400_000)]
    assert times == ["12.3 ms", "7.2 s", "1m15s", "2h01m", "4.6 days"]
