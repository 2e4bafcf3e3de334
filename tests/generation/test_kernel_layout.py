"""Kernels laid out for decoding are the same numbers: the same logits, the same text."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfgpt.generation.config import SamplingConfig
from tfgpt.generation.generator import Generator
from tfgpt.generation.kernel_layout import transpose_kernels_for_decoding
from tfgpt.model.config import DecoderConfig
from tfgpt.model.decoder import Decoder
from tfgpt.tokenization.train_tokenizer import byte_tokenizer

CONFIG = DecoderConfig(
    vocabulary_size=byte_tokenizer().vocabulary_size, num_layers=2, hidden_dim=32, num_query_heads=4,
    num_key_value_heads=2, max_sequence_length=64, use_query_key_value_bias=True, initializer_range=0.3,
)  # fmt: skip


def decoder(dtype: str) -> Decoder:
    keras.utils.set_random_seed(3)
    return Decoder(CONFIG, dtype=dtype)


def test_logits_are_those_of_the_kernels_as_they_were():
    token_ids = tf.constant(np.random.default_rng(0).integers(0, 256, [3, 20]), tf.int32)
    expected = decoder("bfloat16")({"token_ids": token_ids}).numpy()
    laid_out = transpose_kernels_for_decoding(decoder("bfloat16"))
    assert laid_out.blocks[0].mlp.up.kernel.shape == (CONFIG.intermediate_dim, 32)
    # bfloat16 has 8 bits: products summed in another order differ in the last.
    np.testing.assert_allclose(laid_out({"token_ids": token_ids}).numpy(), expected, atol=0.02 * np.abs(expected).max())
    [kept, now] = [sum(np.prod(v.shape) for v in one.variables) for one in (decoder("bfloat16"), laid_out)]
    assert kept == now


@pytest.mark.parametrize("rows", [1, 3])
def test_steps_with_the_cache_give_the_log_probabilities_of_the_whole_text(rows):
    generator = Generator(transpose_kernels_for_decoding(decoder("bfloat16")), byte_tokenizer())
    sampling = SamplingConfig(max_new_tokens=12, temperature=0.0, num_samples=1)
    prompts = ["ab", "a longer one", "汉"][:rows]
    for prompt, [found] in zip(prompts, generator.generate(prompts, sampling), strict=True):
        start = [generator.tokenizer.end_of_text_id, *generator.tokenizer.encode(prompt)]
        ids = tf.constant([[*start, *found.token_ids]])
        logits = tf.nn.log_softmax(generator.decoder({"token_ids": ids})[0])
        whole = sum(float(logits[len(start) - 1 + place, token]) for place, token in enumerate(found.token_ids))
        assert found.finish_reason == "length"
        assert found.log_probability == pytest.approx(whole, rel=0.03, abs=0.3)


def test_float32_stays_as_it_is():
    laid_out = transpose_kernels_for_decoding(decoder("float32"))
    assert laid_out.blocks[0].mlp.up.kernel.shape == (32, CONFIG.intermediate_dim)
