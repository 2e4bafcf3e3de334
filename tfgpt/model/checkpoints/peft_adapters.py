"""Low-rank adapters in PEFT's files (https://huggingface.co/docs/peft/developer_guides/checkpoint), written and merged.

`peft` opens what is written here on the transformers model that the base is; what `peft` writes is merged here.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfgpt.common.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from tfgpt.common.atomic_files import read_json, write_json
from tfgpt.common.errors import UserError
from tfgpt.common.settings import name_file_in_errors, out_of_bounds, short_repr
from tfgpt.model.checkpoints.huggingface_tensors import TensorMapping, recipes, swap_halves
from tfgpt.model.checkpoints.lazy_weights import Reader, variable_shapes
from tfgpt.model.checkpoints.safetensors_file import open_safetensors, write_safetensors
from tfgpt.model.config import DecoderConfig
from tfgpt.model.lora import LoraConfig

if TYPE_CHECKING:
    from tfgpt.model.decoder import Decoder

PREFIX = "base_model.model."
ADAPTER_TENSOR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")

# Settings of PEFT's that change what an adapter computes, with the value that leaves it alone.
PLAIN = {
    "use_dora": False,
    "bias": "none",
    "modules_to_save": None,
    "trainable_token_indices": None,
    "lora_bias": False,
    "layer_replication": None,
    "target_parameters": None,
    "use_qalora": False,
    "alora_invocation_tokens": None,
}


KNOWN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of init_lora_weights that leave the base's weights alone; PiSSA, OLoRA, CorDA and LoftQ change them."""


def save_adapter(
    decoder: Decoder,
    config: LoraConfig,
    directory: str | os.PathLike,
    base: str | os.PathLike,
    base_name: str | None = None,
) -> None:
    """Writes adapter_model.safetensors and adapter_config.json into `directory`.

    Where the base keeps query, key and value in one matrix (GPT-2), their adapters become one of three times the rank
    with zeros between.

    Args:
        decoder: with adapters (`lora.enable_lora`).
        config: what they were made with.
        directory: made if it is not there.
        base: the model directory that the adapters belong to.
        base_name: what adapter_config.json calls it; None: its absolute path.
    """
    from tfgpt.model.lora import projections

    directory = Path(directory)
    layers = {f"{path}/kernel": layer for _, path, layer in projections(decoder) if layer.lora_enabled}
    tensors: dict[str, np.ndarray] = {}
    ranks: dict[str, int] = {}
    fan_in_fan_out = False
    for recipe in base_recipes(decoder.config, Path(base)):
        if not any(part.path in layers for part in recipe.parts):
            continue
        module = recipe.name.rsplit(".", 1)[0]
        down, up = joined(recipe, layers)
        tensors[f"{PREFIX}{module}.lora_A.weight"], tensors[f"{PREFIX}{module}.lora_B.weight"] = down, up
        ranks[".".join(module.split(".")[-2:])] = len(down)
        fan_in_fan_out |= not recipe.transposed
    write_safetensors(
        directory / ADAPTER_WEIGHTS,
        [(name, value.shape, value.dtype, functools.partial(np.asarray, value)) for name, value in tensors.items()],
    )
    scale = (config.lora_rank if config.lora_alpha is None else config.lora_alpha) / config.lora_rank
    larger = {name: rank for name, rank in ranks.items() if rank != config.lora_rank}
    written: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name or str(Path(base).absolute()),
        "r": config.lora_rank,
        "lora_alpha": scale * config.lora_rank,
        "lora_dropout": config.lora_dropout,
        "target_modules": sorted(ranks),
        "rank_pattern": larger,
        "alpha_pattern": {name: scale * rank for name, rank in larger.items()},
        "fan_in_fan_out": fan_in_fan_out,
        "bias": "none",
        "inference_mode": True,
    }
    write_json(directory / ADAPTER_CONFIG, written)


def joined(recipe: TensorMapping, layers: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """One tensor's adapter as PEFT has it, A [rank, in] and B [out, rank], from those of its parts."""
    ours = [layers[part.path] for part in recipe.parts if part.path in layers]
    down = np.concatenate([layer.lora_kernel_a.numpy().T for layer in ours])
    up = np.zeros((sum(part.shape[-1] for part in recipe.parts), len(down)), np.float32)
    row = column = 0
    for part in recipe.parts:
        if part.path in layers:
            block = swap_halves(layers[part.path].lora_kernel_b.numpy(), recipe.swapped_heads).T
            up[row : row + len(block), column : column + block.shape[1]] = block
            column += block.shape[1]
        row += part.shape[-1]
    return down, up


def with_adapter(
    readers: Mapping[str, Reader], config: DecoderConfig, directory: Path, base: Path
) -> dict[str, Reader]:
    """The readers of a base's weights, the adapter added; the sums are made when they are read, in float32.

    Args:
        readers: as `Checkpoint`'s.
        config: the base's.
        directory: the adapter's.
        base: the base's.

    Raises:
        UserError: a file is missing or damaged, the adapter is of a kind that is no plain LoRA, or it has a tensor that
            the model has no place for; the line names the file and what is wrong.
    """
    path, weights = directory / ADAPTER_CONFIG, directory / ADAPTER_WEIGHTS
    settings = checked_config(read_json(path), path)
    matrices = [recipe for recipe in base_recipes(config, base) if len(recipe.shape) == 2]
    wanted = {recipe.name.rsplit(".", 1)[0]: recipe for recipe in matrices}
    found = dict(readers)
    for module, (down, up) in pairs(open_safetensors(weights), weights).items():
        recipe = wanted.get(module)
        if recipe is None:
            raise UserError(f"{weights}: adapts {module}, which the model does not have")
        outputs, inputs = recipe.shape if recipe.transposed else recipe.shape[::-1]
        if down.shape[1:] != (inputs,) or up.shape != (outputs, len(down)):
            raise UserError(f"{weights}: the adapter of {module} does not fit its {outputs} outputs, {inputs} inputs")
        scale = scale_of(settings, module, len(down))
        for number, part in enumerate(recipe.parts):
            found[part.path] = functools.partial(
                adapted, readers[part.path], recipe, number, down.astype(np.float32), scale * up.astype(np.float32)
            )
    return found


def adapted(read: Reader, recipe: TensorMapping, number: int, down: np.ndarray, up: np.ndarray) -> np.ndarray:
    """One part of a tensor, the product of the two matrices added."""
    change = up @ down  # (out, in)
    _, value = recipe.divide(change if recipe.transposed else change.T)[number]
    return np.asarray(read()).astype(np.float32) + value


def checked_config(config: Any, path: Path) -> dict[str, Any]:
    """The configuration, unless it asks for something that merging does not do."""
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise UserError(f"{path}: is no LoRA adapter's configuration (peft_type)")
    for name, value in PLAIN.items():
        if config.get(name, value) not in (value, None, [], {}):
            raise UserError(f"{path}: {name} is {config[name]!r}, which is not supported")
    start = config.get("init_lora_weights")
    if start not in KNOWN_STARTS:
        raise UserError(
            f"{path}: init_lora_weights is {start!r}: it was trained on a changed base, which is not here; save it "
            "with peft's path_initial_model_for_weight_conversion"
        )
    with name_file_in_errors(path):
        for name, value in [("lora_alpha", config.get("lora_alpha")), *dict(config.get("alpha_pattern") or {}).items()]:
            if isinstance(value, bool) or not isinstance(value, (int, float)) or out_of_bounds(value, above=0):
                raise UserError(f"{path}: {name}: {short_repr(value)} is no number above 0")
    return config


def pairs(tensors: Mapping[str, np.ndarray], file: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Module → its A and B."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, value in tensors.items():
        match = ADAPTER_TENSOR.fullmatch(name)
        if not match:
            raise UserError(f"{file}: tensor {name} is no part of a plain LoRA adapter")
        found.setdefault(match[1], {})[match[2]] = value
    for module, both in found.items():
        if len(both) < 2:
            raise UserError(f"{file}: the adapter of {module} has no lora_{'B' if 'A' in both else 'A'}")
    return {module: (both["A"], both["B"]) for module, both in found.items()}


def scale_of(config: Mapping[str, Any], module: str, rank: int) -> float:
    """What the product of A and B is multiplied by (PEFT's `LoraLayer.update_layer`)."""
    patterns = config.get("alpha_pattern") or {}
    key = next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), None)
    alpha = config["lora_alpha"] if key is None else patterns[key]
    return float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)


def base_recipes(config: DecoderConfig, base: Path) -> list[TensorMapping]:
    """The tensors of the base as it lies on the disk."""
    model_type = read_json(base / "config.json").get("model_type")
    return recipes(config, None if model_type == "tfgpt" else model_type, variable_shapes(config))
