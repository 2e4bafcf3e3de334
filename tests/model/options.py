"""Small decoder configs, one for each option, that the tests of this folder go through."""

import numpy as np

from tfgpt.model.config import DecoderConfig
from tfgpt.model.decoder import Decoder

VOCABULARY = 61

MODERN = {
    "vocabulary_size": VOCABULARY,
    "num_layers": 2,
    "hidden_dim": 32,
    "num_query_heads": 4,
    "num_key_value_heads": 2,
    "max_sequence_length": 160,
}
GPT2_STYLE = {
    "position_embedding": "learned",
    "normalization": "layer_norm",
    "mlp": "gelu",
    "use_bias": True,
    "query_key_norm": False,
}
GPT2 = MODERN | GPT2_STYLE | {"num_key_value_heads": 4}
NANOCHAT_STYLE = {
    "mlp": "squared_relu",
    "normalization_scale": False,
    "embedding_normalization": True,
    "tie_embeddings": False,
}
NANOCHAT = MODERN | NANOCHAT_STYLE | {"logit_soft_cap": 5.0, "initializer_range": None, "attention_scale": 0.5}

OPTIONS = {"modern": MODERN, "gpt2": GPT2, "nanochat": NANOCHAT}
ONE_BLOCK = MODERN | {"num_layers": 1}
ONE_GPT2_BLOCK = GPT2 | {"num_layers": 1}
OPTIONS |= {
    "multi_head": ONE_BLOCK | {"num_key_value_heads": None},
    "multi_query": ONE_BLOCK | {"num_key_value_heads": 1},
    "wide_heads": ONE_BLOCK | {"head_dim": 12},
    "no_query_key_norm": ONE_BLOCK | {"query_key_norm": False},
    "rope_with_layer_norm": ONE_BLOCK | {"normalization": "layer_norm", "use_bias": True},
    "layer_norm_without_scale": ONE_GPT2_BLOCK | {"normalization_scale": False},
    "no_biases": ONE_GPT2_BLOCK | {"use_bias": False},
    "query_key_value_biases": ONE_BLOCK | {"use_query_key_value_bias": True},
    "learned_positions_and_query_key_norm": ONE_GPT2_BLOCK | {"query_key_norm": True, "num_key_value_heads": 2},
    "untied": ONE_BLOCK | {"tie_embeddings": False},
    "soft_cap": ONE_BLOCK | {"logit_soft_cap": 2.0},
    "sliding_window": ONE_BLOCK | {"sliding_window": 5},
    "sliding_window_of_one": ONE_BLOCK | {"sliding_window": 1},
    "learned_positions_and_window": ONE_GPT2_BLOCK | {"sliding_window": 9},
    "gelu_with_rope": ONE_BLOCK | {"mlp": "gelu"},
    "rematerialized": ONE_BLOCK | {"rematerialize": True},
    "dropout": ONE_BLOCK | {"dropout": 0.2},
}


def random_decoder(values: dict, packed: bool = False, dtype: str | None = None) -> Decoder:
    """A decoder with every variable far from its initial value, biases and scales too."""
    decoder = Decoder(DecoderConfig.from_dict(values), packed=packed, dtype=dtype)
    random = np.random.default_rng(1)
    for variable in decoder.trainable_variables:
        offset = 1.0 if variable.path.endswith("scale") else 0.0
        variable.assign(offset + random.normal(0.0, 0.25, variable.shape))
    return decoder


def random_ids(rows: int, length: int, seed: int = 0) -> np.ndarray:
    """[rows, length] int32."""
    return np.random.default_rng(seed).integers(0, VOCABULARY, (rows, length)).astype(np.int32)
