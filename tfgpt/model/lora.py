"""Low-rank adapters (LoRA): their settings, and adding them to a decoder. No TensorFlow."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from tfgpt.common.errors import SettingError
from tfgpt.common.settings import Settings, setting

if TYPE_CHECKING:
    from tfgpt.model.decoder import Decoder
    from tfgpt.model.projection import Projection

LAYERS = ("query", "key", "value", "output", "gate", "up", "down")
LAYER_GROUPS = {"all": LAYERS, "attention": LAYERS[:4], "mlp": LAYERS[4:]}

FIRST_DROPOUT_NUMBER = 1_000_000
"""`Dropout.number` of the first adapter; the decoder's own numbers are far below."""


@dataclasses.dataclass(frozen=True)
class LoraConfig(Settings):
    """Low-rank adapters on frozen weights (Hu et al. 2021, arXiv:2106.09685).

    Example:

    >>> LoraConfig(lora_rank=16, lora_target_modules="attention,up").layers()
    ('query', 'key', 'value', 'output', 'up')
    """

    title: ClassVar[str] = "LoRA"

    lora_rank: int = setting(
        0,
        "Train adapters of this rank instead of the weights of --init_from; 0: train the weights.",
        minimum=0,
        maximum=2**20,
    )
    lora_alpha: float | None = setting(
        None, "The adapters' outputs are multiplied by lora_alpha / lora_rank; none: by 1.", above=0.0
    )
    lora_target_modules: str = setting(
        "all", f"Projections that get an adapter: all, attention, mlp, or a list with commas of {', '.join(LAYERS)}."
    )
    lora_dropout: float = setting(0.0, "Fraction dropped of an adapter's inputs.", minimum=0.0, maximum=0.99)
    base_weights: str = setting(
        "float",
        "With --lora_rank, the storage of the frozen projections in memory. float: the model's type; int8: eight bits "
        "with a scale for each output, a quarter of the memory, dequantized at each use. Embeddings stay as they are.",
        choices=("float", "int8"),
    )

    def check(self) -> None:
        self.layers()
        if self.base_weights == "int8" and not self.lora_rank:
            raise SettingError("base_weights", "int8 weights cannot be trained: give --lora_rank, such as 16")

    def layers(self) -> tuple[str, ...]:
        """Returns the names of the projections, in the order of LAYERS."""
        names = [name.strip() for name in self.lora_target_modules.split(",")]
        for name in names:
            if name not in LAYERS and name not in LAYER_GROUPS:
                known = ", ".join((*LAYER_GROUPS, *LAYERS))
                raise SettingError("lora_target_modules", f"{name!r} is not a projection; known are {known}")
        chosen = {layer for name in names for layer in LAYER_GROUPS.get(name, (name,))}
        return tuple(layer for layer in LAYERS if layer in chosen)


def enable_lora(decoder: Decoder, config: LoraConfig) -> None:
    """Adds adapters to a decoder and freezes all other variables; with `base_weights="int8"`, quantizes projections.

    Call it when the decoder has its weights, inside the strategy's scope and before the optimizer is built. Afterwards
    `decoder.trainable_variables` are the adapters.
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


def projections(decoder: Decoder) -> Iterator[tuple[str, str, Projection]]:
    """Yields each projection of the blocks: its name in `LAYERS`, its path ("block_0/attention/query"), the layer."""
    for block in decoder.blocks:
        layers: list[Projection | None] = [
            block.attention.query,
            block.attention.key,
            block.attention.value,
            block.attention.output_projection,
        ]
        layers += [getattr(block.mlp, "gate", None), block.mlp.up, block.mlp.down]
        for name, layer in zip(LAYERS, layers):
            if layer is not None:
                yield name, layer.kernel.path.split("/", 1)[1].rsplit("/", 1)[0], layer
