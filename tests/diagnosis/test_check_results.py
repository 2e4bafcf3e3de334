"""The report: lines, exit code, JSON."""

import json

import numpy as np
import pytest

from tfgpt.diagnosis.check_results import FAIL, OK, WARN, CheckResult, Report


@pytest.mark.parametrize(
    ("statuses", "exit_code", "summary"),
    [
        ((OK, OK), 0, "It can work."),
        ((OK, WARN), 0, "It can work; look at: check 1."),
        ((FAIL, WARN, FAIL), 1, "It cannot work as it is: check 0, check 2."),
    ],
)
def test_exit_code_is_1_exactly_when_a_check_failed(statuses, exit_code, summary):
    report = Report(lambda line: None)
    for number, status in enumerate(statuses):
        report.add(CheckResult(f"check {number}", status, "a line"))
    assert (report.exit_code, report.summary()) == (exit_code, summary)


def test_every_check_has_a_line_that_begins_with_its_status_and_advice_below_it():
    lines: list[str] = []
    report = Report(lines.append)
    report.add(CheckResult("disk", OK, "a line"))
    report.add(CheckResult("memory", WARN, "a line", ("--flag=1",)))
    assert lines == ["ok    disk: a line", "warn  memory: a line", "        → --flag=1"]


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
