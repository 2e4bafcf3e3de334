"""Claims about the checks of data: wrong targets, borders, statistics, too little text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.diagnosis.subjects import recipe_of
from tfgpt.diagnosis.data import check_batch, check_corpus, check_tokens, count_tokens
from tfgpt.diagnosis.run_checks import training_batch
from tfgpt.pipeline.prepare import prepare
from tfgpt.training.objectives.base import get_objective


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of 3, 5 and 1,000 letters (JSON Lines), 100 of each, all different."""
    path = tmp_path_factory.mktemp("stories") / "stories.jsonl"
    texts = [f"{number:03d}" for number in range(100)] + [f"x{number:04d}" for number in range(100)]
    texts += [f"{number:03d}" + "y" * 997 for number in range(100)]
    path.write_text("".join(f'{{"text": "{text}"}}\n' for text in texts))
    return path


@pytest.fixture(scope="module")
def batch(text_file: Path) -> dict[str, np.ndarray]:
    """The first batch of a run with document masking."""
    recipe = recipe_of(text_file, "--document_masking")
    data = prepare(recipe.corpus, recipe.tokenizer, log=lambda line: None)
    return training_batch(recipe, data, get_objective(recipe.objective.objective))


def test_the_pipelines_own_batch_is_in_order(batch):
    assert check_batch(batch, 260).status == "ok"


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (lambda ids: ids, "the inputs themselves"),
        (lambda ids: np.roll(ids, -2, axis=1), "2 positions later"),
        (lambda ids: np.roll(ids, 1, axis=1), "-1 positions later"),
        (lambda ids: ids[:, ::-1], "of the targets are the token that follows"),
    ],
)
def test_targets_that_are_not_the_next_tokens_fail(batch, targets, words):
    broken = {**batch, "targets": targets(batch["token_ids"])}
    found = check_batch(broken, 260)
    assert found.status == "FAIL" and words in found.line


def test_ids_outside_the_vocabulary_fail(batch):
    found = check_batch(batch, 100)
    assert found.status == "FAIL" and "0 to 99" in found.line


def test_a_batch_without_a_target_that_counts_fails(batch):
    found = check_batch({**batch, "weights": np.zeros_like(batch["weights"])}, 260)
    assert found.status == "FAIL" and "no target counts" in found.line


def test_positions_that_run_on_into_the_next_document_fail():
    ids = np.arange(6, dtype=np.int32)[None]
    broken = {
        "token_ids": ids,
        "targets": ids + 1,
        "weights": np.ones(ids.shape, np.float32),
        "segment_ids": np.array([[1, 1, 1, 2, 2, 2]], np.int32),
        "positions": ids,
    }
    assert "positions do not restart" in check_batch(broken, 260).line
    assert check_batch({**broken, "positions": np.array([[0, 1, 2, 0, 1, 2]], np.int32)}, 260).status == "ok"


def test_token_statistics_are_those_of_the_text(stories: Path):
    # All of it to train on, so that every number can be told by hand: one id a byte, end-of-text around documents.
    recipe = recipe_of(stories, f"--validation_text={stories}x")
    (stories.parent / "stories.jsonlx").write_text("held out " * 1000)
    data = prepare(recipe.corpus, recipe.tokenizer, log=lambda line: None)
    numbers = check_tokens(data, recipe).numbers
    assert numbers["tokens"] == 100 * (3 + 5 + 1000) + 301
    assert (numbers["shortest_document"], numbers["median_document"], numbers["longest_document"]) == (3, 5, 1000)
    assert numbers["bytes_per_token"] == pytest.approx(100 * 1008 / (100 * 1008 + 300))
    # Ten digits, x and y.
    assert numbers["unused_ids"] == 256 - 12
    counts = count_tokens(data.train)
    assert counts.by_id[ord("y")] == 99_700 and counts.counted == numbers["tokens"]


def test_counting_can_stop_inside_a_document(stories: Path):
    recipe = recipe_of(stories)
    data = prepare(recipe.corpus, recipe.tokenizer, log=lambda line: None)
    counts = count_tokens(data.train, limit=50)
    assert counts.counted == 50 == counts.by_id.sum() and counts.document_lengths.max() <= 49


def test_a_vocabulary_that_mostly_never_occurs_gets_a_smaller_one_advised(stories: Path, tmp_path: Path):
    from tfgpt.tokenization.train_tokenizer import train_bpe

    train_bpe([f"word{number} word{number}" for number in range(3000)], 2048).save(tmp_path)
    recipe = recipe_of(stories, f"--tokenizer={tmp_path}")
    found = check_tokens(prepare(recipe.corpus, recipe.tokenizer, log=lambda line: None), recipe)
    assert found.status == "warn" and "--tokenizer=bpe" in found.advice[0]


@pytest.mark.parametrize(("steps", "status"), [(100, "ok"), (8_000, "warn"), (100_000, "FAIL")])
def test_a_text_that_is_far_too_small_for_the_run_fails(text_file: Path, steps: int, status: str):
    # About 62,000 tokens; 128 a step: 0.2, 16 and 205 times the text.
    recipe = recipe_of(text_file, f"--max_steps={steps}")
    found = check_corpus(prepare(recipe.corpus, recipe.tokenizer, log=lambda line: None), recipe, 260)
    assert found.status == status
    assert found.numbers["tokens_read"] == 128 * steps
    if status == "FAIL":
        # Following the advice helps.
        flags = found.advice[0].split(" reads")[0].split()
        better = recipe_of(text_file, f"--max_steps={steps}", *flags)
        data = prepare(better.corpus, better.tokenizer, log=lambda line: None)
        assert check_corpus(data, better, 260).status == "ok"
