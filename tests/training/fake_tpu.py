"""A TPUStrategy without a TPU: it traces what a TPU would be given and runs nothing.

TensorFlow's own TPUStrategy is made over a resolver that tells of cores that are not there; its variables are put on
logical CPUs. `strategy.run` then builds the same graph as on a TPU: `TPUReplicateMetadata`, replicated inputs,
`CrossReplicaSum`. What only the TPU's compiler can say (memory, layouts) is the business of scripts/tpu_compile.sh.

    python fake_tpu.py OUT.json CASES-JSON

traces training steps in a process of its own, since logical CPUs must be made before TensorFlow looks at its devices.
"""

from __future__ import annotations

import collections
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
import tensorflow as tf
from tensorflow.python.distribute import tpu_strategy
from tensorflow.python.framework import kernels
from tensorflow.python.tpu import tpu_system_metadata

from tfgpt.train import COMMAND
from tfgpt.training.distribution.strategy import split_cpu
from tfgpt.training.train_config import TrainConfig
from tfgpt.training.trainer import Trainer
from tfgpt.training.trainer_builder import build_trainer

CORES = 2
TPU_OPERATIONS = {
    "CrossReplicaSum": "sums over the cores",
    "TPUReplicateMetadata": "marks the program",
    "TPUReplicatedInput": "brings each core its argument",
    "TPUReplicatedOutput": "takes each core's result",
    "TPUCompilationResult": "says whether it compiled",
    "Placeholder": "an argument of a function",
}
"""Operations that only TPU builds of TensorFlow have kernels for, or that are no work."""


class Cores:
    """What TPUStrategy asks a cluster resolver for, answered for `CORES` cores of one host."""

    def get_tpu_system_metadata(self) -> tpu_system_metadata.TPUSystemMetadata:
        """The made-up cores."""
        device = collections.namedtuple("device", ("name", "device_type"))
        cores = [device(f"/job:localhost/replica:0/task:0/device:TPU:{core}", "TPU") for core in range(CORES)]
        return tpu_system_metadata.TPUSystemMetadata(
            num_cores=CORES, num_hosts=1, num_of_cores_per_host=CORES, topology=None, devices=cores
        )

    def cluster_spec(self) -> None:
        """One process."""

    def master(self) -> str:
        """One process."""
        return ""


def fake_tpu_strategy() -> tf.distribute.TPUStrategy:
    """The strategy; call it before anything else touches TensorFlow's devices."""
    split_cpu(CORES)
    strategy = tpu_strategy.TPUStrategyV2(Cores())
    cpus = [f"/job:localhost/replica:0/task:0/device:CPU:{core}" for core in range(CORES)]
    extended = strategy.extended
    extended._tpu_devices = np.array([[cpu] for cpu in cpus], dtype=object)
    extended._host_device = cpus[0]
    extended._device_input_worker_devices = collections.OrderedDict({cpus[0]: cpus})
    extended._host_input_worker_devices = collections.OrderedDict({cpus[0]: [cpus[0]] * CORES})
    strategy._enable_packed_variable_in_eager_mode = False
    return strategy


def make_trainer(flags: list[str], fault: str | None = None) -> Trainer:
    """The trainer that `tfgpt.train` would assemble from the flags; `fault` puts a host operation into its loss."""
    trainer = build_trainer(TrainConfig(**COMMAND.parse(["--train_text=none", *flags])), vocabulary_size=300)
    if fault is not None:
        objective, spoil = trainer.loss_function, FAULTS[fault]
        trainer.loss_function = lambda decoder, batch, **options: objective(decoder, spoil(batch), **options)
    return trainer


def with_python_function(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """The batch, its weights passed through Python."""
    weights = tf.py_function(lambda values: values, [batch["weights"]], tf.float32)
    return {**batch, "weights": tf.ensure_shape(weights, batch["weights"].shape)}


def with_strings(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """The batch, its weights written out and read again."""
    return {**batch, "weights": tf.strings.to_number(tf.strings.as_string(batch["weights"]))}


FAULTS: dict[str, Callable] = {"python": with_python_function, "string": with_strings}


def feed(trainer: Trainer) -> Any:
    """A distributed iterator of batches of zeros."""
    rows, length = trainer.batch_shape
    columns = {"token_ids": tf.int32, "targets": tf.int32, "weights": tf.float32}
    if trainer.decoder.packed:
        columns |= {"positions": tf.int32, "segment_ids": tf.int32}
    batch = {name: tf.zeros([rows, length], dtype) for name, dtype in columns.items()}
    dataset = tf.data.Dataset.from_tensors(batch).repeat()
    return iter(trainer.distribute_strategy.experimental_distribute_dataset(dataset))


def traced(trainer: Trainer, loop: Callable) -> dict[str, Any]:
    """What a host loop of the trainer, traced, would have the TPU do.

    Returns:
        "operations": how often each is in the TPU's program, functions it calls included; "host_loops": how many
        `while` of the host hold a program; "unknown": operations that XLA has no kernel for.
    """
    graph = tf.function(loop, autograph=False).get_concrete_function(feed(trainer), tf.constant(2, tf.int64)).graph
    definition = graph.as_graph_def()
    functions = {function.signature.name: list(function.node_def) for function in definition.library.function}
    bodies = [list(definition.node), *functions.values()]
    marked = [[node for node in nodes if "_tpu_replicate" in node.attr] for nodes in bodies]
    program = [node for nodes in marked for node in nodes]
    pending = list(program)
    seen: set[str] = set()
    while pending:
        for name in called_functions(pending.pop()) - seen:
            seen.add(name)
            program += functions[name]
            pending += functions[name]
    operations = collections.Counter(node.op for node in program)
    with_program = {name for name, nodes in functions.items() if any("_tpu_replicate" in node.attr for node in nodes)}
    loops = [node for node in definition.node if node.op in ("While", "StatelessWhile")]
    return {
        "operations": dict(operations),
        "host_loops": sum(bool(called_functions(node) & with_program) for node in loops),
        "unknown": sorted(name for name in operations if name not in TPU_OPERATIONS and not has_xla_kernel(name)),
    }


def called_functions(node: Any) -> set[str]:
    """The names of the functions that a node's attributes hold."""
    attributes = node.attr.values()
    single = {attribute.func.name for attribute in attributes if attribute.HasField("func")}
    return single | {function.name for attribute in attributes for function in attribute.list.func}


def has_xla_kernel(operation: str) -> bool:
    """Whether TensorFlow's own registry has a kernel that turns the operation into XLA's."""
    registered = kernels.get_registered_kernels_for_op(operation).kernel
    return any(kernel.device_type == "XLA_CPU_JIT" for kernel in registered)


def main(out: str, cases: str) -> None:
    """Traces every case ({name: {"flags": …, "fault": …}}) and writes what the TPU would be given."""
    strategy = fake_tpu_strategy()
    # The registry of XLA's kernels is filled at the first compilation.
    tf.function(lambda: tf.zeros(()), jit_compile=True)()
    found = {}
    for name, case in json.loads(cases).items():
        with strategy.scope():
            trainer = make_trainer(case["flags"], case.get("fault"))
            loop = trainer.evaluator.evaluation_loop if case.get("evaluation") else trainer.train_loop
            found[name] = traced(trainer, loop)
        found[name]["weights"] = len(trainer.decoder.trainable_variables)
        found[name]["variables"] = len(trainer.state_variables())
    Path(out).write_text(json.dumps(found))


def trace_apart(directory: Path, cases: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """`main` in a process of its own."""
    out = directory / "traced.json"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run(
        [sys.executable, __file__, str(out), json.dumps(cases)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(out.read_text())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
