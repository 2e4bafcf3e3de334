"""The same recipe at another width. Imports no TensorFlow."""

from __future__ import annotations

import dataclasses

from tfgpt.common.errors import SettingError
from tfgpt.training.train_config import TrainConfig


def at_width(recipe: TrainConfig, width: int) -> TrainConfig:
    """The recipe with another `hidden_dim`; heads and the inside of the MLP grow in proportion.

    The heads become more, and stay as wide as they are; a single key-value head stays single. With --base_head_dim
    their number stays and they become wider.

    Raises:
        SettingError: the width does not come out even.
    """
    now = recipe.decoder_config(vocabulary_size=1024)

    def scaled(name: str) -> int:
        value = getattr(now, name) * width
        if value % now.hidden_dim:
            problem = f"{name} = {getattr(now, name)} at --hidden_dim={now.hidden_dim} does not come out even"
            raise SettingError("hidden_dim", f"{width}: {problem}")
        return value // now.hidden_dim

    changes = {"hidden_dim": width, "intermediate_dim": scaled("intermediate_dim")}
    if recipe.parametrization.base_head_dim is None:
        shared = 1 if now.num_key_value_heads == 1 else scaled("num_key_value_heads")
        heads = {"num_query_heads": scaled("num_query_heads"), "num_key_value_heads": shared}
        changes |= {**heads, "head_dim": now.head_dim}
    else:
        heads = {"num_query_heads": now.num_query_heads, "num_key_value_heads": now.num_key_value_heads}
        changes |= {**heads, "head_dim": scaled("head_dim")}
    return dataclasses.replace(recipe, model={**recipe.model, **changes})


def with_parametrization(recipe: TrainConfig, name: str) -> TrainConfig:
    """The recipe with another --parametrization."""
    return dataclasses.replace(
        recipe, parametrization=dataclasses.replace(recipe.parametrization, parametrization=name)
    )
