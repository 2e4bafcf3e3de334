"""Chooses between TensorFlow's kernels and XLA, by measuring the real step on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfgpt.training.distribution.collectives import HostGroup
from tfgpt.training.distribution.strategy import is_tpu_strategy
from tfgpt.training.trainer import Trainer

MODES = ("graph", "xla")
# At least so many timed calls in each mode, and about so many seconds.
TIMED_CALLS, SECONDS = 3, 1.5


def choose_compilation(
    trainer: Trainer,
    batches: Callable[[int], Any],
    mode: str,
    recorded: str | None = None,
    log: Callable[[str], None] = print,
    hosts: HostGroup | None = None,
) -> str:
    """Sets the trainer's mode and returns it: the requested one, the recorded one, or the faster one.

    Weights, optimizer slots, averages and counters do not change. A resumed run passes the mode that it has recorded
    and continues bit for bit; graph and XLA round differently.

    With "auto" all hosts measure on the first `batches`, and the chief's clock decides.
    """
    if is_tpu_strategy(trainer.distribute_strategy):
        # The TPU's program is compiled as a whole.
        mode = "graph"
    if mode == "auto" and recorded in MODES:
        mode = str(recorded)
    if mode == "auto":
        mode = faster_mode(trainer, batches, log, hosts or HostGroup(trainer.distribute_strategy))
    trainer.use_mode(mode)
    functions = trainer.functions.functions
    for key in [key for key in functions if key[1] != mode]:
        del functions[key]
    return mode


def faster_mode(trainer: Trainer, batches: Callable[[int], Any], log: Callable[[str], None], hosts: HostGroup) -> str:
    """Times a few updates in each mode on the run's first batches and restores all variables."""
    variables = trainer.state_variables()
    state = {name: np.array(variable.numpy()) for name, variable in variables.items()}
    times: dict[str, float] = {}
    words = []
    try:
        for mode in MODES:
            trainer.use_mode(mode)
            try:
                times[mode] = seconds_per_update(trainer, batches(0), hosts)
                words.append(f"{mode} {times[mode] * 1e3:.1f} ms")
            except (tf.errors.OpError, NotImplementedError) as error:
                if mode == "graph":
                    raise
                words.append(f"{mode} does not compile ({' '.join(str(error).split())[:160]})")
    finally:
        for name, variable in variables.items():
            variable.assign(state[name])
    best = min(times, key=lambda mode: times[mode])
    log(f"Training step: {', '.join(words)} an update: using {best}")
    return best


def seconds_per_update(trainer: Trainer, iterator: Any, hosts: HostGroup) -> float:
    """Returns the fastest of a few timed calls, after one that traces; every host gets the chief's figure."""

    def timed(count: int) -> float:
        started = time.perf_counter()
        trainer.train_steps(iterator, count)
        return (time.perf_counter() - started) / count

    trainer.train_steps(iterator, 1)
    once = hosts.broadcast(timed(1))
    count = max(1, int(SECONDS / TIMED_CALLS / once))
    return hosts.broadcast(min(once, *(timed(count) for _ in range(TIMED_CALLS))))
