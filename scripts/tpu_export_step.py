"""Writes the real training step of any configuration as StableHLO, for `tpu_compile.py`. Needs no TPU.

    python scripts/tpu_export_step.py --out=STEP.mlirbc [--rows=4] [--micro_batches=1] [--replicas=2] \\
        --flagfile=configs/tpu_gpt2_124m.cfg [more flags of tfgpt.train]

What is written is `Trainer.train_step` of the trainer that `tfgpt.train` would make from these flags, as one replica
runs it on TPU: one program from a batch [rows of one chip, length] and the old weights, slots, averages and counters to
the new ones and the numbers returned. The old variables are donated (their buffers hold the new values), as in the TPU
runtime. It differs from what TPUStrategy would hand to the compiler in three points:

- it is traced on a CPU, so `CrossReplicaSum` is not to be had: with --replicas=N the same tensors are summed by
  `CollectiveReduceV2`, which becomes the same all-reduce of N replicas; with one replica there is none;
- dropout's replica number is the constant 0;
- the variables are pages of zeros that are never touched, so that a model larger than this machine's memory can be
  exported: only their shapes reach the program.

STEP.json, written with the program, holds the bytes of parameters, slots and averages.

The vocabulary is --vocabulary_size (with --tokenizer=bytes 260): no text is read and no tokenizer trained.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import mmap
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from tfgpt.common.atomic_files import atomic_write, write_json
from tfgpt.common.errors import TfgptError, UserError
from tfgpt.common.tf_logging import import_tensorflow
from tfgpt.model import cost
from tfgpt.tokenization.config import SMALLEST_VOCABULARY
from tfgpt.train import COMMAND
from tfgpt.training.train_config import TrainConfig

CHIPS_IN_A_CONFIG = 8
"""Chips that share --batch_size when --rows is not given: the largest slice that is one host."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exports; returns the exit code: 2 after a line on standard error when a flag is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument("--rows", type=int, help="rows of one chip's micro-batch (default: the configuration's)")
    parser.add_argument(
        "--micro_batches", type=int, help="micro-batches of a step (default: --gradient_accumulation_steps)"
    )
    parser.add_argument("--replicas", type=int, default=1, help="chips that sum their gradients (default: 1)")
    options, flags = parser.parse_known_args(arguments)
    try:
        recipe = recipe_of_one_chip(flags, options.rows, options.micro_batches)
        program, facts = export(recipe, options.replicas)
    except TfgptError as error:
        print(f"tpu_export_step: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    with atomic_write(options.out) as beside:
        beside.write_bytes(program)
    write_json(options.out.with_suffix(".json"), facts)
    return 0


def recipe_of_one_chip(flags: Sequence[str], rows: int | None = None, micro_batches: int | None = None) -> TrainConfig:
    """The recipe that the flags of tfgpt.train give, with the batch of one chip as its whole batch.

    Args:
        flags: as on the command line; --train_text may be left out.
        rows: of one micro-batch; None: --batch_size shared by `CHIPS_IN_A_CONFIG` chips and all micro-batches.
        micro_batches: None: as --gradient_accumulation_steps says.

    Raises:
        UserError: flags that do not work together.
    """
    recipe = TrainConfig(**COMMAND.parse(["--train_text=none", *flags]))
    micro_batches = micro_batches or recipe.step.gradient_accumulation_steps
    if rows is None:
        parts = CHIPS_IN_A_CONFIG * micro_batches
        rows = recipe.batch.batch_size // parts
        if not rows or recipe.batch.batch_size % parts:
            raise UserError(
                f"--batch_size: {recipe.batch.batch_size} rows cannot be shared by {CHIPS_IN_A_CONFIG} chips with "
                f"{micro_batches} micro-batches each; give --rows"
            )
    return dataclasses.replace(
        recipe,
        batch=dataclasses.replace(recipe.batch, batch_size=rows * micro_batches),
        step=dataclasses.replace(recipe.step, gradient_accumulation_steps=micro_batches, compile="graph"),
    )


def export(recipe: TrainConfig, replicas: int = 1) -> tuple[bytes, dict[str, Any]]:
    """The step as serialized StableHLO, and facts about it.

    Args:
        recipe: with the batch of one chip, see `recipe_of_one_chip`.
        replicas: how many chips sum their gradients.
    """
    import_tensorflow()
    import tensorflow as tf

    from tfgpt.training import trainer_builder

    bytes_only = recipe.tokenizer.tokenizer == "bytes"
    vocabulary_size = SMALLEST_VOCABULARY if bytes_only else recipe.tokenizer.vocabulary_size
    with untouched_variables():
        trainer = trainer_builder.build_trainer(recipe, vocabulary_size)
    rows, length = recipe.batch.batch_size, recipe.batch.sequence_length
    columns = {"token_ids": tf.int32, "targets": tf.int32, "weights": tf.float32}
    if recipe.batch.document_masking:
        columns |= {"positions": tf.int32, "segment_ids": tf.int32}
    batch = {name: tf.zeros([rows, length], dtype) for name, dtype in columns.items()}
    step = tf.function(lambda batch: trainer.train_step(batch), jit_compile=True, autograph=False)
    with as_on_tpu(replicas):
        program = step.experimental_get_compiler_ir(batch)(stage="stablehlo_serialized")
    config = trainer.decoder.config
    parameters = cost.count_parameters(config)
    facts = {
        "parameters": parameters,
        "weight_bytes": 4 * parameters,
        "optimizer_bytes": sum(size_of(variable) for variable in trainer.optimizer.variables),
        "average_bytes": sum(size_of(variable) for variable in trainer.averages),
        "all_reduce_bytes": 4 * parameters + 4 * 3,
        "layers": config.num_layers,
        "optimizer": recipe.optimizer.optimizer,
        "rows": rows // recipe.step.gradient_accumulation_steps,
        "micro_batches": recipe.step.gradient_accumulation_steps,
        "sequence_length": length,
        "tokens": rows * length,
        "replicas": replicas,
        "model_flops": cost.training_flops_per_token(config, length) * rows * length,
        "dtype": recipe.step.dtype,
        "rematerialize": config.rematerialize,
        "tensorflow": tf.__version__,
    }
    return program, facts


def size_of(variable: Any) -> int:
    """Bytes of a Keras variable."""
    return variable.value.dtype.size * variable.value.shape.num_elements()


@contextmanager
def untouched_variables() -> Iterator[None]:
    """Inside the block new Keras variables are zeros in pages that were never touched, which take no memory."""
    import keras

    def initialize(self: Any, initializer: Any) -> None:
        self._initialize(zero_pages(tuple(self._shape), self._dtype))

    with mock.patch.object(keras.Variable, "_initialize_with_initializer", initialize):
        yield


def zero_pages(shape: tuple[int, ...], dtype: str) -> Any:
    """A tensor of zeros whose memory the system has not given out yet."""
    import numpy as np
    import tensorflow as tf

    kind = tf.as_dtype(dtype)
    count = int(np.prod(shape))
    if count < 1 << 16:
        return tf.zeros(shape, kind)
    pages = mmap.mmap(-1, count * kind.size)
    array = np.frombuffer(pages, kind.as_numpy_dtype).reshape(shape)
    return tf.experimental.dlpack.from_dlpack(array.__dlpack__())


@contextmanager
def as_on_tpu(replicas: int) -> Iterator[None]:
    """Inside the block the step is traced as under TPUStrategy: in one piece, summed over `replicas`."""
    import tensorflow as tf

    from tfgpt.training.distribution import replicas as module

    def summed(gradients: list[Any], sums: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        values = [all_reduced(value, place) for place, value in enumerate([*gradients, *sums.values()])]
        return values[: len(gradients)], dict(zip(sums, values[len(gradients) :]))

    def all_reduced(value: Any, place: int) -> Any:
        return tf.raw_ops.CollectiveReduceV2(
            input=value,
            group_size=replicas,
            group_key=1,
            instance_key=place,
            ordering_token=[],
            merge_op="Add",
            final_op="Id",
        )

    patched = functools.partial(mock.patch.object, module)
    with patched("on_tpu", lambda: True), patched("replicated", lambda: replicas > 1):
        if replicas == 1:
            yield
        else:
            with patched("all_reduce_sum", summed):
                yield


if __name__ == "__main__":
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    sys.exit(main())
