"""Model directories in Hugging Face's layout: config.json, model.safetensors, generation_config.json.

Importing this imports no TensorFlow; `load_decoder` does.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from tfgpt.common.adapters import base_directory
from tfgpt.common.errors import UserError
from tfgpt.common.files import read_json, write_json
from tfgpt.model.checkpoints.adapters import merge_adapter
from tfgpt.model.checkpoints.huggingface_config import from_hugging_face, to_hugging_face, transformers_model_type
from tfgpt.model.checkpoints.huggingface_tensors import Recipe, recipes
from tfgpt.model.checkpoints.safetensors_file import open_checkpoint, write_safetensors
from tfgpt.model.config import DecoderConfig

if TYPE_CHECKING:
    from tfgpt.model.decoder import Decoder

__all__ = ["load_config", "load_decoder", "load_weights", "save_decoder", "transformers_model_type"]

BUFFERS = re.compile(r"(\.attn\.(bias|masked_bias)|\.rotary_emb\.inv_freq)$")
"""Constants that older checkpoints hold beside their weights."""


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
    directory, config = Path(directory), decoder.config
    variables = variables_by_path(decoder)
    dtype = np.dtype(decoder.token_embedding.embeddings.dtype)
    model_type, _ = transformers_model_type(config)

    def reader(recipe: Recipe) -> Any:
        present = {part.path: variables[part.path] for part in recipe.parts if part.path in variables}
        return lambda: recipe.join({path: variable.numpy() for path, variable in present.items()}, dtype)

    made = recipes(config, model_type, {path: tuple(variable.shape) for path, variable in variables.items()})
    weights = directory / "model.safetensors"
    write_safetensors(weights, [(recipe.name, recipe.shape, dtype, reader(recipe)) for recipe in made])
    stops = [identity for identity in (end_of_turn_id, end_of_text_id) if identity is not None]
    tokens = {"bos_token_id": end_of_text_id, "eos_token_id": stops or None, "pad_token_id": padding_id}
    write_json(
        directory / "generation_config.json", {name: value for name, value in tokens.items() if value is not None}
    )
    # transformers asks for one end in config.json; the generation config above has all.
    tokens["eos_token_id"] = end_of_text_id if end_of_text_id is not None else end_of_turn_id
    write_json(
        directory / "config.json", to_hugging_face(config) | tokens | {"dtype": dtype.name, "torch_dtype": dtype.name}
    )


def load_config(directory: str | os.PathLike) -> DecoderConfig:
    """The decoder's config from a model directory's config.json, or the one of an adapter's base.

    Raises:
        UserError: the file is missing, or describes a model that the decoder cannot compute.
    """
    path = base_directory(directory) / "config.json"
    if not path.is_file():
        raise UserError(f"{directory}: is no model directory (config.json is missing)")
    json = read_json(path)
    if not isinstance(json, dict):
        raise UserError(f"{path}: should hold a JSON object")
    return from_hugging_face(json, path)


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
        UserError: a tensor is missing, is one too many or has another shape; the line names the file and the tensor.
            Nothing is assigned then, except where a tensor holds what the decoder has no place for.
    """
    adapter, directory, config = Path(directory), base_directory(directory), decoder.config
    tensors, file = open_checkpoint(directory)
    variables = variables_by_path(decoder)
    json = read_json(directory / "config.json")
    model_type = json.get("model_type")
    model_type = None if model_type == "tfgpt" else model_type
    shapes = {path: tuple(variable.shape) for path, variable in variables.items()}
    wanted = recipes(config, model_type, shapes)
    tensors = with_prefix(tensors, wanted)
    check_tensors(tensors, wanted, config, file)
    for recipe in wanted:
        for part, value in recipe.divide(tensors[recipe.name]):
            if part.path in variables:
                variable = variables[part.path]
                variable.assign(np.ascontiguousarray(value).astype(np.dtype(variable.dtype), copy=False))
            elif np.any(value.astype(np.float32) != part.fill):
                problem = f"is not all {part.fill:g}, and the decoder has no {part.path}"
                raise UserError(f"{file}: tensor {recipe.name} {problem}")
    if adapter != directory:
        merge_adapter(decoder, adapter, directory)


def check_tensors(tensors: Mapping[str, np.ndarray], wanted: list[Recipe], config: DecoderConfig, file: Path) -> None:
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
    if config.tie_embeddings:
        known.add("lm_head.weight")  # Some programs write the tied matrix twice.
    for name in tensors:
        if name not in known and not BUFFERS.search(name):
            raise UserError(f"{file}: tensor {name} is one too many: the config has no place for it")


def with_prefix(tensors: Mapping[str, np.ndarray], wanted: list[Recipe]) -> Mapping[str, np.ndarray]:
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
