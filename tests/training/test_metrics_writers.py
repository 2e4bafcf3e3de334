"""Claims about what a run shows: metrics.jsonl after accidents, curves under odd names, words of caution."""

import dataclasses
import json
import os

import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

from tfgpt.corpus.config import CorpusConfig
from tfgpt.tokenization.tokenizer import Tokenizer
from tfgpt.tokenization.tokenizer_json import new_document
from tfgpt.training.config import RunConfig, ScheduleConfig
from tfgpt.training.metrics_writers import JsonlMetricsWriter, TensorBoardWriter, draw_curves, read_metrics
from tfgpt.training.run import has_other_tokenizer
from tfgpt.training.train_config import TrainConfig


def test_a_hole_in_metrics_jsonl_costs_its_line_and_no_other(tmp_path):
    # anthropics/claude-code#49876: what ext4 leaves of an append that the power cut interrupted.
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "train_loss": 1.0}) for step in range(1, 8)]
    lines[2], lines[4], lines[5] = "\0" * 300, lines[4][:9] + lines[5], "\0" * 40 + lines[5]
    path.write_text("\n".join([*lines, '{"step": 8, "tr']))
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 4, 6, 7]
    JsonlMetricsWriter(path, 7).close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 4, 6, 7]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("loss", [2.0, 0.0])
def test_curves_are_drawn_without_a_warning_under_any_name_and_of_a_loss_of_zero(tmp_path, loss):
    # matplotlib/matplotlib#20266: dollar signs are no formula; the run ended with a traceback when all was done.
    rows = [{"step": step, "train_loss": loss, "gradient_norm": loss, "validation_of_$1_$2": 1.0} for step in (1, 2)]
    draw_curves(rows, tmp_path / "curves.png", "runs/cost_$1_$2: tiny, 2 steps")
    assert (tmp_path / "curves.png").stat().st_size > 1000


@pytest.mark.parametrize(("steps", "words"), [(3, "the learning rate reaches only 6e-06, 0.6%"), (501, None)])
def test_a_warmup_that_outlasts_the_run_is_said(steps, words):
    # Morizeyao/GPT2-Chinese#60.
    recipe = TrainConfig(CorpusConfig(train_text=("a.txt",)), schedule=ScheduleConfig(warmup_steps=500))
    cautions = dataclasses.replace(recipe, run=RunConfig(run_dir="r", max_steps=steps)).cautions()
    assert words in cautions[0] if words else not cautions


def test_another_tokenizer_than_the_models_is_noticed(tmp_path):
    # pytorch/torchtitan#2074: of no more ids than the model has rows, so nothing fails.
    own, other = Tokenizer(new_document([(b"a", b"b")])), Tokenizer(new_document([(b"b", b"a")]))
    own.save(tmp_path)
    assert has_other_tokenizer(other, tmp_path) and not has_other_tokenizer(own, tmp_path)


def test_tensorboard_shows_each_step_once_after_a_kill(tmp_path):
    # tensorflow/tensorboard#3732: curves that run back. The event files of two processes, one second apart or more.
    for first, last in ((1, 7), (4, 9)):
        files = TensorBoardWriter(tmp_path, first - 1)
        for step in range(first, last):
            files.scalars({"step": step, "train_loss": float(first)})
        files.close()
        for path in tmp_path.glob(f"*.{os.getpid()}.*"):
            path.rename(str(path).replace(f".{os.getpid()}.", f".{first}."))
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    shown = [(event.step, float(tf.make_ndarray(event.tensor_proto))) for event in events.Tensors("loss/train")]
    assert shown == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 4.0), (5, 4.0), (6, 4.0), (7, 4.0), (8, 4.0)]
