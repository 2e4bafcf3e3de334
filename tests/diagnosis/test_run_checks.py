"""All checks together, and runs whose checks end early."""

import dataclasses
import json
from pathlib import Path

import pytest

from tests.diagnosis.probes import config_of, probe_of, save_model
from tfgpt.common.errors import SettingError
from tfgpt.diagnosis import speed
from tfgpt.diagnosis.check_results import Report
from tfgpt.diagnosis.config import DoctorConfig
from tfgpt.diagnosis.memory import Machine
from tfgpt.diagnosis.run_checks import DATA_CHECKS, MODEL_CHECKS, SPEED_CHECKS, attempt, local_strategy, run_checks
from tfgpt.diagnosis.system_memory import Memory
from tfgpt.model import decoder
from tfgpt.training.train_config import TrainConfig

QUICK = DoctorConfig(max_probe_seconds=20.0)
TOO_SMALL = Machine(Memory(1 << 20, 1 << 20, "RAM"), 1, gpu=False)


def check(config: TrainConfig, doctor: DoctorConfig = QUICK, machine: Machine | None = None) -> Report:
    return run_checks(config, doctor, lambda line: None, machine)


def test_a_run_that_does_not_fit_is_not_built(text_file, monkeypatch):
    def built(*arguments, **options):
        raise AssertionError("the model was built")

    monkeypatch.setattr(decoder.Decoder, "__init__", built)
    report = check(config_of(text_file), machine=TOO_SMALL)
    assert report.with_status("FAIL") == ["memory"]
    assert report.skipped == [*MODEL_CHECKS, *SPEED_CHECKS]


def test_a_model_that_breaks_is_a_failed_check_and_no_traceback(text_file, monkeypatch):
    def broken(self, inputs, mask, rotation=None, training=None):
        raise ValueError("shapes do not\nmatch")

    monkeypatch.setattr(decoder.TransformerBlock, "call", broken)
    report = check(config_of(text_file))
    assert report.with_status("FAIL") == ["model"] and "shapes do not match" in report.results["model"].line


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    talks = [[{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"It is {n}."}] for n in range(99)]
    path.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    return path


def test_conversations_are_examined(chats, monkeypatch):
    monkeypatch.setattr(speed, "TIMED_SECONDS", 0.3)
    report = check(config_of(chats, "--objective=chat --sequence_length=96 --max_steps=20"))
    assert report.with_status("FAIL") == [], [finding.line for finding in report.results.values()]
    assert set(report.results) == {"first batch", "disk", "memory", *MODEL_CHECKS, *SPEED_CHECKS[:-1]}
    assert "targets count" in report.results["first batch"].line
    assert any("«It is " in line for line in report.preview)


def test_adapters_are_examined_and_other_objectives_as_far_as_memory(text_file, chats, tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "TIMED_SECONDS", 0.3)
    save_model(probe_of(text_file, "--max_sequence_length=96"), tmp_path)
    flags = f"--objective=chat --init_from={tmp_path} --sequence_length=96 --batch_size=4 --compile=graph --lora_rank=8"
    report = check(config_of(chats, base=flags.split()), dataclasses.replace(QUICK, overfit_steps=0))
    assert "frozen below the adapters" in report.results["gradients"].line
    assert "trained ones" in report.results["memory"].line
    assert [name for name in report.with_status("FAIL") if name not in ("loss at step 0", "memory measured")] == []
    report = check(config_of(chats, base=flags.replace("=chat", "=simpo").split()))
    assert list(report.results) == ["disk", "memory"]
    assert set(report.skipped) == {*DATA_CHECKS, *MODEL_CHECKS, *SPEED_CHECKS}


def test_a_cluster_is_not_examined_and_the_line_says_what_to_do_instead(text_file, monkeypatch):
    with pytest.raises(SettingError, match="^--strategy: doctor examines one machine, not a cluster"):
        check(config_of(text_file, "--strategy=multiworker"))
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 0}}')
    with pytest.raises(SettingError, match="leave TF_CONFIG out"):
        check(config_of(text_file))


def test_a_check_that_breaks_is_a_finding_and_its_traceback_is_not_lost(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))

    def broken() -> None:
        raise ValueError("one\ntwo")

    report = Report(print)
    assert attempt(report, "speed", broken) is None
    (crash,) = tmp_path.rglob("crash-doctor-*.txt")
    assert capsys.readouterr().out == f"FAIL  speed: broke with ValueError: one two; {crash} has the traceback\n"
    assert "in broken" in crash.read_text()


def test_a_machine_without_a_tpu_still_examines_the_run(text_file):
    lines: list[str] = []
    strategy = local_strategy(config_of(text_file, "--strategy=tpu"), lines.append)
    assert strategy.num_replicas_in_sync == 1
    assert len(lines) == 1 and lines[0].startswith("No TPU here")
