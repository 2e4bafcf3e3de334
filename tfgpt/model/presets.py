"""Named decoder shapes, from presets.toml. No TensorFlow."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfgpt.common.did_you_mean import did_you_mean
from tfgpt.common.errors import SettingError
from tfgpt.model.config import DecoderConfig

_TABLE = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
PRESETS: dict[str, dict[str, Any]] = {
    name: _TABLE["families"][preset.pop("family")] | preset for name, preset in _TABLE["presets"].items()
}


def resolve(
    preset: str, vocabulary_size: int | None = None, overrides: Mapping[str, Any] | None = None
) -> DecoderConfig:
    """Returns the config of a preset.

    Args:
        vocabulary_size: the tokenizer's vocabulary size; None: the preset's.
        overrides: fields of `DecoderConfig`. Fields of the preset that depend on them are derived again:
            `intermediate_dim` of `hidden_dim` and `mlp`, `head_dim` of `num_query_heads`, and `num_key_value_heads` if
            it does not divide the new `num_query_heads`.

    Example:

    >>> resolve("gpt2", overrides={"num_layers": 2}).hidden_dim
    768
    """
    if preset not in PRESETS:
        hint = did_you_mean(preset, PRESETS) or f"; there are {', '.join(PRESETS)}"
        raise SettingError("preset", f"{preset!r} is not a preset{hint}")
    overrides = dict(overrides or {})
    values = dict(PRESETS[preset])
    if vocabulary_size is not None:
        values["vocabulary_size"] = vocabulary_size
    if "hidden_dim" in overrides or "mlp" in overrides:
        values.pop("intermediate_dim", None)
    if "num_query_heads" in overrides:
        values.pop("head_dim", None)
        if overrides["num_query_heads"] % values.get("num_key_value_heads", 1):
            values.pop("num_key_value_heads", None)
    return DecoderConfig.from_dict(values | overrides)
