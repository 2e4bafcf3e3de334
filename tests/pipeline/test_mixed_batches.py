"""Pretraining on several sources in given shares: each source once an epoch, a step the same however it is read."""

import itertools

import numpy as np
import pytest

from tests.pipeline.counting_shards import counting_shards, write_raw_shards
from tfgpt.common.errors import UserError
from tfgpt.corpus.config import CorpusConfig
from tfgpt.pipeline.mixed_batches import MixedRows, mixed_training_batches, windows
from tfgpt.pipeline.mixture import BLOCK, Mixture
from tfgpt.pipeline.prepare import prepare
from tfgpt.tokenization.config import TokenizerConfig

LENGTH, SEED = 8, 5


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    small = counting_shards(folder / "small", 8 * LENGTH)
    large = write_raw_shards(folder / "large", np.append(np.append(0, np.arange(1000, 1800)), 0), padding_id=2000)
    sources = [small, large]
    sizes = [windows(shards, LENGTH, "x") for shards in sources]
    return MixedRows(sources, Mixture(sizes, np.array([0.25, 0.75]), SEED), LENGTH, True, SEED)


def taken(rows, count, **options):
    return list(itertools.islice(mixed_training_batches(rows, batch_size=8, **options).as_numpy_iterator(), count))


def test_rows_come_in_the_shares_asked_for_and_each_epoch_of_a_source_is_read_once(rows):
    batches = taken(rows, BLOCK // 8)
    targets = np.concatenate([batch["targets"] for batch in batches])
    of_small = targets[targets.max(axis=1) < 1000]
    assert len(of_small) == BLOCK // 4
    # The small source has 8 windows an epoch: every epoch reads each of its targets once.
    for epoch in range(5):
        assert sorted(of_small[epoch * 8 : (epoch + 1) * 8].reshape(-1)) == list(range(8 * LENGTH))
    for batch in batches[:5]:
        np.testing.assert_array_equal(batch["token_ids"][:, 1:], batch["targets"][:, :-1])
        assert batch["weights"].min() == 1 and set(batch) >= {"segment_ids", "positions"}


def test_a_step_is_the_same_after_a_restart_and_on_hosts(rows):
    whole = taken(rows, 30)
    again = taken(rows, 5, start_step=25)
    hosts = [taken(rows, 60, num_shards=2, shard_index=index, parts=2) for index in range(2)]
    for step in range(30):
        parts = [part for host in hosts for part in host[2 * step : 2 * step + 2]]
        for name, array in whole[step].items():
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), array)
            if step >= 25:
                np.testing.assert_array_equal(again[step - 25][name], array)


def test_the_tokens_of_each_source_are_those_of_its_documents(tmp_path):
    for name in "ab":
        text = "\n<|endoftext|>\n".join(f"text {name} {number}" for number in range(50))
        (tmp_path / f"{name}.txt").write_text(text)
    specs = (str(tmp_path / "a.txt"), str(tmp_path / "b.txt"))
    corpus = CorpusConfig(train_text=specs, validation_fraction=0.2, cache_dir=str(tmp_path / "cache"))
    data = prepare(corpus, TokenizerConfig(tokenizer="bytes"), by_source=True, say=lambda line: None)
    assert list(data.train_by_source) == list(data.validation_by_source) == list(specs)
    for name, shards in zip("ab", data.train_by_source.values(), strict=True):
        text = data.tokenizer.decode(shards.tokens[:])
        assert f"text {name}" in text and f"text {'b' if name == 'a' else 'a'}" not in text
    assert sum(shards.num_documents for shards in data.train_by_source.values()) == data.train.num_documents
    with pytest.raises(UserError, match="fewer than one row of --sequence_length=9999"):
        windows(data.train, 9999, "x")
