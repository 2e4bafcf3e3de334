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
GPT2 = MODERN | {
    "num_key_value_heads": 4,
    "position_embedding": "learned",
    "normalization": "layer_norm",
    "mlp": "gelu",
    "use_bias": True,
    "query_key_norm": False,
}
NANOCHAT = MODERN | {
    "mlp": "squared_relu",
    "normalization_scale": False,
    "embedding_normalization": True,
    "tie_embeddings": False,
    "logit_soft_cap": 5.0,
    "initializer_range": None,
    "attention_scale": 0.5,
}

OPTIONS = {
    "modern": MODERN,
    "gpt2": GPT2,
    "nanochat": NANOCHAT,
    "multi_head": MODERN | {"num_key_value_heads": None},
    "multi_query": MODERN | {"num_key_value_heads": 1},
    "wide_heads": MODERN | {"head_dim": 12},
    "no_query_key_norm": MODERN | {"query_key_norm": False},
    "rope_with_layer_norm": MODERN | {"normalization": "layer_norm", "use_bias": True},
    "layer_norm_without_scale": GPT2 | {"normalization_scale": False},
    "no_biases": GPT2 | {"use_bias": False},
    "query_key_value_biases": MODERN | {"use_query_key_value_bias": True},
    "learned_positions_and_query_key_norm": GPT2 | {"query_key_norm": True, "num_key_value_heads": 2},
    "untied": MODERN | {"tie_embeddings": False},
    "soft_cap": MODERN | {"logit_soft_cap": 2.0},
    "sliding_window": MODERN | {"sliding_window": 5},
    "sliding_window_of_one": MODERN | {"sliding_window": 1},
    "learned_positions_and_window": GPT2 | {"sliding_window": 9},
    "gelu_with_rope": MODERN | {"mlp": "gelu"},
    "rematerialized": MODERN | {"rematerialize": True},
    "dropout": MODERN | {"dropout": 0.2},
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
