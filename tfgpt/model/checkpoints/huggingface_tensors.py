"""Mapping of the tensors in a transformers checkpoint to the decoder's variables. No TensorFlow."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from tfgpt.model.checkpoints.lazy_weights import variable_shapes
from tfgpt.model.config import DecoderConfig


@dataclasses.dataclass(frozen=True)
class VariableSlice:
    """The slice of a tensor that one variable takes.

    Attributes:
        path: the variable's path without the model's name, "block_0/attention/query/kernel".
        shape: the variable's shape.
        fill: the value of the slice if the decoder has no such variable (0 for a bias, 1 for a scale).
    """

    path: str
    shape: tuple[int, ...]
    fill: float = 0.0


@dataclasses.dataclass(frozen=True)
class TensorMapping:
    """The composition of a tensor from variables.

    Attributes:
        slices: concatenated along the last axis.
        transposed: the tensor is stored as [out, in] (torch's Linear) instead of [in, out].
        swapped_heads: number of heads whose two halves are swapped (nanochat rotates in the other direction), or 0.

    Example:

    >>> mapping = TensorMapping("q_proj.weight", (VariableSlice("query/kernel", (2, 3)),), transposed=True)
    >>> mapping.shape, mapping.join({"query/kernel": np.ones([2, 3])}, np.dtype(np.float32)).shape
    ((3, 2), (3, 2))
    """

    name: str
    slices: tuple[VariableSlice, ...]
    transposed: bool = False
    swapped_heads: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape in the file."""
        shape = (*self.slices[0].shape[:-1], sum(part.shape[-1] for part in self.slices))
        return shape[::-1] if self.transposed else shape

    def join(self, values: Mapping[str, np.ndarray], dtype: np.dtype) -> np.ndarray:
        """Returns the tensor for the variables' values by path."""
        parts = [
            values[part.path] if part.path in values else np.full(part.shape, part.fill, dtype) for part in self.slices
        ]
        joined = swap_halves(parts[0] if len(parts) == 1 else np.concatenate(parts, -1), self.swapped_heads)
        return joined.T if self.transposed else joined

    def split(self, tensor: np.ndarray) -> list[np.ndarray]:
        """Returns the variables' values for the tensor."""
        joined = swap_halves(tensor.T if self.transposed else tensor, self.swapped_heads)
        return np.split(joined, np.cumsum([part.shape[-1] for part in self.slices])[:-1], -1)


def swap_halves(kernel: np.ndarray, heads: int) -> np.ndarray:
    """Swaps the halves of each head of [in, heads x head_dim]; a second call swaps them back."""
    if not heads:
        return kernel
    return np.flip(kernel.reshape(kernel.shape[0], heads, 2, -1), 2).reshape(kernel.shape)


def tensor_mappings(config: DecoderConfig, model_type: str | None) -> list[TensorMapping]:
    """Returns the tensors of a checkpoint of `model_type`; None or "tfgpt": one tensor per variable, by our names."""
    shapes = variable_shapes(config)
    if model_type in (None, "tfgpt"):
        return [TensorMapping(path.replace("/", "."), (VariableSlice(path, shape),)) for path, shape in shapes.items()]
    mappings = Mappings(shapes)
    if model_type == "gpt2":
        add_gpt2(mappings, config)
    else:
        add_llama(mappings, config, str(model_type))
    if not config.tie_embeddings:
        mappings.add("lm_head.weight", "head/kernel")
    return mappings.made


class Mappings:
    """A list of mappings in the making."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]):
        self.shapes = shapes
        self.made: list[TensorMapping] = []

    def add(self, name: str, path: str) -> None:
        self.made.append(TensorMapping(name, (VariableSlice(path, self.shapes[path]),)))

    def add_norm(self, name: str, path: str, size: int, bias: bool = False) -> None:
        self.made.append(TensorMapping(f"{name}.weight", (VariableSlice(f"{path}/scale", (size,), 1.0),)))
        if bias:
            self.made.append(TensorMapping(f"{name}.bias", (VariableSlice(f"{path}/bias", (size,)),)))

    def add_projection(
        self, name: str, paths: Sequence[str], bias: bool, transposed: bool = True, swapped_heads: int = 0
    ) -> None:
        kernels = tuple(VariableSlice(f"{path}/kernel", self.shapes[f"{path}/kernel"]) for path in paths)
        self.made.append(TensorMapping(f"{name}.weight", kernels, transposed, swapped_heads))
        if bias:
            biases = tuple(VariableSlice(f"{path}/bias", kernel.shape[1:]) for path, kernel in zip(paths, kernels))
            self.made.append(TensorMapping(f"{name}.bias", biases))


def add_gpt2(mappings: Mappings, config: DecoderConfig) -> None:
    """Adds the tensors of GPT2LMHeadModel: [in, out] kernels, query, key and value in one."""
    mappings.add("transformer.wte.weight", "token_embedding/embeddings")
    mappings.add("transformer.wpe.weight", "position_embedding/embeddings")
    for number in range(config.num_layers):
        theirs, ours = f"transformer.h.{number}", f"block_{number}"
        mappings.add_norm(f"{theirs}.ln_1", f"{ours}/attention_norm", config.hidden_dim, bias=True)
        heads = [f"{ours}/attention/{name}" for name in ("query", "key", "value")]
        mappings.add_projection(f"{theirs}.attn.c_attn", heads, bias=True, transposed=False)
        mappings.add_projection(f"{theirs}.attn.c_proj", [f"{ours}/attention/output"], bias=True, transposed=False)
        mappings.add_norm(f"{theirs}.ln_2", f"{ours}/mlp_norm", config.hidden_dim, bias=True)
        mappings.add_projection(f"{theirs}.mlp.c_fc", [f"{ours}/mlp/up"], bias=True, transposed=False)
        mappings.add_projection(f"{theirs}.mlp.c_proj", [f"{ours}/mlp/down"], bias=True, transposed=False)
    mappings.add_norm("transformer.ln_f", "final_norm", config.hidden_dim, bias=True)


def add_llama(mappings: Mappings, config: DecoderConfig, model_type: str) -> None:
    """Adds the tensors of LlamaForCausalLM and of the models that follow its names: [out, in] kernels."""
    nanochat = model_type == "nanochat"
    output_bias = model_type in ("llama", "qwen3", "smollm3") and (config.use_query_key_value_bias or config.use_bias)
    mlp_bias = model_type in ("llama", "smollm3") and config.use_bias

    def add_norm(name: str, path: str, size: int = config.hidden_dim) -> None:
        if not nanochat:
            mappings.add_norm(name, path, size)

    mappings.add("model.embed_tokens.weight", "token_embedding/embeddings")
    for number in range(config.num_layers):
        theirs, ours = f"model.layers.{number}", f"block_{number}"
        add_norm(f"{theirs}.input_layernorm", f"{ours}/attention_norm")
        for name, heads in (
            ("query", config.num_query_heads),
            ("key", config.num_key_value_heads),
            ("value", 0),
        ):
            mappings.add_projection(
                f"{theirs}.self_attn.{name[0]}_proj",
                [f"{ours}/attention/{name}"],
                bias=output_bias or model_type == "qwen2",
                swapped_heads=heads if nanochat else 0,
            )
        mappings.add_projection(f"{theirs}.self_attn.o_proj", [f"{ours}/attention/output"], output_bias)
        if model_type == "qwen3":
            add_norm(f"{theirs}.self_attn.q_norm", f"{ours}/attention/query_norm", config.head_dim)
            add_norm(f"{theirs}.self_attn.k_norm", f"{ours}/attention/key_norm", config.head_dim)
        add_norm(f"{theirs}.post_attention_layernorm", f"{ours}/mlp_norm")
        names = {"fc1": "up", "fc2": "down"} if nanochat else {f"{name}_proj": name for name in ("gate", "up", "down")}
        for name, layer in names.items():
            mappings.add_projection(f"{theirs}.mlp.{name}", [f"{ours}/mlp/{layer}"], mlp_bias)
    add_norm("model.norm", "final_norm")
