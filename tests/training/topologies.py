"""The same training on one device, on logical CPUs and on several processes.

`topologies.py SHARDS OUT.npz LOGICAL_CPUS` is one process, with TF_CONFIG one worker of that cluster: it trains every
case of `CASES` and saves losses, validation figures and state under "case/…".
"""

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
UPDATES = (1, 6, 13)  # in three calls
# Of a process: how many rows it read to train, the seeds of its replicas.
OWN = ("/read", "/seeds")
CASES: dict[str, dict[str, Any]] = {
    "adamw": {
        "optimizer": {"optimizer": "adamw", "max_grad_norm": 0.3, "ema_decay": 0.9},
        "step": {"gradient_accumulation_steps": 2},
    },
    "muon": {
        "optimizer": {"optimizer": "muon", "max_grad_norm": 0.3, "ema_decay": 0.9},
        "step": {"gradient_accumulation_steps": 2},
    },
    "dropout": {"model": {"dropout": 0.3}, "optimizer": {"max_grad_norm": 0.3}},
}


def make_shards(directory: Path) -> Path:
    """Random ids with ragged loss weights, in several files."""
    from tests.pipeline.counting_shards import write_raw_shards
    from tests.training.small_step import VOCABULARY

    generator = np.random.default_rng(4)
    tokens = generator.integers(0, VOCABULARY, 4000)
    weights = generator.integers(0, 2, 4000)
    write_raw_shards(directory, tokens, weights=weights, file_tokens=1500, padding_id=VOCABULARY - 1)
    return directory


def train_cases(shards_directory: Path, logical_cpus: int) -> dict[str, np.ndarray]:
    """By case: losses of the calls, validation figures, the final state, and what is each process's own (`OWN`)."""
    from tests.training.small_step import LENGTH, ROWS, make_trainer, state
    from tfgpt.pipeline import batches
    from tfgpt.pipeline.token_shards import TokenShards
    from tfgpt.training.config import StrategyConfig
    from tfgpt.training.distribution.strategy import distributed, resolve

    name = "multiworker" if "TF_CONFIG" in os.environ else "mirrored" if logical_cpus > 1 else "one"
    strategy = resolve(StrategyConfig(strategy=name, logical_cpus=logical_cpus, cluster_timeout=120.0))
    # A step a read, so that what was read tells the rows of a step.
    batches.BLOCK_ROWS = 1
    results: dict[str, np.ndarray] = {}
    for case, settings in CASES.items():
        shards = TokenShards.open(shards_directory)
        read = count_reads(shards)
        with strategy.scope():
            trainer = make_trainer(**settings)

        def training(shards=shards, **share: int):
            return batches.training_batches(batches.TokenReader(shards, LENGTH, seed=1), batch_size=ROWS, **share)

        def validation(shards=shards, **share: int):
            return batches.validation_batches(batches.TokenReader(shards, LENGTH), batch_size=ROWS, **share)

        feed = iter(distributed(strategy, training))
        losses = [trainer.train_steps(feed, count)["loss"] for count in UPDATES]
        results[f"{case}/losses"] = np.array(losses)
        results[f"{case}/read"] = np.array(sum(read))
        results[f"{case}/seeds"] = dropout_seeds(strategy, trainer)
        held_out = trainer.evaluator.evaluate(
            distributed(strategy, validation), batches.validation_steps(batches.TokenReader(shards, LENGTH), ROWS)
        )
        results[f"{case}/validation"] = np.array(list(held_out.values()))
        results |= {f"{case}/{variable}": value for variable, value in state(trainer).items()}
    return results


def dropout_seeds(strategy: Any, trainer: Any) -> np.ndarray:
    """The seed of the next update's dropout on each of this process's replicas, [replicas, 2]; none without dropout."""
    import tensorflow as tf

    from tfgpt.model.dropout import current_dropout_seed

    def seed() -> tf.Tensor:
        with trainer.dropout(0):
            found = current_dropout_seed()
        return tf.zeros(0, tf.int32) if found is None else found

    return np.array(strategy.experimental_local_results(strategy.run(tf.function(seed))))


def count_reads(shards: Any) -> list[int]:
    read: list[int] = []
    windows = shards.tokens.windows

    def counted(starts: np.ndarray, length: int) -> np.ndarray:
        read.append(len(starts))
        return windows(starts, length)

    shards.tokens.windows = counted
    return read


def run_processes(shards: Path, directory: Path, workers: int, logical_cpus: int) -> list[dict[str, np.ndarray]]:
    """The results of every worker of a cluster on this machine, or of a process with several logical CPUs."""
    outs = [directory / f"{workers}-{logical_cpus}-{index}.npz" for index in range(workers)]
    arguments = [[__file__, str(shards), str(out), str(logical_cpus)] for out in outs]
    wait_for_success(start_cluster(arguments) if workers > 1 else [start_process(arguments[0])])
    return [dict(np.load(out)) for out in outs]


def start_process(arguments: list[str], **environment: str) -> subprocess.Popen:
    """Python with the arguments; what it prints is collected."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def start_cluster(arguments: list[list[str]], addresses: list[str] | None = None) -> list[subprocess.Popen]:
    """A worker for each list of arguments."""
    addresses = addresses or free_addresses(len(arguments))
    return [
        start_process(each, TF_CONFIG=tf_config(addresses, index), TF_NUM_INTRAOP_THREADS="1")
        for index, each in enumerate(arguments)
    ]


def wait_for_success(processes: list[subprocess.Popen]) -> None:
    for process in processes:
        output = process.communicate(timeout=600)[0]
        assert process.returncode == 0, output[-4000:]


def tf_config(addresses: list[str], index: int) -> str:
    return json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}})


def free_addresses(count: int) -> list[str]:
    """Addresses on this machine that nobody listens at.

    Below the ports that Linux gives to connections going out: those of a process beside would soon have one of them.
    """
    held: list[socket.socket] = []
    while len(held) < count:
        with contextlib.suppress(OSError):
            held.append(socket.create_server(("localhost", random.randint(20000, 32000))))
    addresses = [f"localhost:{one.getsockname()[1]}" for one in held]
    for one in held:
        one.close()
    return addresses


if __name__ == "__main__":
    np.savez(sys.argv[2], **train_cases(Path(sys.argv[1]), int(sys.argv[3])))
