"""GGUF files of llama.cpp: config and weights of the Llama architecture, read by the `gguf` package. No TensorFlow.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import functools
import importlib.util
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfgpt.common.atomic_files import refuse_pointer
from tfgpt.common.errors import SettingError, UserError
from tfgpt.common.settings import name_file_in_errors, positive_integer
from tfgpt.model.checkpoints.lazy_weights import LazyWeights, Reader, check_finite, variable_shapes
from tfgpt.model.config import DecoderConfig

TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
"""Supported types of tensors."""

ROWS_BYTES = 1 << 22
"""Bytes of a tensor that are converted to float32 at a time."""

LONG_FIELDS = ("tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.ggml.scores", "tokenizer.ggml.token_type")

BLOCK_TENSORS = {
    "attn_norm.weight": "attention_norm/scale",
    "attn_q.weight": "attention/query/kernel",
    "attn_q.bias": "attention/query/bias",
    "attn_k.weight": "attention/key/kernel",
    "attn_k.bias": "attention/key/bias",
    "attn_v.weight": "attention/value/kernel",
    "attn_v.bias": "attention/value/bias",
    "attn_output.weight": "attention/output/kernel",
    "ffn_norm.weight": "mlp_norm/scale",
    "ffn_gate.weight": "mlp/gate/kernel",
    "ffn_up.weight": "mlp/up/kernel",
    "ffn_down.weight": "mlp/down/kernel",
}
"""Names after `blk.N.`, and the variables after `block_N/`."""

TENSORS = {
    "token_embd.weight": "token_embedding/embeddings",
    "output_norm.weight": "final_norm/scale",
    "output.weight": "head/kernel",
}

OTHER_KINDS = {
    "adapter": "give the adapter's directory as peft writes it, or merge it into its model with llama-export-lora",
    "mmproj": "it is the image encoder of a model; give the file of the language model",
    "imatrix": "it only guides quantization; give the quantized model",
    "vocab": "it has only a vocabulary; give the file with the weights",
}
"""Other contents of GGUF files (`general.type`), and advice."""

ROPE_FACTORS = "rope_freqs.weight"
"""The tensor in which llama.cpp stores Llama 3.1's divisors of the frequencies."""


class GGUFFile:
    """An open, memory-mapped GGUF file.

    Attributes:
        metadata: values by key, without the long lists of the tokenizer (see `long_field`).

    Example:

    >>> GGUFFile(Path("missing.gguf"))
    Traceback (most recent call last):
    ...
    tfgpt.common.errors.UserError: missing.gguf: is not a file
    """

    def __init__(self, path: Path):
        if importlib.util.find_spec("gguf") is None:
            raise UserError("the package gguf is missing, which reads GGUF files; pip install 'tfgpt[convert]'")
        if not path.is_file():
            raise UserError(f"{path}: is not a file")
        refuse_pointer(path)
        import gguf

        self.path, self.dequantize = path, gguf.quants.dequantize
        try:
            self.reader = gguf.GGUFReader(path)
        except (ValueError, IndexError, KeyError, OverflowError, MemoryError, OSError) as error:
            raise UserError(f"{path}: cannot be read as GGUF ({error or type(error).__name__})") from error
        self.metadata: dict[str, Any] = {
            name: self.content(name) for name in self.reader.fields if name not in LONG_FIELDS
        }
        self.tensors = {tensor.name: tensor for tensor in self.reader.tensors}
        parts = self.metadata.get("split.count", 1)
        if parts > 1:
            name = re.sub(r"-\d{5}-of-\d{5}$", "", path.stem)
            files = [str(path.with_name(f"{name}{part}.gguf")) for part in (f"-00001-of-{parts:05d}", "")]
            raise UserError(
                f"{path}: is part {self.metadata.get('split.no', 0) + 1} of {parts} of a split model; "
                f"llama-gguf-split --merge {shlex.join(files)} makes it one file"
            )
        kind = self.metadata.get("general.type", "model")
        if kind != "model":
            hint = OTHER_KINDS.get(kind, "give the model itself")
            raise UserError(f"{path}: does not hold a model (general.type is {kind!r}); {hint}")

    def long_field(self, name: str) -> list[Any]:
        """Reads one of the tokenizer's lists; empty if it is missing."""
        return self.content(name) if name in self.reader.fields else []

    def content(self, name: str) -> Any:
        try:
            return self.reader.fields[name].contents()
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path}: {name} holds a text that is not UTF-8") from error

    def required(self, key: str) -> Any:
        """Returns a value that has no default."""
        if key not in self.metadata:
            raise UserError(f"{self.path}: {key} is missing")
        return self.metadata[key]

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns a tensor's shape, [out, in]; the file lists it in reverse."""
        return tuple(int(size) for size in reversed(self.tensors[name].shape))

    def read(self, name: str) -> np.ndarray:
        """Returns a tensor in float32, converted in parts because `dequantize` needs several times its output."""
        tensor, value = self.tensors[name], np.empty(self.shape(name), np.float32)
        rows = max(1, ROWS_BYTES // (value[:1].nbytes or 1))
        for start in range(0, len(value), rows):
            value[start : start + rows] = self.dequantize(tensor.data[start : start + rows], tensor.tensor_type)
        return value


def open_gguf_model(file: GGUFFile) -> LazyWeights:
    """Opens the model of a file."""
    config = gguf_config(file)
    shapes = variable_shapes(config)
    names = dict(TENSORS)
    for number in range(config.num_layers):
        names |= {f"blk.{number}.{theirs}": f"block_{number}/{ours}" for theirs, ours in BLOCK_TENSORS.items()}
    readers: dict[str, Reader] = {}
    for name, tensor in file.tensors.items():
        if name == ROPE_FACTORS:
            continue
        path = names.get(name)
        if path not in shapes:
            raise UserError(f"{file.path}: tensor {name} is one too many: the decoder has no place for it")
        kind = tensor.tensor_type.name
        if kind not in TYPES:
            raise UserError(f"{file.path}: tensor {name} is stored as {kind}; supported are {', '.join(TYPES)}")
        transposed = path.endswith("kernel") and path != "head/kernel"
        shape = shapes[path][::-1] if transposed else shapes[path]
        if file.shape(name) != shape:
            raise UserError(f"{file.path}: tensor {name} is {file.shape(name)}, the metadata ask for {shape}")
        heads = {"query": config.num_query_heads, "key": config.num_key_value_heads}.get(path.split("/")[-2], 0)
        readers[path] = functools.partial(read_variable, file, name, transposed, heads)
    for name, path in names.items():
        if path in shapes and path not in readers:
            raise UserError(f"{file.path}: tensor {name} is missing")
    return LazyWeights(config, readers, np.dtype(np.float32))


def read_variable(file: GGUFFile, name: str, transposed: bool, heads: int) -> np.ndarray:
    """Reads a tensor as a variable: kernels as [in, out], heads of queries and keys in Hugging Face's order.

    Hugging Face's RoPE rotates channel i with i + head_dim / 2, llama.cpp's with i + 1. The reordering is the reverse
    of `LlamaModel.permute` in llama.cpp's convert_hf_to_gguf.py.
    """
    value = check_finite(file.read(name), f"{file.path}: tensor {name}")
    if heads:
        pairs = value.reshape(heads, value.shape[0] // heads // 2, 2, *value.shape[1:])
        value = pairs.swapaxes(1, 2).reshape(value.shape)
    return value.T if transposed else value


def gguf_config(file: GGUFFile) -> DecoderConfig:
    architecture = file.required("general.architecture")
    if architecture != "llama":
        raise UserError(f"{file.path}: general.architecture {architecture!r} is not supported, only 'llama'")

    def value(key: str, default: Any = None) -> Any:
        return file.metadata.get(f"llama.{key}", default) if default is not None else file.required(f"llama.{key}")

    def refuse(key: str, *allowed: Any) -> None:
        found = file.metadata.get(f"llama.{key}", allowed[0])
        if found not in allowed:
            raise UserError(f"{file.path}: llama.{key}={found!r} is not supported")

    with name_file_in_errors(file.path):
        refuse("expert_count", 0)
        refuse("attention.causal", True)
        heads, width = value("attention.head_count"), value("embedding_length")
        if not isinstance(heads, int):
            raise SettingError("llama.attention.head_count", "differs from layer to layer, which is not supported")
        positive_integer({"llama.attention.head_count": heads}, "llama.attention.head_count")
        head_dim = value("attention.key_length", width // heads)
        refuse("attention.value_length", head_dim)
        refuse("rope.dimension_count", head_dim)
        if "token_embd.weight" not in file.tensors:
            raise UserError(f"{file.path}: tensor token_embd.weight is missing")
        values = {
            "vocabulary_size": file.shape("token_embd.weight")[0],
            "num_layers": value("block_count"),
            "num_query_heads": heads,
            "num_key_value_heads": value("attention.head_count_kv", heads),
            "hidden_dim": width,
            "intermediate_dim": value("feed_forward_length"),
            "head_dim": head_dim,
            "max_sequence_length": value("context_length"),
            "position_embedding": "rope",
            "rope_max_wavelength": float(value("rope.freq_base", 10_000.0)),
            "normalization": "rms_norm",
            # The shortest decimal number of a float32: 9.999999747378752e-06 is 1e-05.
            "normalization_epsilon": float(str(np.float32(value("attention.layer_norm_rms_epsilon")))),
            "mlp": "swiglu",
            "use_query_key_value_bias": "blk.0.attn_q.bias" in file.tensors,
            "query_key_norm": False,
            "tie_embeddings": "output.weight" not in file.tensors,
        }
        return DecoderConfig.from_dict(values | rope_scaling(file, values))


def rope_scaling(file: GGUFFile, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of RoPE's scaling.

    For Llama 3.1's scaling, the file holds a divisor of each frequency. All published models use its default settings
    with another factor, which is the largest divisor; other divisors are refused.
    """
    kind = file.metadata.get("llama.rope.scaling.type", "none")
    if ROPE_FACTORS in file.tensors and kind == "none":
        divisors = file.read(ROPE_FACTORS)
        fields = {"rope_scaling": "llama3", "rope_scaling_factor": float(divisors.max())}
        plain = DecoderConfig.from_dict(values).inverse_frequencies()
        scaled = DecoderConfig.from_dict({**values, **fields}).inverse_frequencies()
        if divisors.shape != plain.shape or not np.allclose(divisors, plain / scaled, rtol=1e-3):
            raise UserError(f"{file.path}: tensor {ROPE_FACTORS} holds another scaling of RoPE than Llama 3.1's")
        return fields
    if kind == "linear" and ROPE_FACTORS not in file.tensors:
        return {"rope_scaling": "linear", "rope_scaling_factor": float(file.required("llama.rope.scaling.factor"))}
    if kind != "none" or ROPE_FACTORS in file.tensors:
        raise UserError(f"{file.path}: llama.rope.scaling.type={kind!r} is not supported")
    return {}
