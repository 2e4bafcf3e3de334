"""Turns a decoder into frozen weights with low-rank adapters to train."""

from __future__ import annotations

from collections.abc import Iterator

from tfgpt.common.errors import SettingError
from tfgpt.model.decoder import Decoder
from tfgpt.model.lora_config import LoraConfig
from tfgpt.model.projection import Projection

FIRST_DROPOUT_NUMBER = 1_000_000
"""Of the adapters' dropouts; the decoder's own numbers stay far below."""


def projections(decoder: Decoder) -> Iterator[tuple[str, str, Projection]]:
    """Every projection of the blocks: name in `lora_config.LAYERS`, path ("block_0/attention/query"), layer."""
    for block in decoder.blocks:
        attention, mlp = block.attention, block.mlp
        found = {
            "query": attention.query,
            "key": attention.key,
            "value": attention.value,
            "output": attention.output_projection,
            "gate": getattr(mlp, "gate", None),
            "up": mlp.up,
            "down": mlp.down,
        }
        for name, layer in found.items():
            if layer is not None:
                yield name, layer.kernel.path.split("/", 1)[1].rsplit("/", 1)[0], layer


def enable_lora(decoder: Decoder, config: LoraConfig) -> None:
    """Adds the adapters, freezes all else, and turns the frozen projections into eight bits where asked.

    Call it when the decoder has its weights, inside the strategy's scope, before an optimizer is made. From then on
    `decoder.trainable_variables` are the adapters alone.

    Raises:
        SettingError: the decoder has none of the layers.
    """
    chosen = config.layers()
    if not any(name in chosen for name, _, _ in projections(decoder)):
        raise SettingError("lora_target_modules", f"the model has no {config.lora_target_modules}")
    for variable in decoder.trainable_variables:
        variable.trainable = False
    decoder.lora_dropout = config.lora_dropout
    for number, (name, _, layer) in enumerate(projections(decoder)):
        if config.base_weights == "int8":
            layer.quantize_kernel()
        if name in chosen:
            layer.enable_lora(
                config.lora_rank,
                config.lora_alpha,
                dropout=config.lora_dropout,
                dropout_number=FIRST_DROPOUT_NUMBER + number,
            )
