"""Tokens per CPU-second of the training pipeline, compared with two pipelines that people write by hand.

    python scripts/bench_pipeline.py [--json] [--rounds=5] [--tokens=8000000]

Peers, same rows and tokens: a plain tf.data pipeline (windows in memory, a shuffle buffer of 10,000, batch), and
nanoGPT's `get_batch` in NumPy (random offsets into a memory map, rows stacked, int64; no epochs, no restart). Neither
gives weights; ours does. Measured by the CPU time of the process and all its threads, because cores are shared: best
of several rounds, the contestants taking turns. "in graph" consumes batches in a `tf.range` loop inside a
`tf.function`, as training does; "eager" calls `next` from Python.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

# What is measured is this checkout, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import tensorflow as tf

from tfgpt.pipeline.batches import TokenReader, training_batches
from tfgpt.pipeline.token_shards import TokenShards, write_token_shards
from tfgpt.tokenization.train_tokenizer import byte_tokenizer

SHAPES = ((64, 256), (8, 256), (32, 1024))
TOKENS = 20_000_000


def main() -> None:
    """Prints a card and, at the end, one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="end in one line of JSON")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, of which the best counts (default: 5)")
    parser.add_argument("--tokens", type=int, default=8_000_000, help="tokens a round (default: 8 million)")
    arguments = parser.parse_args()
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        shards = random_shards(Path(folder))
        for batch_size, sequence_length in SHAPES:
            name = f"batch {batch_size}, {sequence_length} tokens a row"
            batches = max(1, arguments.tokens // (batch_size * sequence_length))
            seconds = measure(contestants(shards, batch_size, sequence_length), batches, arguments.rounds)
            tokens = batches * batch_size * sequence_length
            figures[name] = {contestant: tokens / second for contestant, second in seconds.items()}
            print(name)
            for contestant, rate in figures[name].items():
                print(f"  {contestant:<24} {rate / 1e6:8.1f} million tokens a CPU-second")
    shape, rates = next(iter(figures.items()))
    ratios = {
        "plain_tf_data": rates["tfgpt, in graph"] / rates["plain tf.data, in graph"],
        "plain_tf_data_eager": rates["tfgpt, eager"] / rates["plain tf.data, eager"],
        "nanogpt_get_batch": rates["tfgpt, eager"] / rates["nanoGPT get_batch"],
    }
    print(f"{shape}: ours over theirs", ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items()))
    print(f"target: 20 million tokens a CPU-second with shuffling; ours {rates['tfgpt, in graph'] / 1e6:.1f} million")
    if arguments.json:
        print(json.dumps({"benchmark": "pipeline", "ratios": ratios, "tokens_per_cpu_second": figures}))


def random_shards(folder: Path) -> TokenShards:
    """Shards of random bytes in documents of 2,000 tokens."""
    generator = np.random.default_rng(0)
    letters = generator.integers(97, 123, TOKENS, dtype=np.uint8).tobytes().decode("ascii")
    documents = ({"text": letters[start : start + 2000]} for start in range(0, TOKENS, 2000))
    return write_token_shards(documents, byte_tokenizer(), folder / "shards")


def contestants(shards: TokenShards, batch_size: int, sequence_length: int) -> dict[str, Callable[[int], Any]]:
    """Each consumes the number of batches it is called with."""
    ours = training_batches(TokenReader(shards, sequence_length, seed=1), batch_size=batch_size)
    plain = plain_tf_data(shards, batch_size, sequence_length)
    generator = nanogpt_batches(shards, batch_size, sequence_length)
    return {
        "tfgpt, in graph": functools.partial(consume_in_graph(), iter(ours)),
        "tfgpt, eager": functools.partial(consume, iter(ours)),
        "plain tf.data, in graph": functools.partial(consume_in_graph(), iter(plain)),
        "plain tf.data, eager": functools.partial(consume, iter(plain)),
        "nanoGPT get_batch": functools.partial(consume, generator),
    }


def plain_tf_data(shards: TokenShards, batch_size: int, sequence_length: int) -> tf.data.Dataset:
    """The tutorials' pipeline: windows as one tensor, a shuffle buffer, batch, split into inputs and targets."""
    tokens = shards.tokens.read(0, shards.num_tokens)
    count = (len(tokens) - 1) // sequence_length
    windows = np.lib.stride_tricks.sliding_window_view(tokens, sequence_length + 1)[::sequence_length][:count]
    dataset = tf.data.Dataset.from_tensor_slices(windows.astype(np.int32)).repeat().shuffle(10_000, seed=1)
    dataset = dataset.batch(batch_size, drop_remainder=True)
    return dataset.map(lambda rows: (rows[:, :-1], rows[:, 1:])).prefetch(tf.data.AUTOTUNE)


def nanogpt_batches(
    shards: TokenShards, batch_size: int, sequence_length: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`get_batch` of https://github.com/karpathy/nanoGPT/blob/master/train.py, with NumPy in place of torch."""
    path = shards.directory / shards.manifest["shards"][0]["file"]
    generator = np.random.default_rng(1)
    while True:
        data = np.memmap(path, dtype=np.uint16, mode="r")
        starts = generator.integers(0, len(data) - sequence_length, batch_size)
        x = np.stack([data[i : i + sequence_length].astype(np.int64) for i in starts])
        y = np.stack([data[i + 1 : i + 1 + sequence_length].astype(np.int64) for i in starts])
        yield x, y


def consume_in_graph() -> Callable[[Any, int], None]:
    """A compiled loop over batches (one for each iterator type)."""

    @tf.function
    def loop(iterator: Any, batches: tf.Tensor) -> tf.Tensor:
        last = tf.constant(0)
        for _ in tf.range(batches):
            last = tf.nest.flatten(next(iterator))[0][0, 0]
        return last

    return lambda iterator, batches: loop(iterator, tf.constant(batches)).numpy()


def consume(iterator: Iterator[Any], batches: int) -> None:
    """Takes batches one by one."""
    for _ in range(batches):
        next(iterator)


def measure(runs: dict[str, Callable[[int], Any]], batches: int, rounds: int) -> dict[str, float]:
    """CPU seconds that each contestant takes for so many batches, the best of several rounds."""
    best = dict.fromkeys(runs, float("inf"))
    for run in runs.values():
        run(max(1, batches // 10))
    for _ in range(rounds):
        for name, run in runs.items():
            started = time.process_time()
            run(batches)
            best[name] = min(best[name], time.process_time() - started)
    return best


if __name__ == "__main__":
    main()
