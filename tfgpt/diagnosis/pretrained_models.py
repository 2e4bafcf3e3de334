"""Loads the table of pretrained models, pretrained_models.toml. Does not import TensorFlow."""

from __future__ import annotations

import dataclasses
import functools
import tomllib
from pathlib import Path

from tfgpt.model.config import DecoderConfig
from tfgpt.model.presets import resolve

OPEN_LICENCES = ("Apache-2.0", "MIT")
"""Licences without conditions set by the maker of the model."""


@dataclasses.dataclass(frozen=True)
class PretrainedModelInfo:
    """One published model. The head of the table describes the fields."""

    base: str
    config: DecoderConfig
    context: int
    licence: str
    training_tokens: float
    languages: list[str]
    code: bool
    shape_source: str
    source: str
    chat: str = ""
    chat_context: int = 0
    conditions: str = ""

    def context_of(self, name: str) -> int:
        return self.chat_context or self.context if name == self.chat else self.context


@functools.cache
def load_pretrained_models() -> tuple[PretrainedModelInfo, ...]:
    table = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    models = []
    for family in table["families"]:
        for model in family.pop("models"):
            values = family | model
            config = resolve(values.pop("preset", "llama3_8b"), overrides=values.pop("shape", {}))
            models.append(PretrainedModelInfo(config=config, **values))
    return tuple(models)
