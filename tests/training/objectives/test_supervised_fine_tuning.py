"""Claims about --objective=chat: it learns to answer and to stop, resumes exactly, and replicas change nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from tests.training.test_run import assert_same_end, parse, rows, train_recipe
from tfgpt.common.errors import SettingError
from tfgpt.generation.config import SamplingConfig
from tfgpt.generation.generator import Generator
from tfgpt.generation.prompts import encode_chat

TINY = (
    "--objective=chat --preset=tiny --num_layers=1 --num_query_heads=2 --num_key_value_heads=1 --hidden_dim=32 "
    "--head_dim=16 --intermediate_dim=64 --sequence_length=64 --batch_size=8 --warmup_steps=2 --schedule=constant "
    "--compile=graph --sample_tokens=0 --tensorboard=false --tokenizer=bytes --strategy=one"
).split()


def run(*flags: str) -> Path:
    wanted = parse(*TINY, *flags)
    assert train_recipe(wanted) == 0
    return wanted.run_dir


def weights(run_dir: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(run_dir / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def chats(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("chats")
    for name, question, answer in (("sums", "What is {n} and 1?", "It is {m}."), ("names", "I am {n}.", "Hi {n}!")):
        lines = []
        for n in range(120):
            asked, said = question.format(n=n, m=n + 1), answer.format(n=n, m=n + 1)
            turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
            lines.append(json.dumps({"messages": turns}))
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return [f"--train_text={folder / 'sums.jsonl'}", f"--train_text={folder / 'names.jsonl'}"]


def test_tuned_on_the_sample_dialogues_it_ends_its_replies(tmp_path):
    directory = run(
        "--train_text=sample:chatterbot", "--tokenizer=bpe", "--vocabulary_size=768", "--max_steps=150",
        "--batch_size=16", "--learning_rate=0.01", "--validate_every=150", f"--run_dir={tmp_path / 'run'}",
    )  # fmt: skip
    before, after = [row for row in rows(directory) if "validation_loss" in row]
    assert after["validation_loss"] < 0.75 * before["validation_loss"]
    generator = Generator.load(directory / "model")
    questions = ["Hello!", "What is AI?", "Tell me a joke", "How are you?", "Do you like music?"]
    asked = [questions[number % 5] for number in range(200)]
    prompts = [encode_chat(generator.tokenizer, [{"role": "user", "content": question}]) for question in asked]
    sampling = [SamplingConfig(max_new_tokens=64, temperature=0.8, seed=seed) for seed in range(200)]
    replies = [found[0] for found in generator.generate(prompts, sampling, batch_size=100)]
    assert sum(reply.finish_reason == "stop" for reply in replies) >= 190
    assert sum(bool(reply.text.strip()) for reply in replies) >= 190


def test_a_resumed_run_ends_as_one_that_was_not_stopped(tmp_path, chats):
    options = [*chats, "--mixture=1", "--mixture=2", "--augment_casing=0.3", "--validate_every=3", "--log_every=3"]
    whole = run(*options, "--max_steps=6", f"--run_dir={tmp_path / 'whole'}")
    run(*options, "--max_steps=3", f"--run_dir={tmp_path / 'cut'}")
    cut = run(*options, "--max_steps=6", f"--run_dir={tmp_path / 'cut'}")
    assert_same_end(whole, cut)
    last = rows(whole)[-1]
    # Every source is measured by itself as well; the whole is no less than the best and no more than the worst.
    by_source = [value for name, value in last.items() if name.startswith("validation_loss/")]
    assert len(by_source) == 2 and min(by_source) < last["validation_loss"] < max(by_source)


def test_two_replicas_give_the_weights_of_one(tmp_path, chats, tfgpt):
    options = [*chats, "--max_steps=3", "--augment_spacing=0.3", "--optimizer=muon", "--validate_every=3"]
    one = run(*options, f"--run_dir={tmp_path / 'one'}")
    flags = [*TINY, *options, f"--run_dir={tmp_path / 'two'}", "--logical_cpus=2", "--strategy=mirrored"]
    done = tfgpt("train", *flags)
    assert done.returncode == 0, done.stderr
    expected, found = weights(one), weights(tmp_path / "two")
    assert max(float(np.abs(found[name] - value).max()) for name, value in expected.items()) < 1e-5
    losses = [rows(directory)[-1]["validation_loss"] for directory in (one, tmp_path / "two")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--mixture=1"], "--mixture: has 1 weights for 2 --train_text"),
        (["--mixture=1", "--mixture=no"], "--mixture: 'no' is not a number above 0"),
        (["--mixture=1", "--mixture=2", "--mixture_temperature=2"], "--mixture_temperature: is for sources without"),
    ],
)
def test_mixtures_that_cannot_be_are_refused_before_anything_is_read(chats, flags, problem):
    with pytest.raises(SettingError, match=problem):
        parse(*TINY, *chats, *flags)
