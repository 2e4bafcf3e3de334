"""Weights that are read on demand, variable by variable. No TensorFlow."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from tfgpt.common.errors import UserError
from tfgpt.model.config import DecoderConfig

Reader = Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class LazyWeights:
    """A model whose weights are read on demand, so that one variable at a time is in memory.

    Attributes:
        readers: a function for each variable (`variable_shapes`) that returns its value.
        dtype: the widest dtype of the weights.

    Example:

    >>> config = DecoderConfig(num_layers=1)
    >>> readers = {path: lambda shape=shape: np.zeros(shape) for path, shape in variable_shapes(config).items()}
    >>> LazyWeights(config, readers, np.dtype(np.float32)).readers["final_norm/scale"]().shape
    (192,)
    """

    config: DecoderConfig
    readers: Mapping[str, Reader]
    dtype: np.dtype


def check_finite(value: np.ndarray, origin: str) -> np.ndarray:
    """Returns a tensor; refuses NaN and infinity, which a diverged training writes."""
    if value.dtype.itemsize == 2:
        # The bits without the sign, several times as fast as `isfinite`. NaN is above infinity.
        infinity = np.array(np.inf, value.dtype).view(np.uint16)
        damaged = np.count_nonzero((value.view(np.uint16) & 0x7FFF) >= infinity)
    else:
        damaged = value.size - np.count_nonzero(np.isfinite(value))
    if damaged:
        raise UserError(f"{origin} is damaged: {damaged:,} of its {value.size:,} numbers are NaN or infinite")
    return value


def variable_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each of the decoder's variables by its path without the model's name."""
    width, inside, head_dim = config.hidden_dim, config.intermediate_dim, config.head_dim
    shapes: dict[str, tuple[int, ...]] = {"token_embedding/embeddings": (config.vocabulary_size, width)}
    if config.position_embedding == "learned":
        shapes["position_embedding/embeddings"] = (config.max_sequence_length, width)

    def norm(path: str) -> None:
        if config.normalization_scale:
            shapes[f"{path}/scale"] = (width,)
        if config.normalization_bias:
            shapes[f"{path}/bias"] = (width,)

    def projection(path: str, inputs: int, outputs: int, bias: bool) -> None:
        shapes[f"{path}/kernel"] = (inputs, outputs)
        if bias:
            shapes[f"{path}/bias"] = (outputs,)

    if config.embedding_normalization:
        norm("embedding_norm")
    for number in range(config.num_layers):
        block = f"block_{number}"
        norm(f"{block}/attention_norm")
        for name in ("query", "key", "value"):
            outputs = config.query_width if name == "query" else config.key_value_width
            projection(f"{block}/attention/{name}", width, outputs, config.use_query_key_value_bias)
        projection(f"{block}/attention/output", config.query_width, width, config.use_bias)
        if config.query_key_norm and config.normalization_scale:
            shapes |= {f"{block}/attention/{name}_norm/scale": (head_dim,) for name in ("query", "key")}
        norm(f"{block}/mlp_norm")
        for name in ("gate", "up") if config.mlp == "swiglu" else ("up",):
            projection(f"{block}/mlp/{name}", width, inside, config.use_bias)
        projection(f"{block}/mlp/down", inside, width, config.use_bias)
    norm("final_norm")
    if not config.tie_embeddings:
        shapes["head/kernel"] = (config.vocabulary_size, width)
    return shapes
