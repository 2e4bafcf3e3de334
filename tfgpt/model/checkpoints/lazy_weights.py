"""A model at rest: its config, and its variables' values one by one, wherever they are read from. No TensorFlow."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from tfgpt.common.errors import UserError
from tfgpt.model.config import DecoderConfig

Reader = Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class LazyWeights:
    """Weights that are read when asked for, so that no more than one variable's need be in memory.

    Attributes:
        config: the decoder's.
        readers: for every variable (`variable_shapes`) a function that gives its value.
        dtype: of the weights, as far as they share one; else the widest.
    """

    config: DecoderConfig
    readers: Mapping[str, Reader]
    dtype: np.dtype


def finite(value: np.ndarray, origin: str) -> np.ndarray:
    """The numbers of a tensor, which `origin` names in the line of refusal.

    Raises:
        UserError: one of them is NaN or infinite, as in what a diverged or overflown training leaves: such a model
            writes the same token for ever.
    """
    if value.dtype.itemsize == 2:
        # By their bits, without the sign: several times as fast as `isfinite`. NaN lies behind infinity.
        infinity = np.array(np.inf, value.dtype).view(np.uint16)
        damaged = np.count_nonzero((value.view(np.uint16) & 0x7FFF) >= infinity)
    else:
        damaged = value.size - np.count_nonzero(np.isfinite(value))
    if damaged:
        raise UserError(f"{origin} is damaged: {damaged:,} of its {value.size:,} numbers are NaN or infinite")
    return value


def variable_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """The decoder's variables: path without the model's name → shape, without making them."""
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
