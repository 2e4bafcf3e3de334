"""Which layers get low-rank adapters, and how the weights below them are kept. No TensorFlow."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from tfgpt.common.errors import SettingError
from tfgpt.common.settings import Settings, setting

LAYERS = ("query", "key", "value", "output", "gate", "up", "down")
GROUPS_OF_LAYERS = {"all": LAYERS, "attention": LAYERS[:4], "mlp": LAYERS[4:]}


@dataclasses.dataclass(frozen=True)
class LoraConfig(Settings):
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685): the model's own weights stay as they are."""

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
        "all", f"Which projections get one: all, attention, mlp, or a list with commas of {', '.join(LAYERS)}."
    )
    lora_dropout: float = setting(0.0, "Fraction dropped of an adapter's inputs.", minimum=0.0, maximum=0.99)
    base_weights: str = setting(
        "float",
        "With --lora_rank, how the frozen projections are kept in memory: float: in the model's type; int8: eight bits "
        "with a scale for each output, a quarter of the memory, made whole at each use. Embeddings stay as they are.",
        choices=("float", "int8"),
    )

    def check(self) -> None:
        self.layers()
        if self.base_weights == "int8" and not self.lora_rank:
            raise SettingError("base_weights", "int8 weights cannot be trained: give --lora_rank, such as 16")

    def layers(self) -> tuple[str, ...]:
        """The names of the projections, in the order of LAYERS."""
        names = [name.strip() for name in self.lora_target_modules.split(",")]
        for name in names:
            if name not in LAYERS and name not in GROUPS_OF_LAYERS:
                known = ", ".join((*GROUPS_OF_LAYERS, *LAYERS))
                raise SettingError("lora_target_modules", f"{name!r} is no projection; known are {known}")
        chosen = {layer for name in names for layer in GROUPS_OF_LAYERS.get(name, (name,))}
        return tuple(layer for layer in LAYERS if layer in chosen)
