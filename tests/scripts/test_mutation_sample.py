"""Claims about random bugs, in a small project of their own."""

import importlib.util
import json
from pathlib import Path

import pytest

from tests.conftest import ROOT

specification = importlib.util.spec_from_file_location("mutation_sample", ROOT / "scripts" / "mutation_sample.py")
mutation_sample = importlib.util.module_from_spec(specification)
specification.loader.exec_module(mutation_sample)

MODULE = Path("tfgpt/common/sums.py")
SOURCE = '''"""1 + 1 and not True."""

from __future__ import annotations


def larger(number: int | None) -> bool | None:
    # if 1 < 2: return True
    return number > 1
'''


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # Their imports take a second.
    for folder in ("tfgpt/common", "tests/common", "scripts"):
        Path(folder).mkdir(parents=True)
    for package in ("tfgpt", "tfgpt/common"):
        Path(package, "__init__.py").touch()
    MODULE.write_text(SOURCE)

    def sample(claim: str) -> dict:
        test = f"from tfgpt.common.sums import larger\n\ndef test_larger():\n    assert {claim}\n"
        Path("tests/common/test_sums.py").write_text(test)
        counts = mutation_sample.sample([MODULE], 1, 9, 60, 60)
        assert MODULE.read_text() == SOURCE
        return counts

    return sample


def test_no_docstring_comment_or_annotation_is_changed():
    places = mutation_sample.mutations(SOURCE)
    after = {
        mutation_sample.change(SOURCE, mutation_sample.mutated(SOURCE, mutation))[1]
        for place in places
        for mutation in place
    }
    assert len(places) == 2  # The operator, and the number.
    assert after == {f"return number {rest}" for rest in ("== 1", "!= 1", "< 1", "<= 1", ">= 1", "> 0", "> 2")}


def test_bugs_that_a_test_notices_are_killed_by_it(project, capsys):
    counts = project("[larger(number) for number in (0, 1, 2)] == [False, False, True]")
    assert counts == {"seed": 1, "killed": 2, "killed by the room": 0, "survived": 0} | {
        "equivalent": 0, "untested": 0, "share_killed": 1.0
    }  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    for place, _, end, test in map(str.split, lines):
        assert (place, end, test) == (f"{MODULE}:8", "killed", "tests/common/test_sums.py::test_larger")


def test_a_bug_that_no_test_notices_survives_unless_it_is_judged_to_change_nothing(project, capsys):
    assert project("larger(3) in (True, False)")["share_killed"] == 0.0
    assert "    - return number > 1\n    + return number " in capsys.readouterr().out
    entry = {"file": MODULE.as_posix(), "before": "return number > 1", "why": "of no account"}
    judged = [json.dumps({**entry, "after": f"return number > {number}"}) for number in (0, 2)]
    Path("scripts/judged_mutants.jsonl").write_text("\n".join(judged))
    counts = project("larger(3) in (True, False)")
    assert (counts["equivalent"], counts["survived"]) == (1, 1)


def test_where_the_tests_fail_without_a_bug_nothing_is_said(project):
    counts = project("larger(0)")
    assert (counts["untested"], counts["share_killed"]) == (2, None)


def test_what_its_own_tests_miss_the_rooms_other_tests_may_notice(project, capsys):
    test = "from tfgpt.common.sums import larger\n\ndef test_all():\n    assert [*map(larger, range(3))] == [0, 0, 1]\n"
    Path("tests/common/test_all.py").write_text(test)
    counts = project("larger(3) in (True, False)")
    assert (counts["killed"], counts["killed by the room"], counts["share_killed"]) == (0, 2, 1.0)
    assert "killed by the room tests/common/test_all.py::test_all" in capsys.readouterr().out
