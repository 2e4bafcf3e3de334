"""Saves low-rank adapters in PEFT's format, and merges adapters in that format.

Format: https://huggingface.co/docs/peft/developer_guides/checkpoint
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
from tfgpt.model.checkpoints.huggingface_tensors import TensorMapping, swap_halves, tensor_mappings
from tfgpt.model.checkpoints.lazy_weights import Reader
from tfgpt.model.checkpoints.safetensors_file import open_safetensors, write_safetensors
from tfgpt.model.config import DecoderConfig
from tfgpt.model.lora import LoraConfig, projections

if TYPE_CHECKING:
    from tfgpt.model.decoder import Decoder

PREFIX = "base_model.model."
ADAPTER_TENSOR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")

PLAIN_SETTINGS = {
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
"""Settings of PEFT that change the computation of an adapter, with the values that do not."""

SUPPORTED_INITIALIZATIONS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of init_lora_weights that do not change the base's weights; PiSSA, OLoRA, CorDA and LoftQ do."""


def save_adapter(
    decoder: Decoder,
    config: LoraConfig,
    directory: str | os.PathLike,
    base: str | os.PathLike,
    base_name: str | None = None,
) -> None:
    """Writes adapter_model.safetensors and adapter_config.json.

    If the base has query, key and value in one matrix (GPT-2), their adapters become one of up to three times the rank,
    with zeros between them.

    Args:
        decoder: a decoder after `lora.enable_lora`.
        directory: created if it does not exist.
        base_name: the name of the base in adapter_config.json; None: its absolute path.
    """
    directory = Path(directory)
    layers = {f"{path}/kernel": layer for _, path, layer in projections(decoder) if layer.lora_enabled}
    tensors: dict[str, np.ndarray] = {}
    ranks: dict[str, int] = {}
    fan_in_fan_out = False
    for mapping in base_mappings(decoder.config, Path(base)):
        if not any(part.path in layers for part in mapping.slices):
            continue
        module = mapping.name.rsplit(".", 1)[0]
        down, up = join_adapters(mapping, layers)
        tensors[f"{PREFIX}{module}.lora_A.weight"], tensors[f"{PREFIX}{module}.lora_B.weight"] = down, up
        ranks[".".join(module.split(".")[-2:])] = len(down)
        fan_in_fan_out |= not mapping.transposed
    write_safetensors(
        directory / ADAPTER_WEIGHTS,
        [(name, value.shape, value.dtype, functools.partial(np.asarray, value)) for name, value in tensors.items()],
    )
    scale = (config.lora_rank if config.lora_alpha is None else config.lora_alpha) / config.lora_rank
    larger = {name: rank for name, rank in ranks.items() if rank != config.lora_rank}
    settings: dict[str, Any] = {
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
    write_json(directory / ADAPTER_CONFIG, settings)


def join_adapters(mapping: TensorMapping, layers: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Returns a tensor's adapter, A [rank, in] and B [out, rank], from the adapters of its slices."""
    down = np.concatenate([layers[part.path].lora_kernel_a.numpy().T for part in mapping.slices if part.path in layers])
    up = np.zeros((sum(part.shape[-1] for part in mapping.slices), len(down)), np.float32)
    row = column = 0
    for part in mapping.slices:
        if part.path in layers:
            block = swap_halves(layers[part.path].lora_kernel_b.numpy(), mapping.swapped_heads).T
            up[row : row + len(block), column : column + block.shape[1]] = block
            column += block.shape[1]
        row += part.shape[-1]
    return down, up


def with_adapter(
    readers: Mapping[str, Reader], config: DecoderConfig, directory: Path, base: Path
) -> dict[str, Reader]:
    """Returns the readers of a base's weights with the adapter merged, in float32, when they are read."""
    path, weights = directory / ADAPTER_CONFIG, directory / ADAPTER_WEIGHTS
    settings = check_adapter_config(read_json(path), path)
    mappings = {
        mapping.name.rsplit(".", 1)[0]: mapping for mapping in base_mappings(config, base) if len(mapping.shape) == 2
    }
    merged = dict(readers)
    for module, (down, up) in adapter_pairs(open_safetensors(weights), weights).items():
        mapping = mappings.get(module)
        if mapping is None:
            raise UserError(f"{weights}: adapts {module}, which the model does not have")
        outputs, inputs = mapping.shape if mapping.transposed else mapping.shape[::-1]
        if down.shape[1:] != (inputs,) or up.shape != (outputs, len(down)):
            raise UserError(f"{weights}: the adapter of {module} does not fit its {outputs} outputs, {inputs} inputs")
        up = adapter_scale(settings, module, len(down)) * up.astype(np.float32)
        for index, part in enumerate(mapping.slices):
            merged[part.path] = functools.partial(
                merge_slice, readers[part.path], mapping, index, down.astype(np.float32), up
            )
    return merged


def merge_slice(read: Reader, mapping: TensorMapping, index: int, down: np.ndarray, up: np.ndarray) -> np.ndarray:
    change = up @ down  # (out, in)
    value = mapping.split(change if mapping.transposed else change.T)[index]
    return np.asarray(read()).astype(np.float32) + value


def check_adapter_config(config: Any, path: Path) -> dict[str, Any]:
    """Returns the content of adapter_config.json; refuses settings that merging does not support."""
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise UserError(f"{path}: is not the configuration of a LoRA adapter (peft_type)")
    for name, value in PLAIN_SETTINGS.items():
        if config.get(name, value) not in (value, None, [], {}):
            raise UserError(f"{path}: {name} is {config[name]!r}, which is not supported")
    initialization = config.get("init_lora_weights")
    if initialization not in SUPPORTED_INITIALIZATIONS:
        raise UserError(
            f"{path}: init_lora_weights is {initialization!r}: it was trained on a changed base, which is not here; "
            "save it with peft's path_initial_model_for_weight_conversion"
        )
    with name_file_in_errors(path):
        for name, value in [("lora_alpha", config.get("lora_alpha")), *dict(config.get("alpha_pattern") or {}).items()]:
            if isinstance(value, bool) or not isinstance(value, (int, float)) or out_of_bounds(value, above=0):
                raise UserError(f"{path}: {name}: {short_repr(value)} is not a number above 0")
    return config


def adapter_pairs(tensors: Mapping[str, np.ndarray], file: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, value in tensors.items():
        match = ADAPTER_TENSOR.fullmatch(name)
        if not match:
            raise UserError(f"{file}: tensor {name} does not belong to a plain LoRA adapter")
        found.setdefault(match[1], {})[match[2]] = value
    for module, both in found.items():
        if len(both) < 2:
            raise UserError(f"{file}: the adapter of {module} has no lora_{'B' if 'A' in both else 'A'}")
    return {module: (both["A"], both["B"]) for module, both in found.items()}


def adapter_scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """Returns the factor on the product of A and B, as PEFT's `LoraLayer.update_layer`."""
    patterns = config.get("alpha_pattern") or {}
    key = next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), None)
    alpha = config["lora_alpha"] if key is None else patterns[key]
    return float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)


def base_mappings(config: DecoderConfig, base: Path) -> list[TensorMapping]:
    return tensor_mappings(config, read_json(base / "config.json").get("model_type"))
