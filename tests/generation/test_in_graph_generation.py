"""Texts generated in one graph equal those of the generator."""

import numpy as np
import pytest
import tensorflow as tf

from tests.generation.models import PROMPTS, make_generator
from tfgpt.generation.config import SamplingConfig
from tfgpt.generation.decode_steps import DecodeFunctions, window_start
from tfgpt.generation.generator import Generator
from tfgpt.generation.in_graph_generation import generate
from tfgpt.generation.prompts import encode_prompt
from tfgpt.generation.sampling import SamplingParameters


@pytest.fixture(scope="module")
def generator() -> Generator:
    return make_generator(num_layers=2, num_key_value_heads=2, max_sequence_length=40)


@pytest.fixture(scope="module")
def in_one_graph(generator):
    functions = DecodeFunctions(generator.decoder, generator.stop_tokens)

    counts = tf.TensorSpec([None], tf.int32)
    specs = [tf.TensorSpec([None, None], tf.int32), counts, counts, SamplingParameters.specs()]
    in_graph = tf.function(lambda *inputs: generate(functions, *inputs), input_signature=specs, autograph=False)

    def run(prompts, configs):
        rows = [encode_prompt(generator.tokenizer, prompt) for prompt in prompts]
        ids = np.full([len(rows), max(map(len, rows)) + 1], 7, np.int32)  # What stands behind a row is not read.
        for place, row in enumerate(rows):
            ids[place, : len(row)] = row
        return in_graph(
            ids,
            [len(row) for row in rows],
            [config.max_new_tokens for config in configs],
            SamplingParameters.of([(config, 0) for config in configs]),
        )

    return run


CONFIGS = {
    "greedy": [SamplingConfig(max_new_tokens=12, temperature=0.0)] * 4,
    "sampled": [SamplingConfig(max_new_tokens=12, temperature=1.0, top_k=40, top_p=0.95, seed=3)] * 4,
    "each its own, beyond the context": [
        SamplingConfig(max_new_tokens=3, temperature=0.0),
        SamplingConfig(max_new_tokens=150, temperature=1.3, top_k=0, seed=5),
        SamplingConfig(max_new_tokens=70, temperature=0.7, top_p=0.8, repetition_penalty=1.3),
        SamplingConfig(max_new_tokens=1, temperature=1.0, min_p=0.1),
    ],
    "many blocks": [SamplingConfig(max_new_tokens=200, temperature=1.0, top_k=0, seed=seed) for seed in range(4)],
}


@pytest.mark.parametrize("configs", CONFIGS.values(), ids=CONFIGS.keys())
def test_one_graph_writes_what_the_engine_writes(generator, in_one_graph, configs):
    found = in_one_graph(PROMPTS, configs)
    for row, [expected] in enumerate(generator.generate(PROMPTS, configs)):
        assert found.tokens[row, : found.counts[row]].numpy().tolist() == expected.token_ids
        assert not found.tokens[row, found.counts[row] :].numpy().any()
        assert ("stop" if found.stopped[row] else "length") == expected.finish_reason
        assert found.log_probabilities[row].numpy() == pytest.approx(expected.log_probability, abs=1e-3)
        each = found.token_log_probabilities[row].numpy()
        assert each.shape == found.tokens[row].shape and not each[found.counts[row] :].any()
        if expected.finish_reason == "length":
            assert each.sum() == pytest.approx(expected.log_probability, abs=1e-3)
            ids = [*encode_prompt(generator.tokenizer, PROMPTS[row]), *expected.token_ids][: generator.context]
            logits = tf.nn.log_softmax(generator.decoder({"token_ids": tf.constant([ids])})[0]).numpy()
            new = range(len(encode_prompt(generator.tokenizer, PROMPTS[row])) - 1, len(ids) - 1)
            np.testing.assert_allclose(each[: len(new)], [logits[place, ids[place + 1]] for place in new], atol=1e-3)


def test_no_rows_and_no_tokens_are_no_error(in_one_graph):
    nothing = [SamplingConfig()] * 2
    object.__setattr__(nothing[0], "max_new_tokens", 0)
    found = in_one_graph(["a", "b"], [nothing[0]] * 2)
    assert found.tokens.shape == (2, 0)
    assert found.counts.numpy().tolist() == [0, 0]


@pytest.mark.parametrize("context", [1, 2, 5, 16])
def test_a_window_begins_anew_with_its_last_half_whenever_it_is_full(context):
    start = 0
    for length in range(1, 6 * context):
        if length - start > context:
            start = length - max(1, context // 2)
        assert window_start(length, context) == start
        assert int(window_start(tf.constant(length), context)) == start
