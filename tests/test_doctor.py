"""Claims about the command: its flags, its exit codes, its output."""

import json
import time
from pathlib import Path

from tests.diagnosis.probes import SMALL
from tfgpt import doctor, train
from tfgpt.diagnosis.run_checks import MODEL_CHECKS, SPEED_CHECKS


def test_doctor_takes_exactly_the_flags_of_train_and_its_own():
    own = {"overfit_steps", "max_probe_seconds", "preview_rows", "json"}
    assert set(doctor.COMMAND.flag_values()) == set(train.COMMAND.flag_values()) | own


def test_a_healthy_run_passes_every_check_and_nothing_is_written(tfgpt, text_file: Path, tmp_path: Path):
    done = tfgpt("doctor", *SMALL, f"--train_text={text_file}", f"--run_dir={tmp_path / 'run'}", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    *lines, last = done.stdout.splitlines()
    read = json.loads(last)
    assert (read["ok"], read["failed"], read["warned"], read["skipped"]) == (True, [], [], [])
    assert {*MODEL_CHECKS, *SPEED_CHECKS, "first batch", "tokens", "corpus", "memory", "disk"} == set(read["checks"])
    # Every check has its line for people, and the preview shows the text.
    for name in read["checks"]:
        assert [line for line in lines if line.startswith(f"ok    {name}: ")]
    assert any("quick" in line or "quartz" in line for line in lines)
    assert lines[-1] == "It can work."
    assert list(tmp_path.iterdir()) == []


def test_a_preset_that_cannot_fit_is_refused_in_seconds(tfgpt, text_file: Path):
    started = time.monotonic()
    done = tfgpt("doctor", f"--train_text={text_file}", "--tokenizer=bytes", "--preset=llama3_8b", "--max_steps=10")
    assert done.returncode == 1
    assert "FAIL  memory" in done.stdout and "--preset=" in done.stdout
    # Most of it is importing TensorFlow.
    assert time.monotonic() - started < 60


def test_wrong_flags_and_missing_text_are_one_line_and_exit_code_2(tfgpt, tmp_path: Path):
    for flags in (["--overfit_steps=-1"], ["--nonsense=1"], [f"--train_text={tmp_path / 'missing.txt'}"]):
        done = tfgpt("doctor", *flags)
        assert done.returncode == 2, done.stderr
        lines = [line for line in done.stderr.splitlines() if line.startswith("tfgpt.doctor: ")]
        assert len(lines) == 1 and flags[0].split("=")[-1 if "missing" in flags[0] else 0].lstrip("-") in lines[0]
