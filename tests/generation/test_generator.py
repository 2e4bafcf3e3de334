"""The generator against the model's uncached pass, over every decoder option; ends, batches, windows, streams."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests.generation.models import PROMPTS, make_decoder, make_generator
from tfgpt.common.errors import UserError
from tfgpt.generation.config import SamplingConfig
from tfgpt.generation.decode_steps import CompiledDecodeFunctions, choose
from tfgpt.generation.detokenizer import StreamingDetokenizer
from tfgpt.generation.generator import Generator, SequenceInProgress, split_batches, transpose_kernels_for_decoding
from tfgpt.generation.sampling import SamplingParameters

OPTIONS = {
    "modern defaults, three layers": {"num_layers": 3},
    "learned positions": {"position_embedding": "learned"},
    "layer norm with biases": {"normalization": "layer_norm", "use_bias": True},
    "norms without scale": {"normalization_scale": False},
    "gelu": {"mlp": "gelu"},
    "squared relu": {"mlp": "squared_relu"},
    "grouped queries": {"num_key_value_heads": 2},
    "one key-value head": {"num_key_value_heads": 1},
    "no query-key norm": {"query_key_norm": False},
    "query, key and value biases": {"use_query_key_value_bias": True},
    "soft cap": {"logit_soft_cap": 5.0},
    "sliding window": {"sliding_window": 7},
    "untied": {"tie_embeddings": False},
    "embedding norm, wide heads": {"embedding_normalization": True, "head_dim": 16},
}
SETTINGS = SamplingConfig(max_new_tokens=16, temperature=1.0, top_k=40, top_p=0.95, repetition_penalty=1.1, seed=11)
GREEDY = SamplingConfig(max_new_tokens=16, temperature=0.0)


@pytest.fixture(scope="module", params=OPTIONS.values(), ids=OPTIONS.keys())
def any_generator(request) -> Generator:
    return make_generator(**request.param)


@pytest.fixture(scope="module")
def generator() -> Generator:
    return make_generator()


def read(generator: Generator, prompt: str) -> list[int]:
    return [generator.tokenizer.end_of_text_id, *generator.tokenizer.encode(prompt).tolist()]


def uncached(generator: Generator, prompt: str, config: SamplingConfig, tokens: list[int], sample: int = 0):
    """What the whole model, without a cache, chooses at each place of the prompt and `tokens`, and log probabilities.

    If the first choices agree with `tokens`, so do all later ones' pasts: one pass checks them all. The log
    probabilities are the model's own, whatever the settings.
    """
    ids = read(generator, prompt) + tokens
    logits = generator.decoder({"token_ids": tf.constant([ids])})[0]
    places = range(len(ids) - len(tokens) - 1, len(ids))
    seen = np.zeros([len(places), logits.shape[1]], bool)
    for row, place in zip(seen, places, strict=True):
        row[ids[: place + 1]] = True
    chosen, _ = choose(
        logits[places.start :],
        SamplingParameters.of([(config, sample)] * len(places)),
        tf.constant(seen),
        tf.range(places.start + 1, places.stop + 1),
    )
    log_probabilities = tf.nn.log_softmax(logits[places.start :]).numpy()[range(len(places)), chosen]
    return chosen.numpy().tolist(), log_probabilities.tolist()


@pytest.mark.parametrize("config", [GREEDY, SETTINGS], ids=["greedy", "sampled"])
def test_cached_generation_in_a_padded_batch_equals_the_uncached_model(any_generator, config):
    for prompt, [found] in zip(PROMPTS, any_generator.generate(PROMPTS, config), strict=True):
        chosen, log_probabilities = uncached(any_generator, prompt, config, found.token_ids)
        if found.finish_reason == "length":
            assert len(found.token_ids) == config.max_new_tokens
            chosen, log_probabilities = chosen[:-1], log_probabilities[:-1]
        else:
            assert chosen.pop() in any_generator.stop_tokens
        assert found.token_ids == chosen
        assert found.log_probability == pytest.approx(sum(log_probabilities), abs=1e-3)


def test_different_prompts_and_seeds_give_different_texts(generator):
    configs = [dataclasses.replace(SETTINGS, seed=seed) for seed in (1, 2, 3)]
    texts = {tuple(found.token_ids) for config in configs for [found] in generator.generate(PROMPTS, config)}
    assert len(texts) > 8


@pytest.mark.parametrize("options", ["modern defaults, three layers", "learned positions", "sliding window"])
def test_a_long_beam_has_the_log_probability_that_the_uncached_model_gives_its_tokens(options):
    generator = make_generator(**OPTIONS[options])
    config = SamplingConfig(max_new_tokens=40, temperature=0.0, num_beams=3, length_penalty=2.0)
    [[found]] = generator.generate(["The cat"], config)
    assert len(found.token_ids) == 40  # The cache of the beams has grown twice.
    ids = read(generator, "The cat") + found.token_ids
    log_probabilities = tf.nn.log_softmax(generator.decoder({"token_ids": tf.constant([ids])})[0]).numpy()
    expected = log_probabilities[range(len(ids) - 41, len(ids) - 1), found.token_ids].sum()
    assert found.log_probability == pytest.approx(float(expected), abs=1e-3)


def test_a_step_of_beam_search_reads_each_candidates_new_token_only_and_never_copies_the_prompt(generator, monkeypatch):
    added, copied = [], []
    add, step = StreamingDetokenizer.add, generator.decoding.beam_step
    monkeypatch.setattr(StreamingDetokenizer, "add", lambda self, token: added.append(token) or add(self, token))

    def noted(past, cache, *given):
        copied.append(cache[0][0].shape[2])
        return step(past, cache, *given)

    monkeypatch.setattr(generator.decoding, "beam_step", noted)
    config = SamplingConfig(max_new_tokens=24, temperature=0.0, num_beams=2, length_penalty=2.0, stop=("no such text",))
    [[found]] = generator.generate(["A prompt of twenty-odd bytes"], config)
    candidates = (1 + len(generator.stop_tokens)) * config.num_beams
    assert len(added) <= 24 * candidates + len(found.token_ids)
    assert copied == [0] + [16] * 16 + [32] * (len(copied) - 17)


@pytest.mark.parametrize(
    "options", [{"steps": 1}, {"steps": 2}, {"steps": 5}, {"steps": 64}, {"batch_size": 1}, {"batch_size": 3}], ids=str
)
def test_the_sizes_of_chunks_and_batches_change_nothing(generator, options):
    config = dataclasses.replace(SETTINGS, num_samples=2)
    expected, found = generator.generate(PROMPTS, config), generator.generate(PROMPTS, config, **options)
    for rows, expected_rows in zip(found, expected, strict=True):
        assert [(row.token_ids, row.text) for row in rows] == [(row.token_ids, row.text) for row in expected_rows]


def test_samples_of_one_prompt_differ_and_the_first_is_the_single_one(generator):
    config = SamplingConfig(max_new_tokens=16, temperature=1.0, num_samples=3)
    [samples] = generator.generate(["The cat"], config)
    assert len({tuple(found.token_ids) for found in samples}) == 3
    [[alone]] = generator.generate(["The cat"], SamplingConfig(max_new_tokens=16, temperature=1.0))
    assert alone.token_ids == samples[0].token_ids


def test_rows_have_settings_and_limits_of_their_own(generator):
    configs = [
        SamplingConfig(max_new_tokens=3, temperature=0.0),
        SamplingConfig(max_new_tokens=20, temperature=1.3, top_k=0, seed=5),
        SamplingConfig(max_new_tokens=9, temperature=0.7, top_p=0.8, repetition_penalty=1.3),
        SamplingConfig(max_new_tokens=1, temperature=1.0, min_p=0.1),
    ]
    together = generator.generate(PROMPTS, configs)
    for prompt, config, [found] in zip(PROMPTS, configs, together, strict=True):
        assert len(found.token_ids) <= config.max_new_tokens
        assert found.token_ids == generator.generate([prompt], config)[0][0].token_ids


def test_a_stop_token_ends_its_row_only_and_is_not_in_the_text():
    generator = make_generator()
    config = SamplingConfig(max_new_tokens=40, temperature=1.0, top_k=0, num_samples=40)
    [samples] = generator.generate(["stop"], config)
    stopped = [found for found in samples if found.finish_reason == "stop"]
    assert 0 < len(stopped) < 40
    for found in stopped:
        assert len(found.token_ids) < 40
        assert not set(found.token_ids) & set(generator.stop_tokens)
    assert all(len(found.token_ids) == 40 for found in samples if found.finish_reason == "length")


def test_an_ordinary_token_that_ends_a_text_is_not_in_it():
    # vllm-project/vllm#5954: config.json names a line break among the ends.
    plain = make_generator()
    [[written]] = plain.generate(["stop"], SETTINGS)
    ids = written.token_ids
    place = next(place for place in range(1, len(ids)) if ids[place] not in ids[:place])
    [[found]] = Generator(plain.decoder, plain.tokenizer, [ids[place]]).generate(["stop"], SETTINGS)
    assert (found.token_ids, found.finish_reason, found.stop_token) == (ids[:place], "stop", ids[place])
    assert found.text == plain.tokenizer.decode(ids[:place])


def test_a_stop_string_cuts_the_text_before_it_even_across_tokens(generator):
    config = SamplingConfig(max_new_tokens=30, temperature=0.0)
    [[free]] = generator.generate(["The cat"], config)
    content = generator.tokenizer.decode_bytes(free.token_ids)
    # Bytes are tokens here, so any ASCII pair spans two of them.
    start = next(place for place in range(2, 28) if max(content[place : place + 2]) < 128)
    stop = content[start : start + 2].decode()
    for steps in (1, 4, 32):
        [[cut]] = generator.generate(
            ["The cat"], SamplingConfig(max_new_tokens=30, temperature=0.0, stop=("never", stop)), steps=steps
        )
        assert cut.finish_reason == "stop"
        assert cut.text == content[: content.index(stop.encode())].decode("utf-8", "replace")
        assert cut.token_ids == free.token_ids[: content.index(stop.encode()) + 2]


def test_streamed_pieces_joined_are_the_text_and_hold_no_half_characters(generator):
    for seed in range(5):
        config = SamplingConfig(max_new_tokens=40, temperature=1.0, seed=seed)
        [[expected]] = generator.generate(["汉"], config)
        *pieces, last = generator.stream("汉", config, steps=3)
        assert last.completion.token_ids == expected.token_ids
        assert last.completion.finish_reason == expected.finish_reason
        assert all(piece.completion is None and piece.text for piece in pieces)
        assert "".join(piece.text for piece in [*pieces, last]) == expected.text


def slow(generator: Generator, prompts: list[str], config: SamplingConfig, context: int) -> list[list[int]]:
    """Token by token without a cache, over the last half of the context whenever it is full."""
    parameters = SamplingParameters.of([(config, 0)])

    @tf.function(input_signature=[tf.TensorSpec([1, None], tf.int32), tf.TensorSpec([1], tf.int32)], autograph=False)
    def next_token(window, position):
        logits = generator.decoder({"token_ids": window})[:, -1]
        return choose(logits, parameters, tf.zeros([1, 0], tf.bool), position)[0]

    texts = []
    for prompt in prompts:
        ids, start = read(generator, prompt), 0
        first = len(ids)
        while len(ids) - first < config.max_new_tokens:
            if len(ids) - start > context:
                start = len(ids) - context // 2
            ids.append(int(next_token([ids[start:]], [len(ids)])[0]))
        texts.append(ids[first:])
    return texts


@pytest.mark.parametrize("options", [{}, {"position_embedding": "learned", "sliding_window": 5}], ids=str)
def test_text_goes_on_from_the_last_half_when_the_context_is_full(options):
    generator = make_generator(**options, max_sequence_length=16)
    generator.stop_tokens = ()  # So that no text ends before its context is full.
    generator.decoding = CompiledDecodeFunctions(generator.decoder, ())
    config = SamplingConfig(max_new_tokens=45, temperature=1.0, seed=2)
    prompts = ["abc", "fifteen tokens!", "now"]
    expected = slow(generator, prompts, config, 16)
    for steps in (4, 32):
        assert [found.token_ids for [found] in generator.generate(prompts, config, steps=steps)] == expected


def test_changed_weights_are_seen_without_a_new_generator():
    generator = make_generator()
    before = generator.generate(["a"], GREEDY)
    for weight in generator.decoder.weights:
        weight.assign(-weight)
    after = generator.generate(["a"], GREEDY)
    assert before != after
    assert after == Generator(generator.decoder, generator.tokenizer).generate(["a"], GREEDY)


def test_graphs_are_traced_once_whatever_the_sizes(generator):
    for prompts, tokens, steps in ((["a"], 5, 2), (["a", "bcd"], 9, 4), (["x" * 40] * 3, 20, 32)):
        generator.generate(prompts, SamplingConfig(max_new_tokens=tokens), steps=steps)
    assert generator.decoding.prefill.experimental_get_tracing_count() == 1
    assert generator.decoding.steps.experimental_get_tracing_count() == 1


def test_a_prompt_longer_than_the_context_is_refused_and_one_that_fills_it_is_not(generator):
    config = SamplingConfig(max_new_tokens=3)
    generator.generate(["x" * 63], config)
    with pytest.raises(UserError, match="the prompt has 65 tokens, the model reads at most 64"):
        generator.generate(["x" * 64], config)
    with pytest.raises(UserError, match="prompt 2 has 65 tokens"):
        generator.generate(["x", "x" * 64], config)


def test_long_prompts_are_read_a_few_at_a_time():
    rows = [SequenceInProgress(np.zeros(length, np.int32), GREEDY, 0) for length in (10, 3000, 3000, 3000, 9000)]
    found = [[len(row.prompt) for row in batch] for batch in split_batches(rows, 32)]
    assert found == [[10, 3000], [3000, 3000], [9000]]
    assert [len(batch) for batch in split_batches(rows[:1] * 5, 2)] == [2, 2, 1]


def test_ids_are_taken_as_they_are_and_checked(generator):
    config = SamplingConfig(max_new_tokens=5)
    ids = np.array(read(generator, "The cat"))
    assert generator.generate([ids], config) == generator.generate(["The cat"], config)
    with pytest.raises(UserError, match="outside the vocabulary"):
        generator.generate([np.array([100_000])], config)


def test_bfloat16_writes_text_whose_tokens_the_float32_model_finds_nearly_as_likely():
    small, large = make_generator("bfloat16"), make_generator()
    for half, full in zip(small.decoder.weights, large.decoder.weights, strict=True):
        half.assign(full)
    [[found]] = small.generate(["The cat"], GREEDY)
    logits = large.decoder({"token_ids": tf.constant([read(large, "The cat") + found.token_ids])})[0]
    tokens = [*found.token_ids, logits.shape[1]]
    start = len(read(large, "The cat")) - 1
    for place, token in enumerate(tokens[:-1], start):
        # bfloat16 keeps 8 bits: 1/256 of logits of about 10, summed over two layers.
        assert float(tf.reduce_max(logits[place]) - logits[place, token]) < 0.5


def test_transposed_kernels_give_the_same_logits_and_float32_stays_as_it_is():
    token_ids = {"token_ids": tf.constant(np.random.default_rng(0).integers(0, 256, [3, 20]), tf.int32)}
    options = {"num_layers": 2, "use_query_key_value_bias": True}
    decoders = make_decoder("bfloat16", **options), make_decoder("bfloat16", **options), make_decoder()
    transposed, single = map(transpose_kernels_for_decoding, decoders[1:])
    assert transposed.blocks[0].mlp.up.kernel.shape == (48, 32) and single.blocks[0].mlp.up.kernel.shape == (32, 48)
    expected = decoders[0](token_ids).numpy()
    # bfloat16 has 8 bits: products summed in another order differ in the last.
    np.testing.assert_allclose(transposed(token_ids).numpy(), expected, atol=0.02 * np.abs(expected).max())
    sizes = [sum(np.prod(variable.shape) for variable in decoder.variables) for decoder in decoders[:2]]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("rows", [1, 3])
def test_cached_steps_with_transposed_kernels_give_the_log_probabilities_of_the_whole_text(rows):
    decoder = make_decoder("bfloat16", num_layers=2, num_key_value_heads=2, use_query_key_value_bias=True)
    generator = Generator(transpose_kernels_for_decoding(decoder), make_generator().tokenizer)
    prompts = ["ab", "a longer one", "汉"][:rows]
    for prompt, [found] in zip(prompts, generator.generate(prompts, GREEDY), strict=True):
        ids = read(generator, prompt)
        logits = tf.nn.log_softmax(generator.decoder({"token_ids": tf.constant([[*ids, *found.token_ids]])})[0])
        whole = sum(float(logits[len(ids) - 1 + place, token]) for place, token in enumerate(found.token_ids))
        assert found.finish_reason == "length"
        assert found.log_probability == pytest.approx(whole, rel=0.03, abs=0.3)
