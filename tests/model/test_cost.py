"""Counts of parameters, operations and memory against Keras and arithmetic by hand."""

import pytest
from keras import backend

from tests.model.options import OPTIONS
from tfgpt.model.config import DecoderConfig
from tfgpt.model.cost import count_parameters, training_flops_per_token, training_memory
from tfgpt.model.decoder import Decoder
from tfgpt.model.presets import resolve


@pytest.mark.parametrize("name", OPTIONS)
def test_counted_parameters_are_kerass(name):
    config = DecoderConfig.from_dict(OPTIONS[name])
    assert count_parameters(config) == Decoder(config).count_params()
    backend.clear_session()


def test_flops_per_token_are_palms_formula():
    # GPT-2 at 1024 tokens: 6 x (124,439,808 - 1024 x 768) + 12 x 12 layers x 768 x 1024 = 855.2 million.
    assert training_flops_per_token(resolve("gpt2"), 1024) == 6 * 123_653_376 + 12 * 12 * 768 * 1024
    # Untied: the table of input embeddings is only looked up.
    llama = resolve("llama3_8b")
    looked_up = 128_256 * 4096
    assert training_flops_per_token(llama, 100) == 6 * (8_030_261_248 - looked_up) + 12 * 32 * 4096 * 100
    windowed = resolve("llama3_8b", None, {"sliding_window": 10})
    difference = training_flops_per_token(llama, 100) - training_flops_per_token(windowed, 100)
    assert difference == 12 * 32 * 4096 * 90


def test_training_memory_is_the_sum_of_its_parts_and_shrinks_where_it_should():
    config = resolve("gpt2")
    memory = training_memory(config, batch_size=8, sequence_length=1024, mixed=True)
    assert memory["total"] == sum(value for name, value in memory.items() if name != "total")
    assert memory["optimizer"] == 2 * 4 * 124_439_808
    assert memory["gradients"] == 4 * 124_439_808
    recomputed = resolve("gpt2", None, {"rematerialize": True})
    remat = training_memory(recomputed, batch_size=8, sequence_length=1024, mixed=True)
    assert remat["activations"] < memory["activations"] / 4
    # 256 tokens are the most whose logits take 64 MiB; the head's gradient is summed over the chunks.
    head = 4 * 50_257 * 768
    assert memory["logits"] == 256 * 50_257 * 10 + head
    memory = training_memory(config, batch_size=8, sequence_length=1024, mixed=True, chunk_tokens=8192)
    assert memory["logits"] == 8192 * 50_257 * 10
    # design.md: compiled for a TPU v5e, GPT-2 at batch 8, bf16, T=1024 needs 7.1 GiB of temporaries.
    temporaries = (memory["activations"] + memory["logits"]) / 2**30
    assert 0.7 * 7.1 < temporaries < 1.6 * 7.1
