"""Small generators with random weights."""

import keras

from tfgpt.generation.generator import Generator
from tfgpt.model.config import DecoderConfig
from tfgpt.model.decoder import Decoder
from tfgpt.tokenization.train_tokenizer import byte_tokenizer

SHAPE = {
    "num_layers": 1,
    "hidden_dim": 32,
    "num_query_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_dim": 48,
    "max_sequence_length": 64,
    # Far from the usual 0.02, so that logits differ enough for a wrong key or position to change the text.
    "initializer_range": 0.3,
    "embedding_initializer_range": 0.3,
}
PROMPTS = ["The cat", "", "A considerably longer prompt", "汉"]


def make_decoder(dtype: str = "float32", **options) -> Decoder:
    keras.utils.set_random_seed(1)
    return Decoder(
        DecoderConfig(**{"vocabulary_size": byte_tokenizer().vocabulary_size, **SHAPE, **options}), dtype=dtype
    )


def make_generator(dtype: str = "float32", **options) -> Generator:
    return Generator(make_decoder(dtype, **options), byte_tokenizer())
