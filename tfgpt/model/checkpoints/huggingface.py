"""Model directories in Hugging Face's layout: config.json, model.safetensors, generation_config.json.

Importing this imports no TensorFlow; `load_decoder` does.
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
from tfgpt.model.checkpoints.huggingface_tensors import TensorMapping, recipes
from tfgpt.model.checkpoints.lazy_weights import LazyWeights, Reader, finite, variable_shapes
from tfgpt.model.checkpoints.peft_adapters import with_adapter
from tfgpt.model.checkpoints.safetensors_file import open_checkpoint, write_safetensors
from tfgpt.model.config import DecoderConfig

if TYPE_CHECKING:
    from tfgpt.model.decoder import Decoder

__all__ = [
    "load_config",
    "load_decoder",
    "load_stop_ids",
    "load_weights",
    "open_model",
    "save_decoder",
    "transformers_model_type",
    "write_checkpoint",
]

BUFFERS = re.compile(r"(\.attn\.(bias|masked_bias)|\.rotary_emb\.inv_freq)$")
"""Constants that older checkpoints hold beside their weights."""

HEAD = "lm_head.weight"
EMBEDDINGS = re.compile(r"(transformer\.)?wte\.weight|(model\.)?embed_tokens\.weight")
COMPARED_BYTES = 1 << 24
"""Of a head and the embeddings at a time."""


def save_decoder(
    decoder: Decoder,
    directory: str | os.PathLike,
    *,
    end_of_text_id: int | None = None,
    end_of_turn_id: int | None = None,
    padding_id: int | None = None,
) -> None:
    """Writes config.json, model.safetensors and generation_config.json into `directory`, each beside and renamed.

    The weights are written in the variables' dtype (float32 under mixed_bfloat16), config.json last.

    Args:
        decoder: the model.
        directory: made if it is not there; other files in it are left alone.
        end_of_text_id: the token between documents; it starts and ends a text.
        end_of_turn_id: the token after a chat turn; it ends a generated text as well.
        padding_id: the padding token.

    Raises:
        RunError: the disk is full.
        UserError: the directory cannot be written.
    """
    readers: dict[str, Reader] = {path: variable.numpy for path, variable in variables_by_path(decoder).items()}
    dtype = np.dtype(decoder.token_embedding.embeddings.dtype)
    stops = [identity for identity in (end_of_turn_id, end_of_text_id) if identity is not None]
    tokens = {"bos_token_id": end_of_text_id, "eos_token_id": stops or None, "pad_token_id": padding_id}
    write_checkpoint(LazyWeights(decoder.config, readers, dtype), directory, dtype, tokens)


def write_checkpoint(
    checkpoint: LazyWeights, directory: str | os.PathLike, dtype: np.dtype, tokens: Mapping[str, Any]
) -> None:
    """Writes a model directory's config.json, model.safetensors and generation_config.json, tensor by tensor.

    Args:
        checkpoint: the model.
        directory: as `save_decoder`'s.
        dtype: of the written weights.
        tokens: of generation_config.json: bos_token_id, eos_token_id (a list, the first one ends a turn, the last one a
            text), pad_token_id; None is left out.

    Raises:
        RunError, UserError: as `save_decoder`.
    """
    directory, config, readers = Path(directory), checkpoint.config, checkpoint.readers
    model_type, _ = transformers_model_type(config)

    def reader(recipe: TensorMapping) -> Reader:
        paths = [part.path for part in recipe.parts if part.path in readers]
        return lambda: fitting(recipe.join({path: readers[path]() for path in paths}, dtype), dtype, recipe.name)

    made = recipes(config, model_type, variable_shapes(config))
    weights = directory / "model.safetensors"
    write_safetensors(weights, [(recipe.name, recipe.shape, dtype, reader(recipe)) for recipe in made])
    tokens = {name: value for name, value in tokens.items() if value is not None}
    write_json(directory / "generation_config.json", tokens)
    # transformers asks for one end in config.json; the generation config above has all.
    ends = {"eos_token_id": tokens["eos_token_id"][-1]} if "eos_token_id" in tokens else {}
    names = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    written = to_hugging_face(config) | names | tokens | ends | {"dtype": dtype.name, "torch_dtype": dtype.name}
    write_json(directory / "config.json", written)


def fitting(value: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    """A tensor in the type that it is about to be written in.

    Raises:
        UserError: float16 is too narrow for a number in it.
    """
    with np.errstate(over="ignore"):
        value = value.astype(dtype, copy=False)
    if dtype == np.float16 and np.isinf(value).any():
        raise UserError(
            f"tensor {name}: float16 ends at 65,504, which is too little for it; choose bfloat16 or float32"
        )
    return value


def load_config(directory: str | os.PathLike) -> DecoderConfig:
    """The decoder's config from a model directory's config.json, or the one of an adapter's base.

    Where config.json ties the head to the embeddings and the weights hold another head, that is the model's, as
    transformers has it since version 5 (`PreTrainedModel.tie_weights`); a line on standard error says so, once.

    Raises:
        UserError: the file is missing, describes a model that the decoder cannot compute, or the directory was written
            in another format than this program's.
    """
    base = base_directory(directory)
    path = base / "config.json"
    if not path.is_file():
        raise UserError(f"{directory}: is no model directory (config.json is missing)")
    check_format(base, "model directory")
    json = read_json(path)
    if not isinstance(json, dict):
        raise UserError(f"{path}: should hold a JSON object")
    config = from_hugging_face(json, path)
    weights = path.parent / "model.safetensors"
    if config.tie_embeddings and (weights.exists() or weights.with_name(f"{weights.name}.index.json").exists()):
        tensors, file = open_checkpoint(path.parent)
        if has_another_head(tensors):
            print_once(
                f"{file}: {HEAD} is another matrix than the embeddings, though {path} says tie_word_embeddings: it is "
                "read as the model's head, as transformers does"
            )
            return dataclasses.replace(config, tie_embeddings=False)
    return config


def has_another_head(tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether a checkpoint holds a head that is not the embeddings again."""
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
    """Prints a line for the person at the keyboard, the first time only."""
    print(line, file=sys.stderr, flush=True)


def load_stop_ids(directory: str | os.PathLike) -> list[int]:
    """The token ids that end a generated text, as generation_config.json says, or config.json where it says nothing.

    Args:
        directory: a model directory, or an adapter's, whose base says it.

    Raises:
        UserError: the file is damaged.
    """
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
    """A decoder with the weights of a model directory.

    Args:
        directory: as `save_decoder` or transformers' `save_pretrained` writes, or an adapter's, which is merged.
        packed, dtype: as `Decoder`'s. The weights are converted to its variables' dtype.

    Raises:
        UserError: as `load_config` and `load_weights`.
    """
    from tfgpt.model.decoder import Decoder

    decoder = Decoder(load_config(directory), packed=packed, dtype=dtype)
    load_weights(decoder, directory)
    return decoder


def load_weights(decoder: Decoder, directory: str | os.PathLike) -> None:
    """Assigns the weights of a model directory (or of an adapter with its base) to a decoder of the same shape.

    Raises:
        UserError: as `open_model`. Nothing is assigned then.
    """
    checkpoint = open_model(directory, decoder.config)
    for path, variable in variables_by_path(decoder).items():
        value = np.ascontiguousarray(checkpoint.readers[path]())
        variable.assign(value.astype(np.dtype(variable.dtype), copy=False))


def open_model(
    directory: str | os.PathLike, config: DecoderConfig | None = None, base: str | os.PathLike | None = None
) -> LazyWeights:
    """A model directory's weights, memory-mapped.

    Args:
        directory: as `save_decoder` or transformers' `save_pretrained` writes, or an adapter's, which is merged.
        config: of the decoder that they are for; None: as config.json says.
        base: the model directory below an adapter; None: the one that the adapter names.

    Raises:
        UserError: as `load_config`; or a tensor is missing, is one too many, has another shape, or holds what the
            decoder has no place for; the line names the file and the tensor.
    """
    adapter, directory = Path(directory), Path(base) if base is not None else base_directory(directory)
    config = config or load_config(directory)
    tensors, file = open_checkpoint(directory)
    model_type = read_json(directory / "config.json").get("model_type")
    shapes = variable_shapes(config)
    wanted = recipes(config, None if model_type == "tfgpt" else model_type, shapes)
    tensors = with_prefix(tensors, wanted)
    if config.tie_embeddings and wanted[0].name not in tensors and HEAD in tensors:
        tensors = {wanted[0].name if name == HEAD else name: tensor for name, tensor in tensors.items()}
    check_tensors(tensors, wanted, config, file)
    readers: dict[str, Reader] = {}
    for recipe in wanted:
        for number, part in enumerate(recipe.parts):
            if part.path in shapes:
                readers[part.path] = part_reader(recipe, number, tensors[recipe.name], file)
            elif np.any(recipe.divide(tensors[recipe.name])[number][1].astype(np.float32) != part.fill):
                problem = f"is not all {part.fill:g}, and the decoder has no {part.path}"
                raise UserError(f"{file}: tensor {recipe.name} {problem}")
    if adapter != directory:
        readers = with_adapter(readers, config, adapter, directory)
    widest = max({tensors[recipe.name].dtype for recipe in wanted}, key=lambda dtype: dtype.itemsize)
    return LazyWeights(config, readers, widest)


def part_reader(recipe: TensorMapping, number: int, tensor: np.ndarray, file: Path) -> Reader:
    """Gives one part of a tensor, a view where that is possible; NaN and infinity are refused."""
    return lambda: finite(recipe.divide(tensor)[number][1], f"{file}: tensor {recipe.name}")


def check_tensors(
    tensors: Mapping[str, np.ndarray], wanted: list[TensorMapping], config: DecoderConfig, file: Path
) -> None:
    """Refuses a missing, misshapen or unknown tensor."""
    for recipe in wanted:
        if recipe.name not in tensors:
            raise UserError(f"{file}: tensor {recipe.name} is missing")
        found = tensors[recipe.name]
        if found.shape != recipe.shape:
            raise UserError(f"{file}: tensor {recipe.name} is {found.shape}, the config asks for {recipe.shape}")
        if found.dtype.kind != "f" and found.dtype != np.dtype(ml_dtypes.bfloat16):
            raise UserError(f"{file}: tensor {recipe.name} holds {found.dtype.name} numbers, which is no weight's type")
    known = {recipe.name for recipe in wanted}
    if config.tie_embeddings and not has_another_head(tensors):
        known.add(HEAD)  # Some programs write the tied matrix twice.
    for name in tensors:
        if name not in known and not BUFFERS.search(name):
            raise UserError(f"{file}: tensor {name} is one too many: the config has no place for it")


def with_prefix(tensors: Mapping[str, np.ndarray], wanted: list[TensorMapping]) -> Mapping[str, np.ndarray]:
    """The tensors under the names of the model with its head; OpenAI's GPT-2 files lack the first part of the names."""
    prefix = wanted[0].name.split(".")[0] + "."
    if prefix not in ("transformer.", "model.") or any(name.startswith(prefix) for name in tensors):
        return tensors
    return {name if name.startswith("lm_head.") else prefix + name: value for name, value in tensors.items()}


def variables_by_path(decoder: Decoder) -> dict[str, Any]:
    """The decoder's variables by their paths without the model's name.

    Kernels that have an adapter or eight bits come as `MergedKernel`s, which can be read and not assigned.
    """
    from tfgpt.model.lora import projections

    found = {
        variable.path.split("/", 1)[1]: variable
        for variable in decoder.variables
        if not re.search(r"/(lora_kernel_[ab]|kernel_scale)$", variable.path)
    }
    for _, path, layer in projections(decoder):
        if layer.lora_enabled or layer.kernel_scale is not None:
            found[f"{path}/kernel"] = MergedKernel(layer)
    return found


class MergedKernel:
    """A projection's kernel as plain numbers, made when they are asked for.

    Args:
        layer: a `tfgpt.model.projection.Projection`.
    """

    def __init__(self, layer: Any):
        self.layer, self.shape = layer, layer.kernel.shape

    def numpy(self) -> np.ndarray:
        """[in, out]."""
        return self.layer.merged_kernel()
