"""Model directories in Hugging Face's layout: config.json, model.safetensors and generation_config.json.

Only the functions that take or return a decoder import TensorFlow.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from tfgpt.common.adapters import base_directory
from tfgpt.common.atomic_files import read_json, write_json
from tfgpt.common.errors import UserError
from tfgpt.common.output_directories import check_format
from tfgpt.model.checkpoints.huggingface_config import from_hugging_face, to_hugging_face, transformers_model_type
from tfgpt.model.checkpoints.huggingface_tensors import TensorMapping, tensor_mappings
from tfgpt.model.checkpoints.lazy_weights import LazyWeights, Reader, check_finite, variable_shapes
from tfgpt.model.checkpoints.peft_adapters import with_adapter
from tfgpt.model.checkpoints.safetensors_file import open_checkpoint, write_safetensors
from tfgpt.model.config import DecoderConfig
from tfgpt.model.lora import projections

if TYPE_CHECKING:
    from tfgpt.model.decoder import Decoder

BUFFERS = re.compile(r"(\.attn\.(bias|masked_bias)|\.rotary_emb\.inv_freq)$")
"""Constants in older checkpoints."""

HEAD = "lm_head.weight"
EMBEDDINGS = re.compile(r"(transformer\.)?wte\.weight|(model\.)?embed_tokens\.weight")
COMPARED_BYTES = 1 << 24
"""Bytes of head and embeddings that are compared at a time."""


def save_decoder(
    decoder: Decoder,
    directory: str | os.PathLike,
    *,
    end_of_text_id: int | None = None,
    end_of_turn_id: int | None = None,
    padding_id: int | None = None,
) -> None:
    """Writes config.json, model.safetensors and generation_config.json, each atomically, config.json last.

    The weights are written in the variables' dtype (float32 under mixed_bfloat16), adapters and int8 kernels merged.

    Args:
        directory: created if it does not exist; its other files are kept.
        end_of_text_id: the token between documents, which starts and ends a text.
        end_of_turn_id: the token after a chat turn, which also ends a generated text.
    """
    readers: dict[str, Reader] = {variable.path.split("/", 1)[1]: variable.numpy for variable in decoder.variables}
    for _, path, layer in projections(decoder):
        if layer.lora_enabled or layer.kernel_scale is not None:
            readers[f"{path}/kernel"] = layer.merged_kernel
    dtype = np.dtype(decoder.token_embedding.embeddings.dtype)
    stops = [token for token in (end_of_turn_id, end_of_text_id) if token is not None]
    tokens = {"bos_token_id": end_of_text_id, "eos_token_id": stops or None, "pad_token_id": padding_id}
    write_checkpoint(LazyWeights(decoder.config, readers, dtype), directory, dtype, tokens)


def write_checkpoint(
    checkpoint: LazyWeights, directory: str | os.PathLike, dtype: np.dtype, tokens: Mapping[str, Any]
) -> None:
    """Writes the files of `save_decoder` tensor by tensor.

    Args:
        directory: created if it does not exist.
        tokens: bos_token_id, eos_token_id (a list: the first ends a turn, the last a text) and pad_token_id for
            generation_config.json; None is left out.
    """
    directory, config, readers = Path(directory), checkpoint.config, checkpoint.readers
    model_type, _ = transformers_model_type(config)

    def reader(mapping: TensorMapping) -> Reader:
        paths = [part.path for part in mapping.slices if part.path in readers]

        def read() -> np.ndarray:
            with np.errstate(over="ignore"):
                value = mapping.join({path: readers[path]() for path in paths}, dtype).astype(dtype, copy=False)
            if dtype == np.float16 and np.isinf(value).any():
                problem = "float16 ends at 65,504, which is too little; choose bfloat16 or float32"
                raise UserError(f"tensor {mapping.name}: {problem}")
            return value

        return read

    mappings = tensor_mappings(config, model_type)
    weights = directory / "model.safetensors"
    write_safetensors(weights, [(mapping.name, mapping.shape, dtype, reader(mapping)) for mapping in mappings])
    tokens = {name: value for name, value in tokens.items() if value is not None}
    write_json(directory / "generation_config.json", tokens)
    # transformers wants one end token in config.json; generation_config.json has all.
    end = {"eos_token_id": tokens["eos_token_id"][-1]} if "eos_token_id" in tokens else {}
    names = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    json = to_hugging_face(config) | names | tokens | end | {"dtype": dtype.name, "torch_dtype": dtype.name}
    write_json(directory / "config.json", json)


def load_config(directory: str | os.PathLike) -> DecoderConfig:
    """Reads the config of a model directory, or of an adapter's base.

    If config.json ties the head to the embeddings but the weights have a different head, the head is untied, as in
    transformers 5 (`PreTrainedModel.tie_weights`), with one line on standard error.
    """
    base = base_directory(directory)
    path = base / "config.json"
    if not path.is_file():
        raise UserError(f"{directory}: is not a model directory (config.json is missing)")
    check_format(base, "model directory")
    json = read_json(path)
    if not isinstance(json, dict):
        raise UserError(f"{path}: should hold a JSON object")
    config = from_hugging_face(json, path)
    weights = path.parent / "model.safetensors"
    if config.tie_embeddings and (weights.exists() or weights.with_name(f"{weights.name}.index.json").exists()):
        tensors, file = open_checkpoint(path.parent)
        if has_untied_head(tensors):
            print_once(
                f"{file}: {HEAD} is another matrix than the embeddings, though {path} says tie_word_embeddings: it is "
                "read as the model's head, as transformers does"
            )
            return dataclasses.replace(config, tie_embeddings=False)
    return config


def has_untied_head(tensors: Mapping[str, np.ndarray]) -> bool:
    embeddings = next((tensor for name, tensor in tensors.items() if EMBEDDINGS.fullmatch(name)), None)
    head = tensors.get(HEAD)
    if head is None or embeddings is None:
        return False
    if head.shape != embeddings.shape or head.dtype != embeddings.dtype:
        return True
    one, other = head.reshape(-1).view(np.uint8), embeddings.reshape(-1).view(np.uint8)
    parts = (slice(start, start + COMPARED_BYTES) for start in range(0, len(one), COMPARED_BYTES))
    return not all(np.array_equal(one[part], other[part]) for part in parts)


@functools.cache
def print_once(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def load_stop_ids(directory: str | os.PathLike) -> list[int]:
    """Returns the tokens that end a text, from generation_config.json or else config.json."""
    for path in (base_directory(directory) / name for name in ("generation_config.json", "config.json")):
        json = read_json(path) if path.is_file() else None
        ends = json.get("eos_token_id") if isinstance(json, dict) else None
        if ends is not None:
            ends = ends if isinstance(ends, list) else [ends]
            if not all(isinstance(end, int) and end >= 0 for end in ends):
                raise UserError(f"{path}: eos_token_id should be a token id or a list of them")
            return ends
    return []


def load_decoder(directory: str | os.PathLike, packed: bool = False, dtype: Any = None) -> Decoder:
    """Builds a decoder with the weights of a model directory.

    Args:
        directory: a directory of `save_decoder` or transformers' `save_pretrained`, or an adapter's, which is merged.
        packed: the decoder takes packed rows.
        dtype: its dtype policy. The weights are converted to its variables' dtype.
    """
    from tfgpt.model.decoder import Decoder

    decoder = Decoder(load_config(directory), packed=packed, dtype=dtype)
    load_weights(decoder, directory)
    return decoder


def load_weights(decoder: Decoder, directory: str | os.PathLike) -> None:
    """Assigns the weights of a model directory, or of an adapter and its base, to a decoder without adapters."""
    checkpoint = open_model(directory, decoder.config)
    for variable in decoder.variables:
        value = np.ascontiguousarray(checkpoint.readers[variable.path.split("/", 1)[1]]())
        variable.assign(value.astype(np.dtype(variable.dtype), copy=False))


def open_model(
    directory: str | os.PathLike, config: DecoderConfig | None = None, base: str | os.PathLike | None = None
) -> LazyWeights:
    """Opens a model directory's weights, memory-mapped.

    Args:
        directory: a directory of `save_decoder` or transformers' `save_pretrained`, or an adapter's, which is merged.
        config: the config of the decoder that they are for; None: that of config.json.
        base: the model directory of an adapter's base; None: the one that the adapter names.
    """
    adapter, directory = Path(directory), Path(base) if base is not None else base_directory(directory)
    config = config or load_config(directory)
    tensors, file = open_checkpoint(directory)
    shapes = variable_shapes(config)
    mappings = tensor_mappings(config, read_json(directory / "config.json").get("model_type"))
    prefix = mappings[0].name.split(".")[0] + "."  # Models without a head do not have it.
    if prefix in ("transformer.", "model.") and not any(name.startswith(prefix) for name in tensors):
        tensors = {name if name.startswith("lm_head.") else prefix + name: value for name, value in tensors.items()}
    if config.tie_embeddings and mappings[0].name not in tensors and HEAD in tensors:
        tensors = {mappings[0].name if name == HEAD else name: tensor for name, tensor in tensors.items()}
    check_tensors(tensors, mappings, config, file)
    readers: dict[str, Reader] = {}
    for mapping in mappings:
        tensor = tensors[mapping.name]
        for index, part in enumerate(mapping.slices):
            if part.path in shapes:
                readers[part.path] = functools.partial(read_slice, mapping, index, tensor, file)
            elif np.any(mapping.split(tensor)[index].astype(np.float32) != part.fill):
                problem = f"is not all {part.fill:g}, and the decoder has no {part.path}"
                raise UserError(f"{file}: tensor {mapping.name} {problem}")
    if adapter != directory:
        readers = with_adapter(readers, config, adapter, directory)
    widest = max({tensors[mapping.name].dtype for mapping in mappings}, key=lambda dtype: dtype.itemsize)
    return LazyWeights(config, readers, widest)


def read_slice(mapping: TensorMapping, index: int, tensor: np.ndarray, file: Path) -> np.ndarray:
    return check_finite(mapping.split(tensor)[index], f"{file}: tensor {mapping.name}")


def check_tensors(
    tensors: Mapping[str, np.ndarray], mappings: list[TensorMapping], config: DecoderConfig, file: Path
) -> None:
    for mapping in mappings:
        if mapping.name not in tensors:
            raise UserError(f"{file}: tensor {mapping.name} is missing")
        found = tensors[mapping.name]
        if found.shape != mapping.shape:
            raise UserError(f"{file}: tensor {mapping.name} is {found.shape}, the config asks for {mapping.shape}")
        if found.dtype.kind != "f" and found.dtype != np.dtype(ml_dtypes.bfloat16):
            raise UserError(f"{file}: tensor {mapping.name} holds {found.dtype.name} numbers, not weights")
    known = {mapping.name for mapping in mappings}
    if config.tie_embeddings and not has_untied_head(tensors):
        known.add(HEAD)  # Some programs write the tied matrix twice.
    for name in tensors:
        if name not in known and not BUFFERS.search(name):
            raise UserError(f"{file}: tensor {name} is one too many: the config has no place for it")
