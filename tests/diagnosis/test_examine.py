"""Claims about a whole examination, that ends early."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.diagnosis.subjects import recipe_of
from tfgpt.common.errors import SettingError
from tfgpt.diagnosis.config import DoctorConfig
from tfgpt.diagnosis.examine import MODEL_CHECKS, SPEED_CHECKS, examine
from tfgpt.diagnosis.machine import Memory
from tfgpt.diagnosis.memory import Machine
from tfgpt.model import decoder

QUICK = DoctorConfig(trial_seconds=20.0)


def test_a_run_that_does_not_fit_is_not_built(text_file: Path, monkeypatch: pytest.MonkeyPatch):
    def built(*arguments, **options):
        raise AssertionError("the model was built")

    monkeypatch.setattr(decoder.Decoder, "__init__", built)
    machine = Machine(Memory(1 << 20, 1 << 20, "RAM"), 1, gpu=False)
    report = examine(recipe_of(text_file), QUICK, lambda line: None, machine)
    assert report.failed == ["memory"]
    assert report.skipped == [*MODEL_CHECKS, *SPEED_CHECKS]


def test_a_model_that_breaks_is_a_failed_check_and_no_traceback(text_file: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(self, inputs, mask, rotation=None, training=None):
        raise ValueError("shapes do not\nmatch")

    monkeypatch.setattr(decoder.Block, "call", broken)
    report = examine(recipe_of(text_file), QUICK, lambda line: None)
    assert report.failed == ["model"] and "shapes do not match" in report.finding("model").line


def test_targets_that_the_pipeline_shifts_wrongly_fail_the_first_batch(
    text_file: Path, monkeypatch: pytest.MonkeyPatch
):
    from tfgpt.pipeline import batches

    right = batches.Rows.read

    def shifted(self, *arguments):
        arrays = right(self, *arguments)
        names = list(self.types)
        arrays[names.index("targets")] = arrays[names.index("token_ids")]
        return arrays

    monkeypatch.setattr(batches.Rows, "read", shifted)
    machine = Machine(Memory(1 << 20, 1 << 20, "RAM"), 1, gpu=False)
    report = examine(recipe_of(text_file), QUICK, lambda line: None, machine)
    assert "first batch" in report.failed


def test_a_cluster_is_not_examined_and_the_line_says_what_to_do_instead(text_file: Path, monkeypatch):
    with pytest.raises(SettingError, match="^--strategy: doctor examines one machine, not a cluster"):
        examine(recipe_of(text_file, "--strategy=multiworker"), QUICK, lambda line: None)
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 0}}')
    with pytest.raises(SettingError, match="leave TF_CONFIG out"):
        examine(recipe_of(text_file), QUICK, lambda line: None)
