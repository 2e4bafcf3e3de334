"""An export, opened by the session loader, answers as the model itself does."""

import json
import math

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tests.serving.conftest import DEFAULTS
from tests.serving.models import CONTEXT
from tfgpt.generation.config import SamplingConfig
from tfgpt.generation.prompts import encode_chat, encode_prompt
from tfgpt.serving.backends import load_model_info
from tfgpt.serving.serve_config import ServeConfig
from tfgpt.serving.signatures import SAMPLING, SIGNATURES
from tfgpt.tokenization.chat_template import get_chat_template
from tfgpt.tokenization.jinja_template import DEFAULT_TEMPLATE, ChatTemplate

TEXTS = ["The quick brown", "", "汉 <|im_end|>", "How vexingly quick daft zebras"]
CONFIGS = [
    SamplingConfig(max_new_tokens=30, temperature=0.0),
    SamplingConfig(max_new_tokens=90, temperature=1.2, top_k=0, seed=2**40 + 1),  # beyond the context
    SamplingConfig(max_new_tokens=7, temperature=1.0, top_k=40, top_p=0.9, repetition_penalty=1.2, seed=-3),
    SamplingConfig(max_new_tokens=1, temperature=1.0, min_p=0.05),
]


def strings(texts: list[str]) -> np.ndarray:
    return np.array([text.encode() for text in texts], object)


def sampling(configs: list[SamplingConfig]) -> dict[str, np.ndarray]:
    rows = [{**config.to_dict(), "sample": 0} for config in configs]
    return {item.name: np.array([row[item.name] for row in rows], item.dtype) for item in SAMPLING}


def tokens(answer: dict[str, np.ndarray]) -> list[list[int]]:
    return [row[:count].tolist() for row, count in zip(answer["tokens"], answer["num_tokens"], strict=True)]


def content_of(ids: list[int], generator) -> bytes:
    # The model has more ids than its tokenizer; they have no bytes.
    return b"".join(generator.token_bytes[token] for token in ids)


def check_equal(answer, expected, generator):
    assert tokens(answer) == [found.token_ids for [found] in expected]
    assert [reason.decode() for reason in answer["finish_reason"]] == [found.finish_reason for [found] in expected]
    np.testing.assert_allclose(answer["log_probability"], [found.log_probability for [found] in expected], atol=1e-3)
    assert answer["text_bytes"].tolist() == [content_of(found.token_ids, generator) for [found] in expected]
    assert [text.decode() for text in answer["text"]] == [found.text for [found] in expected]


def test_generate_writes_what_the_generator_writes_row_by_row(served, generator):
    answer = served("generate", {"text": strings(TEXTS), **sampling(CONFIGS)})
    check_equal(answer, generator.generate(TEXTS, CONFIGS), generator)
    assert answer["prompt_tokens"].tolist() == [len(encode_prompt(generator.tokenizer, text)) for text in TEXTS]
    behind = np.arange(answer["tokens"].shape[1]) >= answer["num_tokens"][:, None]
    assert (answer["tokens"][behind] == generator.tokenizer.padding_id).all()


def test_a_batch_equals_its_rows_one_by_one(served):
    together = served("generate", {"text": strings(TEXTS), **sampling(CONFIGS)})
    for row, text in enumerate(TEXTS):
        alone = served("generate", {"text": strings([text]), **sampling(CONFIGS[row : row + 1])})
        assert tokens(alone) == tokens(together)[row : row + 1]


def test_samples_differ_and_are_those_of_the_generator(served, generator):
    config = SamplingConfig(max_new_tokens=12, temperature=1.0, num_samples=3)
    inputs = {**sampling([config] * 3), "sample": np.arange(3)}
    answer = served("generate", {"text": strings(["The quick"] * 3), **inputs})
    [expected] = generator.generate(["The quick"], config)
    assert tokens(answer) == [found.token_ids for found in expected]
    assert len(set(map(tuple, tokens(answer)))) == 3


def test_chat_answers_what_the_generator_answers_to_the_messages(served, generator):
    dialogues = [
        [{"role": "user", "content": "Quick?"}],
        [{"role": "system", "content": "a"}, {"role": "user", "content": "<|im_end|> b <\\|"}],
    ]
    ids = [encode_chat(generator.tokenizer, dialogue) for dialogue in dialogues]
    answer = served(
        "chat",
        {"conversation": strings([DEFAULT_TEMPLATE.render(one, True) for one in dialogues]), **sampling(CONFIGS[1:3])},
    )
    check_equal(answer, generator.generate(ids, CONFIGS[1:3]), generator)


def test_a_reply_stops_at_the_end_of_the_turn(served, generator):
    config = SamplingConfig(max_new_tokens=100, temperature=1.0, top_k=0)
    rows = 40
    inputs = {**sampling([config] * rows), "sample": np.arange(rows)}
    answer = served(
        "chat",
        {"conversation": strings([DEFAULT_TEMPLATE.render([{"role": "user", "content": "a"}], True)] * rows)} | inputs,
    )
    stopped = answer["finish_reason"] == b"stop"
    assert stopped.any()
    for row in tokens(answer):
        assert not {generator.tokenizer.end_of_turn_id, generator.tokenizer.end_of_text_id} & set(row)
    assert (answer["num_tokens"][~stopped] == 100).all()


def test_chunks_streamed_by_growing_sizes_are_the_whole_text(served, generator):
    for text, config in zip(TEXTS[:3], CONFIGS[:3], strict=True):
        [[expected]] = generator.generate([text], config)
        encoded = served("tokenize", {"text": strings([text])})
        ids = [*encoded["end_of_text_id"], *encoded["ids"][0, : encoded["num_tokens"][0]]]
        start, content, size = len(ids), b"", 4
        while True:
            left = config.max_new_tokens - (len(ids) - start)
            inputs = {**sampling([config]), "max_new_tokens": np.array([min(size, left)], np.int32)}
            padded = np.array([[*ids, 7, 7]], np.int32)  # What stands behind a row's length is not read.
            answer = served("stream", {"ids": padded, "length": np.array([len(ids)], np.int32), **inputs})
            ids += tokens(answer)[0]
            content += answer["text_bytes"][0]
            size *= 2
            if answer["finish_reason"][0] == b"stop" or len(ids) - start == config.max_new_tokens:
                break
        assert ids[start:] == expected.token_ids
        assert content == content_of(expected.token_ids, generator)


def test_tokenize_gives_the_tokenizers_ids(served, generator):
    answer = served("tokenize", {"text": strings(TEXTS)})
    for row, text in enumerate(TEXTS):
        assert answer["ids"][row, : answer["num_tokens"][row]].tolist() == generator.tokenizer.encode(text).tolist()
    assert set(answer["end_of_text_id"]) == {generator.tokenizer.end_of_text_id}
    dialogue = [{"role": "user", "content": "Quick?"}]
    answer = served("tokenize_chat", {"conversation": strings([DEFAULT_TEMPLATE.render(dialogue, True)])})
    assert answer["ids"][0].tolist() == encode_chat(generator.tokenizer, dialogue).tolist()


def hidden_and_logits(generator, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    inputs = {"token_ids": tf.constant([ids])}
    return generator.decoder.backbone(inputs)[0].numpy(), generator.decoder(inputs)[0].numpy()


def test_score_is_the_sum_of_the_tokens_log_probabilities(served, generator):
    answer = served("score", {"text": strings(TEXTS)})
    for row, text in enumerate(TEXTS):
        ids = encode_prompt(generator.tokenizer, text).tolist()
        _, logits = hidden_and_logits(generator, ids)
        log_probabilities = tf.nn.log_softmax(logits).numpy()
        expected = sum(log_probabilities[place, token] for place, token in enumerate(ids[1:]))
        assert answer["log_likelihood"][row] == pytest.approx(expected, abs=1e-3)
        assert answer["num_tokens"][row] == len(ids) - 1
        assert answer["num_bytes"][row] == len(text.encode())


def test_a_text_beyond_the_context_is_scored_in_the_windows_it_would_be_written_in(served, generator):
    text = "How vexingly quick daft zebras jump! " * 8
    ids = encode_prompt(generator.tokenizer, text).tolist()
    assert len(ids) > 2.5 * CONTEXT
    expected, start, logits = 0.0, 0, None
    for place in range(1, len(ids)):
        if place - start > CONTEXT:
            start, logits = place - CONTEXT // 2, None
        if logits is None:
            _, logits = hidden_and_logits(generator, ids[start : start + CONTEXT])
        expected += tf.nn.log_softmax(logits[place - 1 - start])[ids[place]].numpy()
    answer = served("score", {"text": strings([text])})
    assert answer["log_likelihood"][0] == pytest.approx(expected, rel=1e-4)


def test_embed_is_the_mean_of_the_texts_hidden_states(served, generator):
    answer = served("embed", {"text": strings(TEXTS)})["embedding"]
    for row, text in enumerate(TEXTS):
        hidden, _ = hidden_and_logits(generator, encode_prompt(generator.tokenizer, text).tolist())
        expected = hidden[1:].mean(0) if text else hidden[0]
        np.testing.assert_allclose(answer[row], expected, atol=1e-4)
    long = served("embed", {"text": strings(["zebras " * 40])})["embedding"]
    assert np.isfinite(long).all()


def test_serving_default_draws_as_the_export_was_told(served, generator):
    answer = served("serving_default", {"text": strings(TEXTS)})
    assert [text.decode() for text in answer["text"]] == [found.text for [found] in generator.generate(TEXTS, DEFAULTS)]


def test_inputs_that_are_left_out_have_the_exports_defaults(served, generator):
    answer = served("generate", {"text": strings(TEXTS[:1]), "seed": np.array([8], np.int64)})
    [[expected]] = generator.generate(TEXTS[:1], SamplingConfig(**{**DEFAULTS.to_dict(), "seed": 8, "stop": ()}))
    assert tokens(answer) == [expected.token_ids]


def test_settings_out_of_bounds_do_not_break_the_batch(served):
    good = sampling(CONFIGS[:1])
    worst = {
        "max_new_tokens": 10**9, "temperature": float("nan"), "top_k": -5, "top_p": -1.0, "min_p": 7.0,
        "repetition_penalty": 0.0, "seed": -(2**63), "sample": 2**62,
    }  # fmt: skip
    inputs = {name: np.array([good[name][0], worst[name]], good[name].dtype) for name in good}
    answer = served("generate", {"text": strings(["The quick"] * 2), **inputs})
    assert answer["num_tokens"][1] <= 100  # the export's limit
    alone = served("generate", {"text": strings(["The quick"]), **good})
    assert tokens(alone) == tokens(answer)[:1]
    nothing = served("generate", {"text": strings(["a"]), **good, "max_new_tokens": np.array([-1], np.int32)})
    assert nothing["num_tokens"].tolist() == [0] and nothing["text"].tolist() == [b""]


def test_ids_outside_the_vocabulary_are_refused(served):
    inputs = {"ids": np.array([[5, 99_999]], np.int32), **sampling(CONFIGS[:1])}
    with pytest.raises(tf.errors.InvalidArgumentError, match="ids outside the vocabulary"):
        served("stream", {**inputs, "length": np.array([2], np.int32)})
    served("stream", {**inputs, "length": np.array([1], np.int32)})


def test_bytes_that_are_no_text_are_answered(served):
    answer = served("generate", {"text": np.array([b"\xff\x00\xfe"], object), **sampling(CONFIGS[:1])})
    assert answer["prompt_tokens"].tolist() == [4]


def test_every_tensor_is_batched_and_typed_as_the_table_says(served):
    for entry in SIGNATURES:
        definition = served.signatures[entry.name]
        for items, found in ((entry.inputs, definition.inputs), (entry.outputs, definition.outputs)):
            assert found.keys() == {item.name for item in items}
            for item in items:
                assert tf.dtypes.as_dtype(found[item.name].dtype).name == item.dtype
                assert found[item.name].tensor_shape.dim[0].size == -1
                assert len(found[item.name].tensor_shape.dim) == (2 if item.columns else 1)


def test_the_front_end_renders_with_the_template_that_the_export_tells(version, generator):
    template = load_model_info(ServeConfig(model=str(version)), version).template
    assert template == get_chat_template(generator.tokenizer)
    # A model with another one says so in the same place.
    other = ChatTemplate("{{ messages[0]['content'] }}{{ eos_token }}", ("</s>",), (("eos_token", "</s>"),))
    assert ChatTemplate.from_dict(json.loads(json.dumps(other.to_dict()))) == other
    assert other.render([{"role": "user", "content": "</s>"}]).count("</s>") == 1


def test_weights_are_float32_once_and_no_op_needs_a_library(version):
    saved = saved_model_pb2.SavedModel.FromString((version / "saved_model.pb").read_bytes())
    nodes = [node for meta in saved.meta_graphs for f in meta.graph_def.library.function for node in f.node_def]
    assert not {node.op for node in nodes} & {"PyFunc", "EagerPyFunc", "XlaLaunch", "PyFuncStateless"}
    assert not any(name.startswith(("Keras", "TextOps")) for name in {node.op for node in nodes})
    assert not any("_XlaMustCompile" in node.attr and node.attr["_XlaMustCompile"].b for node in nodes)
    size = sum(path.stat().st_size for path in (version / "variables").iterdir())
    parameters = sum(math.prod(shape) for _, shape in tf.train.list_variables(str(version / "variables/variables")))
    assert size < 4.5 * parameters + 20_000
