"""Small models to export."""

from __future__ import annotations

from pathlib import Path

import keras

from tfgpt.model.checkpoints.huggingface import save_decoder
from tfgpt.model.config import DecoderConfig
from tfgpt.model.decoder import Decoder
from tfgpt.tokenization.tokenizer import Tokenizer
from tfgpt.tokenization.train_tokenizer import byte_tokenizer

CONTEXT = 48


def save_model(directory: Path, tokenizer: Tokenizer | None = None, unused_ids: int = 3, **options) -> Path:
    """A model directory with random weights, large enough that a wrong key or position changes the text.

    Args:
        directory: where to.
        tokenizer: None for one of bytes.
        unused_ids: logits that the model has beyond its tokenizer's ids.
        options: of the decoder.
    """
    keras.utils.set_random_seed(5)
    tokenizer = tokenizer or byte_tokenizer()
    shape = {
        "num_layers": 1,
        "hidden_dim": 32,
        "num_query_heads": 4,
        "num_key_value_heads": 2,
        "max_sequence_length": CONTEXT,
        "initializer_range": 0.3,
        "embedding_initializer_range": 0.3,
    }
    config = DecoderConfig(vocabulary_size=tokenizer.vocabulary_size + unused_ids, **{**shape, **options})
    save_decoder(
        Decoder(config, dtype="float32"),
        directory,
        end_of_text_id=tokenizer.end_of_text_id,
        end_of_turn_id=tokenizer.end_of_turn_id,
        padding_id=tokenizer.padding_id,
    )
    tokenizer.save(directory)
    return directory
