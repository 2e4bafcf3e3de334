"""Which tensors of a transformers checkpoint are which variables of the decoder, and how they lie. No TensorFlow."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from tfgpt.model.config import DecoderConfig


@dataclasses.dataclass(frozen=True)
class VariableSlice:
    """One variable's share of a tensor.

    Attributes:
        path: the variable's path without the model's name, "block_0/attention/query/kernel".
        shape: its shape.
        fill: what stands in the file where the decoder has no such variable (a bias of zeros, a scale of ones).
    """

    path: str
    shape: tuple[int, ...]
    fill: float = 0.0


@dataclasses.dataclass(frozen=True)
class TensorMapping:
    """How one tensor of the file is made of variables.

    Attributes:
        name: the tensor's name.
        parts: laid side by side along the last axis.
        transposed: stored as [out, in] (torch's Linear), not as [in, out].
        swapped_heads: the two halves of each head's channels change places (nanochat turns the other way round);
            the number of heads, 0 for no swap.
    """

    name: str
    parts: tuple[VariableSlice, ...]
    transposed: bool = False
    swapped_heads: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape in the file."""
        whole = (*self.parts[0].shape[:-1], sum(part.shape[-1] for part in self.parts))
        return whole[::-1] if self.transposed else whole

    def join(self, values: Mapping[str, np.ndarray], dtype: np.dtype) -> np.ndarray:
        """The tensor, from the variables' values by path."""
        parts = [
            values[part.path] if part.path in values else np.full(part.shape, part.fill, dtype) for part in self.parts
        ]
        whole = swap_halves(parts[0] if len(parts) == 1 else np.concatenate(parts, -1), self.swapped_heads)
        return whole.T if self.transposed else whole

    def divide(self, tensor: np.ndarray) -> list[tuple[VariableSlice, np.ndarray]]:
        """The reverse of `join`."""
        whole = swap_halves(tensor.T if self.transposed else tensor, self.swapped_heads)
        ends = np.cumsum([part.shape[-1] for part in self.parts])[:-1]
        return list(zip(self.parts, np.split(whole, ends, -1)))


def swap_halves(kernel: np.ndarray, heads: int) -> np.ndarray:
    """[in, heads x head_dim] with the halves of each head swapped; the same again swaps back."""
    if not heads:
        return kernel
    return np.flip(kernel.reshape(kernel.shape[0], heads, 2, -1), 2).reshape(kernel.shape)


def recipes(
    config: DecoderConfig, model_type: str | None, shapes: Mapping[str, tuple[int, ...]]
) -> list[TensorMapping]:
    """The tensors of a checkpoint of `model_type`; None: our own names, a tensor a variable.

    Args:
        shapes: the decoder's variables, path (without the model's name) → shape.
    """
    if model_type is None:
        return [TensorMapping(path.replace("/", "."), (VariableSlice(path, shape),)) for path, shape in shapes.items()]
    return gpt2_recipes(config) if model_type == "gpt2" else llama_recipes(config, model_type)


def gpt2_recipes(config: DecoderConfig) -> list[TensorMapping]:
    """GPT2LMHeadModel: [in, out] kernels, query, key and value in one."""
    width, inside = config.hidden_dim, config.intermediate_dim
    made = [
        TensorMapping(
            "transformer.wte.weight", (VariableSlice("token_embedding/embeddings", (config.vocabulary_size, width)),)
        ),
        TensorMapping(
            "transformer.wpe.weight",
            (VariableSlice("position_embedding/embeddings", (config.max_sequence_length, width)),),
        ),
    ]

    def norm(name: str, path: str) -> None:
        made.append(TensorMapping(f"{name}.weight", (VariableSlice(f"{path}/scale", (width,), 1.0),)))
        made.append(TensorMapping(f"{name}.bias", (VariableSlice(f"{path}/bias", (width,)),)))

    def projection(name: str, paths: list[str], inputs: int, outputs: int) -> None:
        made.append(
            TensorMapping(f"{name}.weight", tuple(VariableSlice(f"{path}/kernel", (inputs, outputs)) for path in paths))
        )
        made.append(TensorMapping(f"{name}.bias", tuple(VariableSlice(f"{path}/bias", (outputs,)) for path in paths)))

    for number in range(config.num_layers):
        theirs, ours = f"transformer.h.{number}", f"block_{number}"
        norm(f"{theirs}.ln_1", f"{ours}/attention_norm")
        heads = [f"{ours}/attention/{name}" for name in ("query", "key", "value")]
        projection(f"{theirs}.attn.c_attn", heads, width, width)
        projection(f"{theirs}.attn.c_proj", [f"{ours}/attention/output"], width, width)
        norm(f"{theirs}.ln_2", f"{ours}/mlp_norm")
        projection(f"{theirs}.mlp.c_fc", [f"{ours}/mlp/up"], width, inside)
        projection(f"{theirs}.mlp.c_proj", [f"{ours}/mlp/down"], inside, width)
    norm("transformer.ln_f", "final_norm")
    return made + head_recipes(config)


def llama_recipes(config: DecoderConfig, model_type: str) -> list[TensorMapping]:
    """LlamaForCausalLM and those that follow its names: [out, in] kernels."""
    width, inside, head_dim = config.hidden_dim, config.intermediate_dim, config.head_dim
    made = [
        TensorMapping(
            "model.embed_tokens.weight", (VariableSlice("token_embedding/embeddings", (config.vocabulary_size, width)),)
        )
    ]
    nanochat = model_type == "nanochat"
    attention_bias = model_type in ("llama", "qwen3", "smollm3") and (
        config.use_query_key_value_bias or config.use_bias
    )
    mlp_bias = model_type in ("llama", "smollm3") and config.use_bias

    def norm(name: str, path: str, size: int = width) -> None:
        if not nanochat:
            made.append(TensorMapping(f"{name}.weight", (VariableSlice(f"{path}/scale", (size,), 1.0),)))

    def projection(name: str, path: str, inputs: int, outputs: int, bias: bool, heads: int = 0) -> None:
        swapped = heads if nanochat else 0
        made.append(
            TensorMapping(f"{name}.weight", (VariableSlice(f"{path}/kernel", (inputs, outputs)),), True, swapped)
        )
        if bias:
            made.append(TensorMapping(f"{name}.bias", (VariableSlice(f"{path}/bias", (outputs,)),)))

    for number in range(config.num_layers):
        theirs, ours = f"model.layers.{number}", f"block_{number}"
        norm(f"{theirs}.input_layernorm", f"{ours}/attention_norm")
        for name in ("query", "key", "value"):
            heads = config.num_query_heads if name == "query" else config.num_key_value_heads
            bias = attention_bias or model_type == "qwen2"
            rotated = 0 if name == "value" else heads
            there, here = f"{theirs}.self_attn.{name[0]}_proj", f"{ours}/attention/{name}"
            projection(there, here, width, heads * head_dim, bias, rotated)
        there, here = f"{theirs}.self_attn.o_proj", f"{ours}/attention/output"
        projection(there, here, config.query_width, width, attention_bias)
        if model_type == "qwen3":
            norm(f"{theirs}.self_attn.q_norm", f"{ours}/attention/query_norm", head_dim)
            norm(f"{theirs}.self_attn.k_norm", f"{ours}/attention/key_norm", head_dim)
        norm(f"{theirs}.post_attention_layernorm", f"{ours}/mlp_norm")
        if nanochat:
            projection(f"{theirs}.mlp.fc1", f"{ours}/mlp/up", width, inside, False)
            projection(f"{theirs}.mlp.fc2", f"{ours}/mlp/down", inside, width, False)
            continue
        projection(f"{theirs}.mlp.gate_proj", f"{ours}/mlp/gate", width, inside, mlp_bias)
        projection(f"{theirs}.mlp.up_proj", f"{ours}/mlp/up", width, inside, mlp_bias)
        projection(f"{theirs}.mlp.down_proj", f"{ours}/mlp/down", inside, width, mlp_bias)
    norm("model.norm", "final_norm")
    return made + head_recipes(config)


def head_recipes(config: DecoderConfig) -> list[TensorMapping]:
    """An untied head; a tied one is not stored twice."""
    part = VariableSlice("head/kernel", (config.vocabulary_size, config.hidden_dim))
    return [] if config.tie_embeddings else [TensorMapping("lm_head.weight", (part,))]
