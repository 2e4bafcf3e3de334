"""Claims about whole runs: what they leave behind, stopping and going on, and every way they can go wrong."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import ROOT
from tfgpt import train as command
from tfgpt.common.errors import RunError, UserError
from tfgpt.training.objectives.base import get_objective
from tfgpt.training.run import Samples, train
from tfgpt.training.train_config import TrainConfig
from tfgpt.training.trainer_builder import build_trainer_and_data

SMALL = (
    "--tokenizer=bytes --preset=tiny --num_layers=1 --num_query_heads=2 --num_key_value_heads=1 --hidden_dim=16 "
    "--head_dim=8 --intermediate_dim=32 --sequence_length=16 --batch_size=4 --warmup_steps=2 --compile=graph "
    "--max_steps=20 --log_every=3 --validate_every=10 --checkpoint_every=5 --sample_tokens=4 --dropout=0.1"
).split()


def parse(*flags: str) -> TrainConfig:
    return TrainConfig(**command.COMMAND.parse([*flags]))


def train_recipe(recipe: TrainConfig, callbacks=()) -> int:
    return train(recipe, command.COMMAND.flag_file(recipe.settings()), callbacks)


def recipe(text: Path, run_dir: Path, *more: str) -> TrainConfig:
    return parse(*SMALL, f"--train_text={text}", f"--run_dir={run_dir}", *more)


def run(text: Path, run_dir: Path, *more: str, callbacks=()) -> int:
    return train_recipe(recipe(text, run_dir, *more), callbacks)


def final_state(run_dir: Path) -> dict[str, np.ndarray]:
    newest = max((run_dir / "checkpoints").glob("step-????????"))
    return safetensors.numpy.load_file(newest / "state.safetensors")


def rows(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def without_speed(run_dir: Path) -> list[dict]:
    speed = ("tokens_per_second", "model_flops_utilization")
    return [{name: value for name, value in row.items() if name not in speed} for row in rows(run_dir)]


def assert_same_end(one: Path, other: Path) -> None:
    expected, found = final_state(one), final_state(other)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert value.tobytes() == found[name].tobytes(), name
    assert without_speed(one) == without_speed(other)


class StopAt(keras.callbacks.Callback):
    """Stops as a signal would, once the run has come to a step."""

    def __init__(self, step: int):
        super().__init__()
        self.step = step

    def on_train_batch_end(self, batch, logs=None):
        if batch + 1 >= self.step:
            self.model.stop_training = True


@pytest.fixture(scope="session")
def whole_run(text_file, tmp_path_factory) -> Path:
    """A run of 20 updates that nothing disturbed."""
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    assert run(text_file, run_dir, "--histograms", "--profile_steps=4:5") == 0
    return run_dir


def test_a_run_leaves_everything_the_readme_names_behind(whole_run):
    assert (whole_run / "curves.png").read_bytes().startswith(b"\x89PNG")
    names = {entry.name for entry in (whole_run / "model").iterdir()}
    assert {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json",
        "training.json",
    } <= names  # fmt: skip
    provenance = json.loads((whole_run / "model/training.json").read_text())
    assert provenance["steps_trained"] == 20
    assert provenance["flags"]["batch_size"] == 4
    assert not [entry for entry in whole_run.rglob("*.tmp")]


def test_metrics_have_a_line_where_something_was_due_with_the_promised_names(whole_run):
    found = {row["step"]: row for row in rows(whole_run)}
    assert sorted(found) == [0, 3, 6, 9, 10, 12, 15, 18, 20]
    for step in (0, 10, 20):
        assert {"validation_loss", "validation_bits_per_byte"} <= found[step].keys()
    for step in (3, 6, 9, 12, 15, 18, 20):
        assert {"train_loss", "learning_rate", "gradient_norm", "update_to_weight_ratio"} <= found[step].keys()
        assert found[step]["gradient_norm"] > 0
    assert any(row.get("tokens_per_second", 0) > 0 and row["model_flops_utilization"] > 0 for row in found.values())
    assert found[20]["validation_loss"] < found[0]["validation_loss"]


def test_bits_per_byte_of_a_byte_model_is_its_loss_in_bits(whole_run):
    # With one token a byte, bits per byte is the loss over ln 2, but for the end-of-text tokens, which are no text.
    for row in rows(whole_run):
        if "validation_loss" in row:
            assert row["validation_bits_per_byte"] == pytest.approx(row["validation_loss"] / np.log(2), rel=0.02)


def test_tensorboard_shows_the_same_numbers_as_metrics_jsonl(whole_run):
    events = EventAccumulator(str(whole_run / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    tags = set(events.Tags()["tensors"])
    wanted = {"loss/train", "loss/validation", "bits_per_byte/validation", "optimizer/learning_rate",
              "optimizer/gradient_norm", "optimizer/update_to_weight_ratio", "speed/tokens_per_second",
              "speed/model_flops_utilization", "sample/from nothing"}  # fmt: skip
    assert wanted <= tags
    assert any("attention/query/kernel" in tag for tag in tags), "histograms"
    shown = {event.step: float(tf.make_ndarray(event.tensor_proto)) for event in events.Tensors("loss/validation")}
    written = {row["step"]: row["validation_loss"] for row in rows(whole_run) if "validation_loss" in row}
    assert shown == pytest.approx(written)
    assert list((whole_run / "tensorboard").rglob("*.xplane.pb")), "profiler trace"


def test_the_written_flags_repeat_the_run(whole_run, text_file, tmp_path):
    settings = command.COMMAND.parse([f"--flagfile={whole_run / 'flags.cfg'}", f"--run_dir={tmp_path / 'again'}"])
    again = TrainConfig(**settings)
    assert train(again, "") == 0
    assert_same_end(whole_run, tmp_path / "again")


@pytest.mark.parametrize("stop_at", [1, 7, 10])
def test_a_stopped_run_goes_on_to_the_same_end_bit_for_bit(whole_run, text_file, tmp_path, stop_at, capsys):
    flags = ("--histograms", "--profile_steps=4:5") if stop_at == 1 else ()
    assert run(text_file, tmp_path / "b", *flags, callbacks=(StopAt(stop_at),)) == 0
    assert f"--flagfile={tmp_path / 'b' / 'flags.cfg'}" in capsys.readouterr().out
    assert not (tmp_path / "b/model").exists()
    assert run(text_file, tmp_path / "b", *flags) == 0
    assert_same_end(whole_run, tmp_path / "b")


def test_a_finished_run_is_not_trained_again_and_goes_on_with_more_steps(whole_run, text_file, tmp_path, capsys):
    assert run(text_file, tmp_path / "c", "--max_steps=6") == 0
    before = final_state(tmp_path / "c")
    assert run(text_file, tmp_path / "c", "--max_steps=6") == 0
    assert "The run is finished" in capsys.readouterr().out
    after = final_state(tmp_path / "c")
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    assert run(text_file, tmp_path / "c", "--max_steps=8") == 0
    assert "--max_steps was 6, is 8" in capsys.readouterr().out
    assert rows(tmp_path / "c")[-1]["step"] == 8


def test_a_corrupted_newest_checkpoint_is_named_and_the_end_is_the_same(whole_run, text_file, tmp_path, capsys):
    run_dir = tmp_path / "d"
    assert run(text_file, run_dir, callbacks=(StopAt(13),)) == 0
    newest = max((run_dir / "checkpoints").glob("step-????????")) / "state.safetensors"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 0xFF
    newest.write_bytes(content)
    assert run(text_file, run_dir) == 0
    said = capsys.readouterr().out
    assert "damaged, the SHA-256" in said and "Resuming from" in said
    assert_same_end(whole_run, run_dir)


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--batch_size=2", "--batch_size: is 2, but the run in .* began with 4"),
        ("--seed=9", "--seed: is 9"),
        ("--optimizer=lion", "--optimizer: is lion"),
        ("--sequence_length=8", "--sequence_length: is 8"),
    ],
)
def test_a_changed_flag_that_makes_it_another_run_is_refused_by_name(whole_run, text_file, flag, words):
    before = final_state(whole_run)
    with pytest.raises(UserError, match=words):
        run(text_file, whole_run, flag)
    assert all(before[name].tobytes() == value.tobytes() for name, value in final_state(whole_run).items())


def test_changed_data_is_refused(whole_run, text_file, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text(text_file.read_text() + "One more line.\n")
    with pytest.raises(UserError, match="the data or the tokenizer changed"):
        run(other, whole_run)


def test_resume_never_leaves_an_old_run_alone(whole_run, text_file):
    with pytest.raises(UserError, match="--run_dir: .* holds a run at step 20"):
        run(text_file, whole_run, "--resume=never")


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="reads Linux's list of open files")
def test_a_run_that_fails_before_its_first_update_leaves_no_file_open(text_file, tmp_path, monkeypatch):
    def broken(dtype: str) -> float:
        raise ZeroDivisionError

    monkeypatch.setattr("tfgpt.training.training_loop.measured_peak_flops", broken)
    with pytest.raises(ZeroDivisionError) as failure:
        run(text_file, tmp_path / "run")
    opened = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
    # The failure, still at hand, keeps what the run had alive.
    assert failure and not [path for path in opened if path.startswith(str(tmp_path))]


def test_early_stopping_ends_a_run_that_learns_nothing(text_file, tmp_path, capsys):
    flags = ("--learning_rate=0", "--weight_decay=0", "--validate_every=2", "--early_stopping_patience=2")
    assert run(text_file, tmp_path / "e", *flags) == 0
    # The first validation with updates (step 2) is the best; steps 4 and 6 are not lower.
    assert rows(tmp_path / "e")[-1]["step"] == 6
    assert (tmp_path / "e/model/config.json").is_file()


def test_the_best_model_is_kept_not_the_last_unless_it_is_damaged(text_file, tmp_path, capsys):
    # The learning rate rises until it is far too high: a later validation is worse than an earlier one.
    run_dir = tmp_path / "f"
    flags = (
        "--validate_every=4",
        "--learning_rate=20",
        "--warmup_steps=400",
        "--schedule=constant",
        "--max_grad_norm=0",
    )
    assert run(text_file, run_dir, *flags, "--checkpoints_kept=1") == 0
    validations = {
        row["step"]: row["validation_loss"] for row in rows(run_dir) if "validation_loss" in row and row["step"]
    }
    best = min(validations, key=validations.get)
    assert best != 20, "the recipe of this test must diverge"
    assert json.loads((run_dir / "model/training.json").read_text())["step"] == best
    best_state = safetensors.numpy.load_file(run_dir / f"checkpoints/step-{best:08d}/state.safetensors")
    model = safetensors.numpy.load_file(run_dir / "model/model.safetensors")
    embedding = best_state["weights/decoder/token_embedding/embeddings"]
    assert any(np.array_equal(embedding, value) for value in model.values())
    with (run_dir / f"checkpoints/step-{best:08d}/state.safetensors").open("r+b") as file:
        file.truncate(100)
    capsys.readouterr()
    assert run(text_file, run_dir, *flags, "--checkpoints_kept=1") == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if "damaged" in line]
    assert line.endswith(f"set aside as step-{best:08d}.damaged, model/ is the last, of step 20, instead of the best")
    assert json.loads((run_dir / "model/training.json").read_text())["step"] == 20


def test_non_finite_updates_are_skipped_then_rolled_back_with_a_lower_rate_then_given_up(text_file, tmp_path, capsys):
    flags = ("--learning_rate=1e30", "--warmup_steps=0", "--max_grad_norm=0", "--rollback_after=3", "--max_rollbacks=2")
    with pytest.raises(RunError, match="3 updates in a row were not finite and 2 roll-backs did not help"):
        run(text_file, tmp_path / "g", *flags, "--checkpoint_every=1", "--max_steps=400")
    said = capsys.readouterr().err
    assert "the learning rate times 0.5 (roll-back 1 of 2)" in said
    assert "the learning rate times 0.25 (roll-back 2 of 2)" in said


def test_samples_continue_the_prompts_by_the_averages_at_their_temperature(text_file, tmp_path):
    for temperature in (0, 9):
        flags = ("--sample_prompt=The fox", "--sample_tokens=6", f"--sample_temperature={temperature}")
        wanted = recipe(text_file, tmp_path / "m", *flags, "--ema_decay=0.9")
        objective = get_objective(wanted.objective.objective)
        data = objective.prepare(wanted)
        trainer, _ = build_trainer_and_data(wanted, data, tf.distribute.get_strategy(), objective)
        samples = Samples(wanted, trainer, data.tokenizer, objective)
        first = samples(0)["The fox"]
        for weight in trainer.decoder.trainable_variables:
            weight.assign(tf.zeros(weight.shape))
        second = samples(1)["The fox"]
        assert first.startswith("The fox") and len(first) > len("The fox")
        assert (first == second) == (temperature == 0)


class Killed(Exception):
    """Ends a run as a kill does, nothing more is written."""


class SkipsThenKill(keras.callbacks.Callback):
    """Makes updates count as skipped: two in a row four times, then three; ends the run after the roll-back."""

    def on_train_begin(self, logs=None):
        self.steps = []

    def on_train_batch_end(self, batch, logs=None):
        self.steps.append(batch + 1)
        if self.steps.count(5) == 2:
            raise Killed
        in_a_row = 3 if batch + 1 == 7 else 2 * (batch % 2)
        self.model.consecutive_skipped.assign(in_a_row)
        self.model.skipped_updates.assign_add(in_a_row)


def test_skips_roll_back_when_they_are_in_a_row_and_the_lower_rate_is_saved_at_once(text_file, tmp_path):
    skips, run_dir = SkipsThenKill(), tmp_path / "k"
    flags = ("--rollback_after=3", "--rollback_factor=0.3", "--checkpoint_every=4", "--steps_per_execution=1")
    with pytest.raises(Killed):
        run(text_file, run_dir, *flags, "--sample_tokens=0", "--notensorboard", callbacks=(skips,))
    assert skips.steps == [1, 2, 3, 4, 5, 6, 7, 5]
    facts = json.loads((run_dir / "checkpoints/step-00000004/state.json").read_text())
    assert facts["state"]["rollbacks"] == 1
    assert final_state(run_dir)["optimizer/learning_rate_scale"] == pytest.approx(0.3)


class SkipsOnce(keras.callbacks.Callback):
    """Makes three updates count as skipped when the run first comes to step 7."""

    steps: tuple[int, ...] = ()

    def on_train_batch_end(self, batch, logs=None):
        if batch + 1 == 7 and 7 not in self.steps:
            self.model.consecutive_skipped.assign(3)
        self.steps += (batch + 1,)


def test_after_a_roll_back_the_run_continues_with_the_same_batches_to_the_same_end(whole_run, text_file, tmp_path):
    skips, run_dir = SkipsOnce(), tmp_path / "r"
    flags = ("--rollback_after=3", "--rollback_factor=1", "--steps_per_execution=1")
    assert run(text_file, run_dir, *flags, callbacks=(skips,)) == 0
    assert skips.steps == (*range(1, 8), *range(6, 21))
    expected, found = final_state(whole_run), final_state(run_dir)
    assert all(found[name].tobytes() == value.tobytes() for name, value in expected.items())


class AveragesFromTheBeginning(keras.callbacks.Callback):
    """Puts the averages back to the first weights before each validation."""

    def on_train_begin(self, logs=None):
        self.first = [variable.numpy().copy() for variable in self.model.decoder.trainable_variables]

    def on_train_batch_end(self, batch, logs=None):
        for average, value in zip(self.model.averages, self.first, strict=True):
            average.assign(value)


def test_averaged_weights_are_validated_and_written(text_file, tmp_path):
    first, run_dir = AveragesFromTheBeginning(), tmp_path / "l"
    flags = ("--ema_decay=0.9", "--max_steps=4", "--validate_every=4", "--save_best=false", "--learning_rate=0.01")
    assert run(text_file, run_dir, *flags, "--sample_tokens=0", "--notensorboard", callbacks=(first,)) == 0
    before, *_, after = [row["validation_loss"] for row in rows(run_dir) if "validation_loss" in row]
    assert after == before
    raw = final_state(run_dir)["weights/decoder/token_embedding/embeddings"]
    model = safetensors.numpy.load_file(run_dir / "model/model.safetensors")
    [written] = [value for value in model.values() if value.shape == raw.shape]
    assert any(np.array_equal(written, value) for value in first.first)
    assert not np.array_equal(written, raw)


def test_a_run_starts_from_another_model_and_its_tokenizer(whole_run, text_file, tmp_path):
    run_dir = tmp_path / "h"
    settings = [f"--train_text={text_file}", f"--run_dir={run_dir}", f"--init_from={whole_run / 'model'}"]
    settings += ["--sequence_length=16", "--batch_size=4", "--max_steps=2", "--learning_rate=0", "--weight_decay=0"]
    wanted = TrainConfig(**command.COMMAND.parse([*settings, "--compile=graph", "--sample_tokens=0"]))
    assert train(wanted, command.COMMAND.flag_file(wanted.settings())) == 0
    one = safetensors.numpy.load_file(whole_run / "model/model.safetensors")
    two = safetensors.numpy.load_file(run_dir / "model/model.safetensors")
    assert all(np.array_equal(one[name], two[name]) for name in one)
    best = min(row["validation_loss"] for row in rows(whole_run)[1:] if "validation_loss" in row)
    assert rows(run_dir)[0]["validation_loss"] == pytest.approx(best, rel=1e-5)


def start(text: Path, run_dir: Path, *more: str, limit_bytes: int | None = None) -> subprocess.Popen:
    """The command as a process; `limit_bytes` makes the operating system refuse longer files, as a full disk does."""

    def limit() -> None:
        if limit_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    return subprocess.Popen(
        [sys.executable, "-m", "tfgpt.train", *SMALL, f"--train_text={text}", f"--run_dir={run_dir}", *more],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=limit,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_sigterm_saves_says_how_to_go_on_and_exits_with_0(text_file, tmp_path):
    run_dir = tmp_path / "i"
    process = start(text_file, run_dir, "--max_steps=1000000")
    deadline = time.monotonic() + 120
    while not (run_dir / "metrics.jsonl").is_file() or len(rows(run_dir)) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    assert f"python -m tfgpt.train --flagfile={run_dir / 'flags.cfg'}" in out
    assert "Traceback" not in error


def test_a_full_disk_ends_the_run_with_one_line_and_exit_code_1(text_file, tmp_path):
    # The data is cached by earlier tests; the files of this run stay small but for the checkpoint.
    run_dir = tmp_path / "j"
    size = max(path.stat().st_size for path in (text_file, *Path(os.environ["TFGPT_CACHE_DIR"]).rglob("*")))
    more = ("--hidden_dim=64", "--intermediate_dim=512", "--notensorboard", "--checkpoint_every=2")
    process = start(text_file, run_dir, *more, limit_bytes=min(size + 1, 200_000))
    out, error = process.communicate(timeout=120)
    assert process.returncode == 1, out + error
    assert "the disk is full" in error.splitlines()[-1]
    assert "Traceback" not in error


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_read(text_file, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write here"):
        run(text_file, tmp_path / "file" / "run")


def test_settings_that_cannot_work_are_refused_before_tensorflow_is_imported():
    code = (
        "import sys; from tfgpt.train import main; "
        "code = main(['--train_text=x.txt', '--num_query_heads=5']); "
        "print(code, 'tensorflow' in sys.modules, 'keras' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == ["2", "False", "False"]
    assert done.stderr.count("\n") == 1 and "--num_query_heads" in done.stderr


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "--train_text: is needed"),
        (
            ["--train_text=x", "--gradient_accumulation_steps=3"],
            "--gradient_accumulation_steps: 3 does not divide --batch_size",
        ),
        (["--train_text=x", "--max_sequence_length=8"], "--sequence_length: .* is longer than the model's positions"),
        (["--train_text=x", "--checkpoint_every=often"], "--checkpoint_every: 'often' is neither"),
        (["--train_text=x", "--profile_steps=9:3"], "--profile_steps: '9:3' is not FIRST:LAST"),
        (["--train_text=x", "--validation_fraction=0"], "--validation_fraction: must not be 0"),
        (["--train_text=x", "--init_from=/no/where"], "/no/where"),
    ],
)
def test_a_combination_that_cannot_work_is_one_line(flags, words):
    with pytest.raises(UserError, match=words):
        TrainConfig(**command.COMMAND.parse(flags))


def test_the_default_run_directory_is_named_after_the_text():
    def named(text: str) -> str:
        return str(TrainConfig(**command.COMMAND.parse([f"--train_text={text}"])).run.run_dir)

    assert named("my/*.txt") == "runs/my"
    assert named("sample:chitchat") == "runs/chitchat"
    assert named("/data/tinyshakespeare.txt") == "runs/tinyshakespeare"
