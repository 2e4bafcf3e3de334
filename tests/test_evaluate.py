"""`python -m tfgpt.evaluate`: its figures are those of `transformers` and of the run itself, on one and two devices."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from tests.conftest import ROOT, TEXT
from tests.serving.models import save_model
from tfgpt import evaluate, train
from tfgpt.tokenization.train_tokenizer import train_bpe
from tfgpt.training.run import train as train_run
from tfgpt.training.train_config import TrainConfig

CONTEXT = 32


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    shape = {"num_query_heads": 2, "max_sequence_length": CONTEXT, "query_key_norm": False, "initializer_range": 0.02}
    return save_model(tmp_path_factory.mktemp("model"), train_bpe([TEXT], 300), unused_ids=0, **shape)


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> list[Path]:
    """Two texts whose tokens fill neither rows nor batches."""
    folder = tmp_path_factory.mktemp("texts")
    one, other = folder / "one.txt", folder / "other.txt"
    one.write_text(TEXT * 4 + "Ünïcode stays text: 漢字, too.\n", encoding="utf-8")
    other.write_text("Chapter 2.\n" + TEXT)
    return [one, other]


@pytest.fixture(scope="module")
def run_dir(texts, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("run") / "run"
    flags = (
        "--tokenizer=bytes --preset=tiny --num_layers=1 --num_query_heads=2 --num_key_value_heads=1 --hidden_dim=16 "
        "--head_dim=8 --intermediate_dim=32 --sequence_length=16 --batch_size=4 --compile=graph --max_steps=4 "
        "--validate_every=4 --sample_tokens=0 --tensorboard=false --document_masking --validation_fraction=0.3 "
        f"--train_text={texts[0]} --run_dir={directory} --cache_dir={directory.parent / 'cache'}"
    ).split()
    recipe = TrainConfig(**train.COMMAND.parse(flags))
    assert train_run(recipe, train.COMMAND.flag_file(recipe.settings())) == 0
    return directory


def figures(capsys, *flags: str) -> dict:
    capsys.readouterr()
    assert evaluate.COMMAND.run([*flags, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, *flags: str) -> str:
    capsys.readouterr()
    assert evaluate.COMMAND.run(list(flags)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tfgpt.evaluate: ")]
    return line


def sums_of_transformers(model: Path, text: Path, length: int) -> tuple[float, float, int, int, float]:
    """Nats, nats of what is text, tokens, bytes and right first guesses, row by row with PyTorch."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    ids = torch.tensor([end, *tokenizer(text.read_text())["input_ids"], end])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(model).eval()
    nats, right = [], []
    for start in range(0, len(ids) - 1, length):
        row, targets = ids[start : start + length], ids[start + 1 : start + length + 1]
        with torch.no_grad():
            logits = theirs(row[None, : len(targets)]).logits[0]
        nats.append(torch.nn.functional.cross_entropy(logits, targets, reduction="none").double())
        right.append(logits.argmax(-1) == targets)
    every = torch.cat(nats)
    # The last target is the end of the text: it stands for no byte.
    size = len(text.read_bytes())
    return float(every.sum()), float(every[:-1].sum()), len(every), size, float(torch.cat(right).sum())


@pytest.mark.parametrize("length", [CONTEXT, 20])
def test_the_figures_are_those_of_transformers_on_the_same_rows(model, texts, capsys, length):
    found = figures(capsys, f"--model={model}", *(f"--text={text}" for text in texts), f"--sequence_length={length}")
    expected = np.array([sums_of_transformers(model, text, length) for text in texts])
    assert found["sequence_length"] == length
    assert [row["name"] for row in found["texts"]] == [*map(str, texts), "all"]
    for row, (nats, text_nats, tokens, size, right) in zip(found["texts"], [*expected, expected.sum(0)], strict=True):
        assert (row["tokens"], row["bytes"]) == (tokens, size)
        assert row["loss"] == pytest.approx(nats / tokens, abs=1e-5)
        assert row["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-4)
        assert row["bits_per_byte"] == pytest.approx(text_nats / size / math.log(2), abs=1e-5)
        assert row["accuracy"] == pytest.approx(right / tokens)


def test_a_batchs_size_changes_no_figure(model, texts, capsys):
    flags = [f"--model={model}", f"--text={texts[0]}"]
    [one] = figures(capsys, *flags, "--batch_size=1")["texts"]
    [other] = figures(capsys, *flags, "--batch_size=5")["texts"]
    assert one.pop("name") == other.pop("name")
    assert one == pytest.approx(other, rel=1e-6)


def test_a_run_is_judged_on_its_own_held_out_text_as_it_judged_itself(run_dir, capsys):
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    found = figures(capsys, f"--model={run_dir}")
    [row] = found["texts"]
    assert found["sequence_length"] == 16
    assert row["loss"] == pytest.approx(rows[-1]["validation_loss"], rel=1e-6)
    assert row["bits_per_byte"] == pytest.approx(rows[-1]["validation_bits_per_byte"], rel=1e-6)


def test_logical_cpus_and_a_cluster_give_the_same_table(run_dir, tmp_path, capsys):
    evaluate.COMMAND.run([f"--model={run_dir}"])
    expected = capsys.readouterr().out.splitlines()[1]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHON": sys.executable, "LOG_DIR": str(tmp_path)}
    commands = [
        [sys.executable, "-m", "tfgpt.evaluate", f"--model={run_dir}", "--strategy=mirrored", "--logical_cpus=2"],
        ["bash", ROOT / "scripts/launch_local.sh", "2", "evaluate", f"--model={run_dir}"],
    ]
    running = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    for process in running:
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        assert output.splitlines()[-2:] == [expected, "rows of 16 tokens, float32, devices: 2"]


def test_held_out_text_is_made_again_where_the_cache_is_gone_and_refused_where_it_changed(
    run_dir, texts, tmp_path, capsys
):
    [before] = figures(capsys, f"--model={run_dir}")["texts"]
    moved = tmp_path / "model"
    shutil.copytree(run_dir / "model", moved)
    said = json.loads((moved / "training.json").read_text())
    said["data"]["validation"]["directory"] = str(tmp_path / "gone")
    (moved / "training.json").write_text(json.dumps(said))
    cache = f"--cache_dir={tmp_path / 'cache'}"
    [again] = figures(capsys, f"--model={moved}", cache)["texts"]
    assert again == before
    changed = tmp_path / "changed.txt"
    changed.write_text(texts[0].read_text() + TEXT)
    said["data"]["corpus"]["train_text"] = [str(changed)]
    (moved / "training.json").write_text(json.dumps(said))
    assert refused(capsys, f"--model={moved}", cache).endswith(
        "cannot be made again: it, or how it is read, has changed since"
    )
    said["flags"]["objective"] = "dpo"
    (moved / "training.json").write_text(json.dumps(said))
    assert "what --objective=dpo holds out is not a text" in refused(capsys, f"--model={moved}", cache)
    said["flags"]["objective"] = "pretrain"
    said["data"]["corpus"]["train_text"] = [str(tmp_path / "missing.txt")]
    (moved / "training.json").write_text(json.dumps(said))
    line = refused(capsys, f"--model={moved}", cache)
    assert "cannot be made again" in line and "missing.txt" in line


def test_in_conversations_what_the_assistant_says_counts(model, tmp_path, capsys):
    turns = [("user", "Hi"), ("assistant", "Fox."), ("user", "So?"), ("assistant", "No.")]
    text = tmp_path / "chats.jsonl"
    text.write_text(json.dumps({"messages": [{"role": role, "content": said} for role, said in turns]}) + "\n")
    length = "--sequence_length=32"
    [found] = figures(capsys, f"--model={model}", f"--text={text}", "--objective=chat", length)["texts"]
    [every] = figures(capsys, f"--model={model}", f"--text={text}", "--objective=pretrain", length)["texts"]
    # The end of each of the assistant's turns counts as a token, and stands for no byte.
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    assert found["tokens"] == sum(len(tokenizer(said)["input_ids"]) + 1 for role, said in turns if role == "assistant")
    assert found["bytes"] == len("Fox.No.") < every["bytes"]
    plain = tmp_path / "plain.txt"
    plain.write_text(TEXT)
    assert "plain.txt" in refused(capsys, f"--model={model}", f"--text={plain}", "--objective=chat")


def test_mistakes_are_one_line_that_names_the_flag(model, texts, tmp_path, capsys):
    text = f"--text={texts[0]}"
    assert "--model: is missing" in refused(capsys, text)
    assert f"--text: is needed, {model} does not say" in refused(capsys, f"--model={model}")
    assert "missing.txt" in refused(capsys, f"--model={model}", f"--text={tmp_path / 'missing.txt'}")
    line = refused(capsys, f"--model={model}", text, "--sequence_length=33")
    assert line.endswith("--sequence_length: 33 is longer than the model's 32 positions")
