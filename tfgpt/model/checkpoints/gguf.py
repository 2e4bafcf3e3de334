"""GGUF files of llama.cpp, read by the `gguf` package: config and weights of the Llama architecture. No TensorFlow.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The file is memory-mapped, and a tensor is brought
to float32 when its turn comes.
"""

from __future__ import annotations

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
from tfgpt.model.checkpoints.lazy_weights import LazyWeights, Reader, finite, variable_shapes
from tfgpt.model.config import DecoderConfig
from tfgpt.model.rope import inverse_frequencies

TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
"""How a tensor may be stored."""

ROWS_BYTES = 1 << 22
"""Bytes of a tensor that are brought to float32 at a time."""

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
"""Names behind `blk.N.`, and the variables behind `block_N/`."""

TENSORS = {
    "token_embd.weight": "token_embedding/embeddings",
    "output_norm.weight": "final_norm/scale",
    "output.weight": "head/kernel",
}

OTHER_KINDS = {
    "adapter": "give the adapter's directory as peft writes it, or merge it into its model with llama-export-lora",
    "mmproj": "it is what a model sees images through; give the file of the language model",
    "imatrix": "it only guides quantization; give the quantized model",
    "vocab": "it has a vocabulary only; give the file with the weights",
}
"""What else a GGUF file may hold (`general.type`), and what to do."""

ROPE_FACTORS = "rope_freqs.weight"
"""Llama 3.1's divisors of the frequencies, which llama.cpp keeps as a tensor."""


class GGUFFile:
    """An open GGUF file.

    Args:
        path: the file.

    Attributes:
        metadata: key → value; the long ones of the tokenizer are read when asked for (`tokens` and the like).

    Raises:
        UserError: the file is missing or damaged, or the `gguf` package is.
    """

    def __init__(self, path: Path):
        if importlib.util.find_spec("gguf") is None:
            raise UserError("the package gguf is missing, which reads GGUF files; pip install 'tfgpt[convert]'")
        if not path.is_file():
            raise UserError(f"{path}: is no file")
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
        self.check_is_a_whole_model()

    def check_is_a_whole_model(self) -> None:
        """Refuses the other things that GGUF files hold.

        Raises:
            UserError: the file is a part of several, an adapter, or nothing that writes text.
        """
        parts = self.metadata.get("split.count", 1)
        if parts > 1:
            name = re.sub(r"-\d{5}-of-\d{5}$", "", self.path.stem)
            files = [str(self.path.with_name(f"{name}{part}.gguf")) for part in (f"-00001-of-{parts:05d}", "")]
            raise UserError(
                f"{self.path}: is part {self.metadata.get('split.no', 0) + 1} of {parts} of a split model; "
                f"llama-gguf-split --merge {shlex.join(files)} makes it one file"
            )
        kind = self.metadata.get("general.type", "model")
        if kind != "model":
            hint = OTHER_KINDS.get(kind, "give the model itself")
            raise UserError(f"{self.path}: holds no model (general.type is {kind!r}); {hint}")

    def long_field(self, name: str) -> list[Any]:
        """One of the tokenizer's lists; empty where there is none."""
        return self.content(name) if name in self.reader.fields else []

    def content(self, name: str) -> Any:
        """A field's value."""
        try:
            return self.reader.fields[name].contents()
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path}: {name} holds a text that is not UTF-8") from error

    def needed(self, key: str) -> Any:
        """A value that has no default."""
        if key not in self.metadata:
            raise UserError(f"{self.path}: {key} is missing")
        return self.metadata[key]

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, [out, in] (the file lists it the other way round)."""
        return tuple(int(size) for size in reversed(self.tensors[name].shape))

    def read(self, name: str) -> np.ndarray:
        """A tensor in float32, made some rows at a time: `dequantize` needs several times what it gives."""
        tensor, value = self.tensors[name], np.empty(self.shape(name), np.float32)
        rows = max(1, ROWS_BYTES // (value[:1].nbytes or 1))
        for start in range(0, len(value), rows):
            value[start : start + rows] = self.dequantize(tensor.data[start : start + rows], tensor.tensor_type)
        return value


def open_gguf_model(file: GGUFFile) -> LazyWeights:
    """The config and the weights of a file.

    Raises:
        UserError: another architecture, a feature or a tensor that the decoder does not compute, a type of numbers that
            is not supported; the line names it.
    """
    config = gguf_config(file)
    shapes = variable_shapes(config)
    names = tensor_names(config.num_layers)
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
        shape = shapes[path][::-1] if path.endswith("kernel") and path != "head/kernel" else shapes[path]
        if file.shape(name) != shape:
            raise UserError(f"{file.path}: tensor {name} is {file.shape(name)}, the metadata ask for {shape}")
        readers[path] = reader(file, name, path, config)
    for path in shapes:
        if path not in readers:
            name = next(name for name, variable in names.items() if variable == path)
            raise UserError(f"{file.path}: tensor {name} is missing")
    return LazyWeights(config, readers, np.dtype(np.float32))


def tensor_names(num_layers: int) -> Mapping[str, str]:
    """Tensor → variable."""
    names = dict(TENSORS)
    for number in range(num_layers):
        names |= {f"blk.{number}.{theirs}": f"block_{number}/{ours}" for theirs, ours in BLOCK_TENSORS.items()}
    return names


def reader(file: GGUFFile, name: str, path: str, config: DecoderConfig) -> Reader:
    """Reads a variable: kernels are turned to [in, out], queries and keys put in the order of Hugging Face's halves."""
    heads = 0
    if "/query/" in path or "/key/" in path:
        heads = config.num_query_heads if "/query/" in path else config.num_key_value_heads
    turned = path.endswith("kernel") and path != "head/kernel"

    def read() -> np.ndarray:
        value = finite(file.read(name), f"{file.path}: tensor {name}")
        value = unpermuted(value, heads) if heads else value
        return value.T if turned else value

    return read


def unpermuted(value: np.ndarray, heads: int) -> np.ndarray:
    """[out, …] rows in the order of Hugging Face, whose RoPE turns channel i with i + head_dim / 2, not with i + 1.

    The reverse of `LlamaModel.permute` in llama.cpp's convert_hf_to_gguf.py.
    """
    return value.reshape(heads, value.shape[0] // heads // 2, 2, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)


def gguf_config(file: GGUFFile) -> DecoderConfig:
    """The decoder's config from the metadata.

    Raises:
        UserError: something is not supported.
    """
    architecture = file.needed("general.architecture")
    if architecture != "llama":
        raise UserError(f"{file.path}: general.architecture {architecture!r} is not supported, only 'llama'")

    def value(key: str, default: Any = None) -> Any:
        return file.metadata.get(f"llama.{key}", default) if default is not None else file.needed(f"llama.{key}")

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
            "normalization_epsilon": shortest(value("attention.layer_norm_rms_epsilon")),
            "mlp": "swiglu",
            "use_query_key_value_bias": "blk.0.attn_q.bias" in file.tensors,
            "query_key_norm": False,
            "tie_embeddings": "output.weight" not in file.tensors,
        }
        return DecoderConfig.from_dict(values | rope_scaling(file, values))


def rope_scaling(file: GGUFFile, values: Mapping[str, Any]) -> dict[str, Any]:
    """RoPE's scaling as fields of the config.

    Of Llama 3.1's scaling the file holds the result, a divisor for each frequency. All published models have its
    defaults but for the factor, which is the largest divisor; other divisors are refused.
    """
    kind = file.metadata.get("llama.rope.scaling.type", "none")
    if ROPE_FACTORS in file.tensors and kind == "none":
        divisors = file.read(ROPE_FACTORS)
        fields = {"rope_scaling": "llama3", "rope_scaling_factor": float(divisors.max())}
        plain, stretched = (
            inverse_frequencies(values["head_dim"], values["rope_max_wavelength"], *scaling)
            for scaling in ((), ("llama3", fields["rope_scaling_factor"]))
        )
        if divisors.shape != plain.shape or not np.allclose(divisors, plain / stretched, rtol=1e-3):
            raise UserError(f"{file.path}: tensor {ROPE_FACTORS} holds another scaling of RoPE than Llama 3.1's")
        return fields
    if kind == "linear" and ROPE_FACTORS not in file.tensors:
        return {"rope_scaling": "linear", "rope_scaling_factor": float(file.needed("llama.rope.scaling.factor"))}
    if kind != "none" or ROPE_FACTORS in file.tensors:
        raise UserError(f"{file.path}: llama.rope.scaling.type={kind!r} is not supported")
    return {}


def shortest(value: float) -> float:
    """A float32 as the shortest decimal number that means the same: 9.999999747378752e-06 is 1e-05."""
    return float(str(np.float32(value)))
