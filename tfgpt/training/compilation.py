"""How the step runs on this machine: TensorFlow's kernels or XLA, decided by measuring the real step."""

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
# At least so many timed updates a mode, and about so many seconds.
LEAST_STEPS, SECONDS = 3, 1.5


def choose_compilation(
    trainer: Trainer,
    batches: Callable[[int], Any],
    mode: str,
    recorded: str | None = None,
    report: Callable[[str], None] = print,
    hosts: HostGroup | None = None,
) -> str:
    """Sets the trainer's mode and returns it: the one asked for, the one recorded, or the faster one.

    Weights, optimizer slots, averages and counters are exactly as before when this returns. A resumed run gives the
    mode it has recorded, so that it goes on bit for bit; graph and XLA round differently.

    Args:
        trainer: compiled with its optimizer.
        batches: first step → iterator of batches, as the run's own.
        mode: "graph", "xla" or "auto".
        recorded: the mode that a checkpoint says the run began with.
        report: gets one line when something was measured.
        hosts: the processes that train together; they measure together and the chief's clock decides.
    """
    hosts = hosts or HostGroup(trainer.distribute_strategy)
    if is_tpu_strategy(trainer.distribute_strategy):
        # The TPU's program is compiled as a whole; there is nothing to choose, and no part to compile by itself.
        mode = "graph"
    if mode == "auto" and recorded in MODES:
        mode = str(recorded)
    if mode == "auto":
        mode = faster_mode(trainer, batches, report, hosts)
    trainer.use_mode(mode)
    trainer.forget_other_modes()
    return mode


def faster_mode(
    trainer: Trainer, batches: Callable[[int], Any], report: Callable[[str], None], hosts: HostGroup
) -> str:
    """Times a few updates in each mode on the run's first batches and puts everything back."""
    state = {name: np.array(variable.numpy()) for name, variable in trainer.state_variables().items()}
    times: dict[str, float] = {}
    failures: dict[str, str] = {}
    try:
        for mode in MODES:
            trainer.use_mode(mode)
            try:
                times[mode] = seconds_per_update(trainer, batches(0), hosts)
            except (tf.errors.OpError, NotImplementedError) as error:
                if mode == "graph":
                    raise
                failures[mode] = " ".join(str(error).split())[:160]
    finally:
        for name, variable in trainer.state_variables().items():
            variable.assign(state[name])
    best = min(times, key=lambda mode: times[mode])
    words = [f"{mode} {times[mode] * 1e3:.1f} ms" for mode in times]
    words += [f"{mode} does not compile ({problem})" for mode, problem in failures.items()]
    report(f"Training step: {', '.join(words)} an update: using {best}")
    return best


def seconds_per_update(trainer: Trainer, iterator: Any, hosts: HostGroup) -> float:
    """The fastest of a few timed calls, after one that traces and compiles; on every host the chief's figure."""
    trainer.train_steps(iterator, 1)
    started = time.perf_counter()
    trainer.train_steps(iterator, 1)
    once = hosts.share(time.perf_counter() - started)
    count = max(1, int(SECONDS / LEAST_STEPS / once))
    best = once
    for _ in range(LEAST_STEPS):
        started = time.perf_counter()
        trainer.train_steps(iterator, count)
        best = min(best, (time.perf_counter() - started) / count)
    return hosts.share(best)
