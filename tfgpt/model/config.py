"""Settings of a decoder: `DecoderConfig`. No TensorFlow."""
# ruff: noqa: RUF009 -- `setting` makes a dataclass field; ruff knows that only where it knows the annotation.

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from tfgpt.common.errors import SettingError
from tfgpt.common.settings import Settings, setting

# Fields that can be given as None and are then derived. A constructed config never holds None in them, so that type
# checkers see the types without it.
if TYPE_CHECKING:
    DerivedInt = int
    DerivedFloat = float
    DerivedBool = bool
else:
    DerivedInt = int | None
    DerivedFloat = float | None
    DerivedBool = bool | None


MOST_LAYERS = 2**14


@dataclasses.dataclass(frozen=True)
class DecoderConfig(Settings):
    """The shape of a decoder-only transformer.

    `num_key_value_heads`, `head_dim`, `intermediate_dim`, `use_query_key_value_bias`, `embedding_initializer_range`,
    `head_initializer_range` and `attention_scale` are derived from the other fields where they are None.

    Example:

    >>> config = DecoderConfig(hidden_dim=96, num_query_heads=6)
    >>> config.head_dim, config.intermediate_dim
    (16, 256)
    """

    title: ClassVar[str] = "Decoder"

    vocabulary_size: int = setting(4096, "Number of token ids, special tokens included.", minimum=1, maximum=2**24)
    num_layers: int = setting(4, "Number of transformer blocks.", minimum=1, maximum=MOST_LAYERS)
    num_query_heads: int = setting(3, "Attention heads.", minimum=1, maximum=2**16)
    num_key_value_heads: DerivedInt = setting(
        None,
        "Heads of keys and values: as many as query heads, fewer (grouped-query), or 1.",
        minimum=1,
        maximum=2**16,
    )
    hidden_dim: int = setting(192, "Width of the residual stream.", minimum=1, maximum=2**20)
    intermediate_dim: DerivedInt = setting(
        None,
        "Width inside the MLP; none: 4 x hidden_dim, or for swiglu 8/3 of it, to a multiple of 64.",
        minimum=1,
        maximum=2**24,
    )
    head_dim: DerivedInt = setting(
        None, "Width of one head; none: hidden_dim / num_query_heads.", minimum=1, maximum=2**16
    )
    max_sequence_length: int = setting(1024, "Longest sequence, in tokens.", minimum=1)
    position_embedding: str = setting(
        "rope", "Learned position vectors, or rotation of queries and keys.", choices=("learned", "rope")
    )
    rope_max_wavelength: float = setting(10_000.0, "RoPE's base, theta.", minimum=1.0)
    rope_scaling: str = setting(
        "none",
        "Slower rotation, for a longer context: of all channels (linear), or of the slow ones only (llama3).",
        choices=("none", "linear", "llama3"),
    )
    rope_scaling_factor: float = setting(1.0, "How many times slower the channels rotate.", minimum=1.0)
    rope_original_length: int = setting(8192, "llama3 scaling: the original context, in tokens.", minimum=1)
    rope_low_frequency_factor: float = setting(
        1.0, "llama3 scaling: channels with fewer rotations than this in the original context are slowed.", minimum=0.0
    )
    rope_high_frequency_factor: float = setting(
        4.0, "llama3 scaling: channels with more rotations are left unchanged.", minimum=0.0
    )
    no_rope_layer_interval: int | None = setting(
        None, "Every n-th block has no RoPE (SmolLM3's NoPE); none: all blocks have it.", minimum=1
    )
    normalization: str = setting("rms_norm", "Which normalization.", choices=("layer_norm", "rms_norm"))
    normalization_epsilon: float = setting(1e-6, "Added to the variance before its root.", minimum=0.0)
    normalization_scale: bool = setting(True, "Normalizations have a learned scale (query-key norm's too).")
    mlp: str = setting("swiglu", "Kind of MLP; gelu is the tanh form.", choices=("gelu", "swiglu", "squared_relu"))
    use_bias: bool = setting(False, "Projections and layer norms have biases.")
    use_query_key_value_bias: DerivedBool = setting(
        None, "Query, key and value projections have biases; none: as use_bias."
    )
    query_key_norm: bool = setting(True, "RMS-normalize each head's queries and keys.")
    attention_scale: DerivedFloat = setting(
        None, "Factor on the query-key products; none: 1 / sqrt(head_dim).", above=0.0
    )
    logit_soft_cap: float | None = setting(
        None, "Squash output logits smoothly into (-cap, cap): cap x tanh(logits / cap).", minimum=0.0
    )
    sliding_window: int | None = setting(
        None, "Attend to this many newest tokens only, including the current one; none: to all.", minimum=1
    )
    tie_embeddings: bool = setting(True, "The output head is the transposed token embedding.")
    embedding_normalization: bool = setting(False, "Normalize the embeddings before the first block.")
    dropout: float = setting(
        0.0, "Fraction dropped of embeddings, attention weights and block outputs.", minimum=0.0, maximum=0.99
    )
    rematerialize: bool = setting(False, "Recompute blocks in the backward pass: less memory, a third slower.")
    initializer_range: float | None = setting(
        0.02, "Standard deviation of initial kernels; none: 1 / sqrt(inputs).", minimum=0.0
    )
    embedding_initializer_range: DerivedFloat = setting(
        None, "Standard deviation of initial embeddings; none: as initializer_range, or 0.02.", minimum=0.0
    )
    head_initializer_range: DerivedFloat = setting(
        None, "Standard deviation of an untied head; none: as embedding_initializer_range.", minimum=0.0
    )
    query_initializer_factor: float = setting(
        1.0,
        "Multiplies the initial queries: their norm's scale with query_key_norm, else their kernel.",
        minimum=0.0,
    )
    final_norm_initial_scale: float = setting(1.0, "Initial scale of the last normalization.", minimum=0.0)
    zero_initialized_outputs: bool = setting(
        False,
        "The last projections of attention and MLP start at zero; else smaller by sqrt(2 x num_layers), as GPT-2's.",
    )

    def check(self) -> None:
        if self.head_dim is None and self.hidden_dim % self.num_query_heads:
            problem = f"{self.num_query_heads} does not divide --hidden_dim={self.hidden_dim}; or give --head_dim"
            raise SettingError("num_query_heads", problem)
        self._fill("num_key_value_heads", self.num_query_heads)
        self._fill("head_dim", self.hidden_dim // self.num_query_heads)
        self._fill("attention_scale", self.head_dim**-0.5)
        rounded = -(-8 * self.hidden_dim // (3 * 64)) * 64  # 8/3 x hidden_dim, to a multiple of 64 (Shazeer 2020)
        self._fill("intermediate_dim", rounded if self.mlp == "swiglu" else 4 * self.hidden_dim)
        self._fill("use_query_key_value_bias", self.use_bias)
        self._fill("embedding_initializer_range", 0.02 if self.initializer_range is None else self.initializer_range)
        self._fill("head_initializer_range", self.embedding_initializer_range)
        if self.num_query_heads % self.num_key_value_heads:
            raise SettingError(
                "num_key_value_heads",
                f"{self.num_key_value_heads} does not divide --num_query_heads={self.num_query_heads}",
            )
        if self.position_embedding == "rope" and self.head_dim % 2:
            raise SettingError("head_dim", f"{self.head_dim} is odd, but RoPE rotates pairs; make it even")
        if self.rope_scaling == "llama3" and self.rope_high_frequency_factor <= self.rope_low_frequency_factor:
            raise SettingError("rope_high_frequency_factor", "should be above --rope_low_frequency_factor")
        if self.logit_soft_cap == 0.0:
            raise SettingError("logit_soft_cap", "0 would make every logit 0; leave it out for no cap")
        if not self.normalization_scale:
            if self.final_norm_initial_scale != 1.0:
                raise SettingError("final_norm_initial_scale", "needs --normalization_scale=true")
            if self.query_key_norm and self.query_initializer_factor != 1.0:
                raise SettingError("query_initializer_factor", "needs --normalization_scale=true with query_key_norm")

    def _fill(self, name: str, value: object) -> None:
        if getattr(self, name) is None:
            object.__setattr__(self, name, value)

    def rotates(self, block: int) -> bool:
        """Returns whether block number `block` (from 0) applies RoPE."""
        interval = self.no_rope_layer_interval
        return self.position_embedding == "rope" and (interval is None or (block + 1) % interval != 0)

    def inverse_frequencies(self) -> np.ndarray:
        """Returns RoPE's rotation per position of each pair of channels: [head_dim / 2] float32, in radians.

        The scaling "linear" slows all channels (Chen et al. 2023). "llama3" slows channels with fewer than
        `rope_low_frequency_factor` rotations in `rope_original_length` tokens, leaves those with more than
        `rope_high_frequency_factor`, and interpolates between (Llama 3.1's `apply_scaling`).
        """
        inverse = self.rope_max_wavelength ** (-np.arange(0, self.head_dim, 2, dtype=np.float64) / self.head_dim)
        if self.rope_scaling == "linear":
            inverse = inverse / self.rope_scaling_factor
        elif self.rope_scaling == "llama3":
            low, high = self.rope_low_frequency_factor, self.rope_high_frequency_factor
            kept = np.clip((self.rope_original_length * inverse / (2 * np.pi) - low) / (high - low), 0.0, 1.0)
            inverse = (1 - kept) * inverse / self.rope_scaling_factor + kept * inverse
        return inverse.astype(np.float32)

    @property
    def query_width(self) -> int:
        """Outputs of the query projection, all heads together."""
        return self.num_query_heads * self.head_dim

    @property
    def key_value_width(self) -> int:
        """Outputs of the key projection, and of the value projection."""
        return self.num_key_value_heads * self.head_dim

    @property
    def normalization_bias(self) -> bool:
        """True if normalizations have a learned bias."""
        return self.normalization == "layer_norm" and self.use_bias and self.normalization_scale

    @property
    def output_initializer_factor(self) -> float:
        """Factor on the initial kernels of the last projections of attention and MLP (GPT-2, section 2.3)."""
        return 0.0 if self.zero_initialized_outputs else (2 * self.num_layers) ** -0.5
