"""The data checks: wrong targets, document borders, statistics, too little text."""

from pathlib import Path

import numpy as np
import pytest

from tests.diagnosis.probes import config_of, prepared
from tfgpt.diagnosis.data import check_batch, check_corpus, check_tokens, count_tokens
from tfgpt.diagnosis.run_checks import first_batch
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
    config = config_of(text_file, "--document_masking")
    return first_batch(config, prepared(config), get_objective(config.objective.objective))


def test_the_pipelines_own_batch_is_in_order_for_a_large_enough_vocabulary(batch):
    assert check_batch(batch, 260).status == "ok"
    found = check_batch(batch, 100)
    assert found.status == "FAIL" and "0 to 99" in found.line
    two_documents = {"segment_ids": np.arange(32)[None] // 16, "positions": np.arange(32)[None] % 16}
    assert check_batch({name: array[:1] for name, array in batch.items()} | two_documents, 260).status == "ok"


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("targets", lambda batch: batch["token_ids"], "the inputs themselves"),
        ("targets", lambda batch: np.roll(batch["token_ids"], -2, axis=1), "2 positions later"),
        ("targets", lambda batch: np.roll(batch["token_ids"], 1, axis=1), "-1 positions later"),
        ("targets", lambda batch: batch["token_ids"][:, ::-1], "of the targets are the token that follows"),
        ("weights", lambda batch: np.zeros_like(batch["weights"]), "no target counts"),
        ("segment_ids", lambda batch: np.arange(32)[None] // 16 + np.zeros((4, 1)), "positions do not restart"),
    ],
)
def test_a_broken_batch_fails(batch, name, change, words):
    found = check_batch({**batch, name: change(batch)}, 260)
    assert found.status == "FAIL" and words in found.line


def test_token_statistics_are_those_of_the_text(stories: Path):
    # All of it to train on, so that every number can be told by hand: one id a byte, end-of-text around documents.
    config = config_of(stories, f"--validation_text={stories}x")
    (stories.parent / "stories.jsonlx").write_text("held out " * 1000)
    data = prepared(config)
    numbers = check_tokens(data, config).numbers
    assert numbers["tokens"] == 100 * (3 + 5 + 1000) + 301
    assert (numbers["shortest_document"], numbers["median_document"], numbers["longest_document"]) == (3, 5, 1000)
    assert numbers["bytes_per_token"] == pytest.approx(100 * 1008 / (100 * 1008 + 300))
    # Ten digits, x and y.
    assert numbers["unused_ids"] == 256 - 12
    by_id, _ = count_tokens(data.train)
    assert by_id[ord("y")] == 99_700 and by_id.sum() == numbers["tokens"] == numbers["tokens_counted"]


def test_counting_can_stop_inside_a_document(stories: Path):
    by_id, lengths = count_tokens(prepared(config_of(stories)).train, limit=50)
    assert by_id.sum() == 50 and lengths.max() <= 49


def test_a_vocabulary_that_mostly_never_occurs_gets_a_smaller_one_advised(stories: Path, tmp_path: Path):
    from tfgpt.tokenization.train_tokenizer import train_bpe

    train_bpe([f"word{number} word{number}" for number in range(3000)], 2048).save(tmp_path)
    config = config_of(stories, f"--tokenizer={tmp_path}")
    found = check_tokens(prepared(config), config)
    assert found.status == "warn" and "--tokenizer=bpe" in found.advice[0]


@pytest.mark.parametrize(("steps", "status"), [(100, "ok"), (8_000, "warn"), (100_000, "FAIL")])
def test_a_text_that_is_far_too_small_for_the_run_fails(text_file: Path, steps: int, status: str):
    # About 62,000 tokens; 128 a step: 0.2, 16 and 205 times the text.
    config = config_of(text_file, f"--max_steps={steps}")
    found = check_corpus(prepared(config), config, 260)
    assert found.status == status
    assert found.numbers["tokens_read"] == 128 * steps
    if status == "FAIL":
        # Following the advice helps.
        flags = found.advice[0].split(" reads")[0].split()
        better = config_of(text_file, f"--max_steps={steps}", *flags)
        data = prepared(better)
        assert check_corpus(data, better, 260).status == "ok"
