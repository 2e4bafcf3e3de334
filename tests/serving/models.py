"""Small models to export."""

from pathlib import Path

import keras

from tfgpt.model.checkpoints.huggingface import save_decoder
from tfgpt.model.config import DecoderConfig
from tfgpt.model.decoder import Decoder
from tfgpt.tokenization.tokenizer import Tokenizer
from tfgpt.tokenization.train_tokenizer import byte_tokenizer

CONTEXT = 48


def save_model(directory: Path, tokenizer: Tokenizer | None = None, unused_ids: int = 3, **options) -> Path:
    """Saves a model with random weights, large enough that a wrong key or position changes the text.

    The model has `unused_ids` logits more than its tokenizer (by default one of bytes) has ids.
    """
    keras.utils.set_random_seed(5)
    tokenizer = tokenizer or byte_tokenizer()
    shape = {
        "num_layers": 1, "hidden_dim": 32, "num_query_heads": 4, "num_key_value_heads": 2,
        "max_sequence_length": CONTEXT, "initializer_range": 0.3, "embedding_initializer_range": 0.3,
    }  # fmt: skip
    config = DecoderConfig(vocabulary_size=tokenizer.vocabulary_size + unused_ids, **{**shape, **options})
    ids = {name: getattr(tokenizer, name) for name in ("end_of_text_id", "end_of_turn_id", "padding_id")}
    save_decoder(Decoder(config, dtype="float32"), directory, **ids)
    tokenizer.save(directory)
    return directory
