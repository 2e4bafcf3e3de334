"""A batch is a pure function of data, seed and step; validation is everything exactly once."""

import gc
import time

import numpy as np
import pytest
import tensorflow as tf

from tests.pipeline.counting_shards import counting_shards, write_raw_shards
from tfgpt.common.errors import SettingError, UserError
from tfgpt.pipeline import batches as batches_module
from tfgpt.pipeline.batches import MixtureReader, TokenReader, training_batches, validation_batches
from tfgpt.pipeline.shuffling import BLOCK

Batch = dict[str, np.ndarray]


def training(shards, *, sequence_length, seed, document_masking=False, **options) -> tf.data.Dataset:
    reader = TokenReader(shards, sequence_length, seed=seed, document_masking=document_masking)
    return training_batches(reader, **options)


def validation(shards, *, sequence_length, document_masking=False, **options) -> tf.data.Dataset:
    return validation_batches(TokenReader(shards, sequence_length, document_masking=document_masking), **options)


def take(dataset: tf.data.Dataset, count: int) -> list[Batch]:
    return [{name: tensor.numpy() for name, tensor in batch.items()} for batch in dataset.take(count)]


def assert_equal(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_elements_have_the_promised_types_and_shapes(tmp_path):
    shards = counting_shards(tmp_path / "shards", 100)
    spec = training(shards, sequence_length=8, batch_size=6, seed=0, num_shards=2).element_spec
    assert spec == {
        "token_ids": tf.TensorSpec((3, 8), tf.int32),
        "targets": tf.TensorSpec((3, 8), tf.int32),
        "weights": tf.TensorSpec((3, 8), tf.float32),
    }
    masked = validation(shards, sequence_length=8, batch_size=6, document_masking=True).element_spec
    assert masked.keys() == {"token_ids", "targets", "weights", "segment_ids", "positions"}
    assert masked["positions"] == masked["segment_ids"] == tf.TensorSpec((6, 8), tf.int32)


def test_a_step_receives_the_same_whichever_step_came_first(tmp_path):
    shards = counting_shards(tmp_path / "shards", 1000)
    options = {"sequence_length": 7, "batch_size": 5, "seed": 3, "document_masking": True}
    all_steps = take(training(shards, **options), 120)
    for start in (1, 28, 29, 117):
        assert_equal(take(training(shards, start_step=start, **options), 3), all_steps[start : start + 3])


def test_neither_files_nor_reading_blocks_change_a_batch(tmp_path, monkeypatch):
    options = {"sequence_length": 7, "batch_size": 5, "seed": 3, "document_masking": True}
    whole = counting_shards(tmp_path / "whole", 1000)
    cut = counting_shards(tmp_path / "cut", 1000, file_tokens=13)
    expected = take(training(whole, **options), 60)
    assert_equal(take(training(cut, **options), 60), expected)
    expected_validation = take(validation(whole, sequence_length=7, batch_size=5), 100)
    for tokens in (1, 100):
        monkeypatch.setattr(batches_module, "BLOCK_TOKENS", tokens)
        assert_equal(take(training(whole, **options), 60), expected)
        assert_equal(take(validation(cut, sequence_length=7, batch_size=5), 100), expected_validation)


@pytest.mark.parametrize(("targets", "length", "batch_size"), [(100, 7, 4), (64, 8, 8), (10, 10, 3), (19, 10, 7)])
def test_an_epoch_reads_every_window_once_and_epochs_differ(tmp_path, targets, length, batch_size):
    shards = counting_shards(tmp_path / "shards", targets)
    windows = targets // length
    epochs = 12
    steps = -(-windows * epochs // batch_size)
    batches = take(training(shards, sequence_length=length, batch_size=batch_size, seed=1), steps)
    inputs = np.concatenate([batch["token_ids"] for batch in batches])[: windows * epochs]
    outputs = np.concatenate([batch["targets"] for batch in batches])[: windows * epochs]
    # On the circle of tokens 0 … targets-1 the target of each token is the next one.
    np.testing.assert_array_equal(outputs, (inputs + 1) % targets)
    orders, left_out = set(), set()
    for epoch in inputs.reshape(epochs, windows, length):
        assert len(np.unique(epoch)) == windows * length
        orders.add(tuple(epoch[:, 0]))
        left_out.add(frozenset(range(targets)) - frozenset(epoch.ravel().tolist()))
    # Some of 12 draws from 10 places fall together.
    assert len(orders) > epochs / 3, "epochs repeat each other"
    if targets % length:
        assert len(left_out) > epochs / 3, "epochs leave out the same rest"


def test_tokens_are_left_out_equally_often(tmp_path):
    # 10 targets, windows of 7: an epoch reads one window; over many epochs no place may be favoured.
    shards = counting_shards(tmp_path / "shards", 10)
    batches = take(training(shards, sequence_length=7, batch_size=1000, seed=5), 4)
    counts = np.bincount(np.concatenate([batch["token_ids"] for batch in batches]).ravel(), minlength=10)
    # 4,000 windows: each token 2,800 times, give or take five standard deviations of a binomial.
    assert np.abs(counts - 2800).max() < 5 * np.sqrt(4000 * 0.7 * 0.3)


def test_seeds_give_other_orders_and_any_64_bit_integer_is_one(tmp_path):
    shards = counting_shards(tmp_path / "shards", 1000)
    seeds = [0, 1, 2, -1, 2**32, 2**63 - 1, -(2**63)]
    firsts = {
        seed: take(training(shards, sequence_length=7, batch_size=8, seed=seed), 1)[0]["token_ids"].tobytes()
        for seed in seeds
    }
    assert len(set(firsts.values())) == len(seeds)


def test_hosts_share_the_global_batch(tmp_path):
    shards = counting_shards(tmp_path / "shards", 1000)
    options = {"sequence_length": 7, "batch_size": 12, "document_masking": True}
    # Validation is read to its end, where hosts must get equally many batches.
    for make, steps in ((lambda **more: training(shards, seed=9, **options, **more), 13),
                        (lambda **more: validation(shards, **options, **more), -1)):  # fmt: skip
        expected = take(make(), steps)
        for hosts in (2, 3):
            parts = [take(make(num_shards=hosts, shard_index=host), steps) for host in range(hosts)]
            joined = [
                {name: np.concatenate([part[name] for part in step]) for name in step[0]}
                for step in zip(*parts, strict=True)
            ]
            assert_equal(joined, expected)
    with pytest.raises(SettingError, match="--batch_size: 12 rows do not divide among 5 hosts"):
        training(shards, seed=9, **options, num_shards=5)


@pytest.mark.parametrize(
    ("targets", "first_tokens"),
    [(1_000, [26, 515, 116, 200, 529, 340]), (100_000, [7262, 55002, 82995, 23978, 50242, 88285])],
)
def test_the_order_stays_what_it_was(tmp_path, targets, first_tokens):
    # Written down on 2026-11-22 with TensorFlow 2.21: a run resumed after an update must go on with the same rows.
    shards = counting_shards(tmp_path / "shards", targets)
    batch = take(training(shards, sequence_length=7, batch_size=6, seed=1337, start_step=40), 1)[0]
    assert batch["token_ids"][:, 0].tolist() == first_tokens


def test_starting_at_a_late_step_costs_nothing(tmp_path):
    shards = counting_shards(tmp_path / "shards", 1000)
    options = {"sequence_length": 7, "batch_size": 4, "seed": 0}
    take(training(shards, **options), 1)
    started = time.process_time()
    batch = take(training(shards, start_step=10**12, **options), 1)[0]
    assert time.process_time() - started < 5
    np.testing.assert_array_equal((batch["token_ids"] + 1) % 1000, batch["targets"])


def test_fewer_tokens_than_a_row_are_refused_with_both_numbers(tmp_path):
    shards = counting_shards(tmp_path / "shards", 20)
    with pytest.raises(
        UserError, match=r"21 tokens are fewer than one row of --sequence_length=21 needs \(22\).*most 20"
    ):
        training(shards, sequence_length=21, batch_size=1, seed=0)
    assert take(training(shards, sequence_length=20, batch_size=2, seed=0), 1)[0]["targets"].shape == (2, 20)


def test_validation_without_a_target_is_refused(tmp_path):
    shards = counting_shards(tmp_path / "shards", 0)
    with pytest.raises(UserError, match="--validation_fraction"):
        validation(shards, sequence_length=4, batch_size=1)


def test_validation_counts_every_target_exactly_once(tmp_path):
    for targets in (1, 7, 8, 31, 32, 33):
        shards = counting_shards(tmp_path / str(targets), targets, file_tokens=9)
        for length, batch_size in ((1, 4), (8, 4), (50, 2)):
            dataset = validation(shards, sequence_length=length, batch_size=batch_size)
            batches = take(dataset, -1)
            assert len(batches) == dataset.cardinality() == -(-targets // (length * batch_size))
            weights = np.concatenate([batch["weights"] for batch in batches]).ravel()
            inputs = np.concatenate([batch["token_ids"] for batch in batches]).ravel()
            outputs = np.concatenate([batch["targets"] for batch in batches]).ravel()
            assert weights.sum() == shards.num_tokens - 1
            np.testing.assert_array_equal(inputs[weights > 0], np.arange(targets))
            np.testing.assert_array_equal(outputs[weights > 0], [*range(1, targets), 0])
            assert set(inputs[weights == 0]) | set(outputs[weights == 0]) <= {shards.padding_id}


def documents_by_hand(row: np.ndarray) -> tuple[list[int], list[int]]:
    """Segments and positions of one row, read from left to right; end-of-text (0) opens a document."""
    opened = [place for place, token in enumerate(row) if place == 0 or token == 0]
    before = [[start for start in opened if start <= place] for place in range(len(row))]
    return [len(starts) for starts in before], [place - starts[-1] for place, starts in enumerate(before)]


def test_document_masking_numbers_documents_and_restarts_positions(tmp_path):
    tokens = np.random.default_rng(0).integers(0, 4, 500)
    tokens[[0, -1]] = 0
    shards = write_raw_shards(tmp_path / "shards", tokens)
    batches = take(training(shards, sequence_length=16, batch_size=8, seed=2, document_masking=True), 10)
    for batch in batches:
        for row, segments, positions in zip(batch["token_ids"], batch["segment_ids"], batch["positions"], strict=True):
            assert (segments.tolist(), positions.tolist()) == documents_by_hand(row)
        # The first token of a document is predicted from the end-of-text before it, as generation does.
        assert (batch["weights"] == 1).all()
    last = take(validation(shards, sequence_length=16, batch_size=8, document_masking=True), -1)[-1]
    padding = last["weights"] == 0
    assert padding.any() and not last["segment_ids"][padding].any() and not last["positions"][padding].any()


def test_stored_weights_are_those_of_the_targets(tmp_path):
    weights = np.random.default_rng(0).integers(0, 2, 201)
    weights[0] = weights[-1]
    shards = counting_shards(tmp_path / "shards", 200, weights=weights, file_tokens=33)
    for batch in take(training(shards, sequence_length=9, batch_size=5, seed=2), 20):
        np.testing.assert_array_equal(batch["weights"], weights[batch["targets"]])
    total = sum(batch["weights"].sum() for batch in take(validation(shards, sequence_length=9, batch_size=5), -1))
    assert total == weights[1:].sum()


def test_a_strategy_hands_out_the_same_rows(tmp_path):
    shards = counting_shards(tmp_path / "shards", 1000)
    options = {"sequence_length": 7, "batch_size": 4, "seed": 3}
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])

    def rows_of_this_host(context: tf.distribute.InputContext) -> tf.data.Dataset:
        hosts = {"num_shards": context.num_input_pipelines, "shard_index": context.input_pipeline_id}
        return training(shards, **options, **hosts)

    iterator = iter(strategy.distribute_datasets_from_function(rows_of_this_host))
    gc.collect()
    received = [
        {name: value.numpy() for name, value in strategy.experimental_local_results(next(iterator))[0].items()}
        for _ in range(5)
    ]
    assert_equal(received, take(training(shards, **options), 5))


@pytest.fixture(scope="module")
def mixture(tmp_path_factory) -> MixtureReader:
    folder = tmp_path_factory.mktemp("sources")
    small = counting_shards(folder / "small", 64)
    large = write_raw_shards(folder / "large", np.append(np.append(0, np.arange(1000, 1800)), 0), padding_id=2000)
    readers = [TokenReader(shards, 8, seed=5 + n, document_masking=True) for n, shards in enumerate((small, large))]
    return MixtureReader(readers, seed=5, weights=("1", "3"))


def test_rows_come_in_the_shares_asked_for_and_each_epoch_of_a_source_is_read_once(mixture):
    batches = take(training_batches(mixture, batch_size=8), BLOCK // 8)
    targets = np.concatenate([batch["targets"] for batch in batches])
    of_small = targets[targets.max(axis=1) < 1000]
    assert len(of_small) == BLOCK // 4
    # The small source has 8 windows an epoch: every epoch reads each of its targets once.
    for epoch in range(5):
        assert sorted(of_small[epoch * 8 : (epoch + 1) * 8].reshape(-1)) == list(range(64))
    for batch in batches[:5]:
        np.testing.assert_array_equal(batch["token_ids"][:, 1:], batch["targets"][:, :-1])
        assert batch["weights"].min() == 1 and set(batch) >= {"segment_ids", "positions"}
