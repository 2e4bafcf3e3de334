"""The maximal update parametrization (muP): initial weights and learning rates that transfer to wider models.

Yang et al. 2022, "Tensor Programs V", arXiv:2203.03466, table 8 for Adam, with m = hidden_dim / base_hidden_dim:

| weight | initial deviation | factor on the learning rate |
| --- | --- | --- |
| embeddings, norms, biases | unchanged | 1 |
| kernels of the blocks | / sqrt(m) | 1 / m; with Muon 1 / sqrt(m) |
| logits of a tied head | hidden states times 1 / m | |
| kernel of an untied head (table 3) | / m | 1 / m |
| query-key products | times sqrt(base_head_dim) / head_dim | |

At the base width nothing differs from the standard parametrization. All widths are assumed to grow with `hidden_dim`.

The two factors on activations are folded into weights, so that other programs can read the model: the last norm's scale
starts at 1 / m, and the queries (the scale of their norm, or their kernel without query-key norm) start smaller by
sqrt(base_head_dim / head_dim). Their learning rates get the same factor. This is exact for AdamW, Lion and Muon, whose
updates do not depend on the size of gradients: with w = c v, an update of v by d moves w by c d.

Weight decay follows the schedule but not these factors, so that its time scale does not depend on the width, like
`MuAdamW` of https://github.com/microsoft/mup.

Keras's Muon scales an update to AdamW's root mean square (arXiv:2502.16982): for a kernel [n, n] its spectral norm is
0.2 sqrt(n) times the learning rate. Updates with the spectral norm sqrt(outputs / inputs) transfer (Yang et al. 2023,
arXiv:2310.17813), hence 1 / sqrt(m). Adafactor is not supported: its updates are relative to the size of the weights.
"""

from __future__ import annotations

import dataclasses
import re
from typing import ClassVar

from tfgpt.common.errors import SettingError
from tfgpt.common.settings import Settings, setting
from tfgpt.model.config import DecoderConfig


@dataclasses.dataclass(frozen=True)
class ParametrizationConfig(Settings):
    """Dependence of initial weights and learning rates on the width.

    Example:

    >>> mup = ParametrizationConfig(parametrization="maximal_update", base_hidden_dim=64)
    >>> mup.width_multiplier(DecoderConfig(hidden_dim=192))
    3.0
    """

    title: ClassVar[str] = "Parametrization"

    parametrization: str = setting(
        "standard",
        "maximal_update: the best learning rate of a model of --base_hidden_dim is about the best for wider ones too "
        "(arXiv:2203.03466); with adamw, muon or lion. standard: initial weights and learning rates of the flags.",
        choices=("standard", "maximal_update"),
    )
    base_hidden_dim: int = setting(
        64, "With maximal_update: --hidden_dim of the tuned model, where nothing changes.", minimum=1
    )
    base_head_dim: int | None = setting(
        None,
        "With maximal_update: --head_dim of the tuned model; none: the same, so that wider models have more heads.",
        minimum=1,
    )

    def width_multiplier(self, config: DecoderConfig) -> float:
        return config.hidden_dim / self.base_hidden_dim if self.parametrization == "maximal_update" else 1.0

    def query_factor(self, config: DecoderConfig) -> float:
        """Returns the factor from the attention scale 1 / sqrt(head_dim) to sqrt(base_head_dim) / head_dim."""
        if self.parametrization == "standard" or self.base_head_dim is None:
            return 1.0
        return float((self.base_head_dim / config.head_dim) ** 0.5)


def with_initial_weights(config: DecoderConfig, parametrization: ParametrizationConfig) -> DecoderConfig:
    """Returns the decoder's config with the initial weights of the parametrization."""
    width, query = parametrization.width_multiplier(config), parametrization.query_factor(config)
    if width == query == 1.0:
        return config
    if not config.normalization_scale and config.tie_embeddings:
        problem = "maximal_update starts the last norm's scale smaller for a tied head: --normalization_scale=true"
        raise SettingError("parametrization", f"{problem}, or --tie_embeddings=false")
    if not config.normalization_scale and config.query_key_norm and query != 1.0:
        problem = "starts the scale of the queries' norm smaller, which needs --normalization_scale=true"
        raise SettingError("base_head_dim", problem)
    kernels = config.initializer_range
    return dataclasses.replace(
        config,
        # None is 1 / sqrt(inputs), which depends on the width already.
        initializer_range=None if kernels is None else kernels * width**-0.5,
        head_initializer_range=config.head_initializer_range / (1.0 if config.tie_embeddings else width),
        final_norm_initial_scale=config.final_norm_initial_scale / (width if config.tie_embeddings else 1.0),
        query_initializer_factor=config.query_initializer_factor * query,
    )


def learning_rate_factor(
    path: str, config: DecoderConfig, parametrization: ParametrizationConfig, optimizer: str
) -> float:
    """Returns the factor on the learning rate of one weight; 1 in the standard parametrization.

    Args:
        path: the variable's path, such as decoder/block_0/attention/query/kernel.
        optimizer: "adamw", "lion" or "muon".
    """
    width, query = parametrization.width_multiplier(config), parametrization.query_factor(config)
    factor = 1.0
    if re.search(r"/block_\d+/.*/kernel$", path):
        factor = width ** (-0.5 if optimizer == "muon" else -1.0)
    elif re.search(r"/head/kernel$", path) or (config.tie_embeddings and re.search(r"/final_norm/\w+$", path)):
        factor = 1.0 / width
    folded = "query_norm" if config.query_key_norm else "query"
    return factor * query if re.search(rf"/attention/{folded}/\w+$", path) else factor
