"""The official OpenAI client, unchanged, against the server: it gets what the SavedModel's signatures give."""

import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import openai
import pytest

from tests.serving.conftest import DEFAULTS
from tests.serving.running import running
from tfgpt.generation.prompts import encode_chat, encode_prompt
from tfgpt.serving.client import Client, prompt_ids, sampling_inputs
from tfgpt.serving.openai_responses import format_event
from tfgpt.tokenization.jinja_template import DEFAULT_TEMPLATE

# A typed mark does not end the turn.
MESSAGES = [{"role": "system", "content": "a"}, {"role": "user", "content": "Quick?<|im_end|>"}]
PARTS = [{"type": "text", "text": part} for part in ("Qui", "ck?<|im_end|>")]
SAMPLING = {"temperature": 0.9, "top_p": 0.95, "seed": 7}


@pytest.fixture(scope="module")
def server(version):
    with running(version) as found:
        yield found


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as found:
        yield found


@pytest.fixture(scope="module")
def direct(server):
    """The signatures themselves, with the export's defaults where a request says nothing."""
    return Client(server.backend.transport)


def ask(client, **options):
    return client.chat.completions.create(**{"model": "chat", "messages": MESSAGES, **options})


def expected_chat(direct, messages, tokens, **sampling):
    inputs = sampling_inputs({**SAMPLING, "top_k": DEFAULTS.top_k, **sampling, "max_new_tokens": tokens}, 1)
    return direct.predict("chat", {"conversation": [DEFAULT_TEMPLATE.render(messages, True)], **inputs})


def test_chat_gives_the_signatures_text_and_counts(client, direct, generator):
    answer = ask(client, max_tokens=41, **SAMPLING)
    expected = expected_chat(direct, MESSAGES, 41)
    [choice] = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == expected["text"][0]
    assert choice.finish_reason == expected["finish_reason"][0]
    assert answer.usage.prompt_tokens == expected["prompt_tokens"][0]
    ids = encode_chat(generator.tokenizer, MESSAGES).tolist()
    assert answer.usage.prompt_tokens == len(ids) and ids.count(generator.tokenizer.end_of_turn_id) == 2
    assert answer.usage.completion_tokens == expected["num_tokens"][0]
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_streamed_pieces_make_the_whole_answer(client, direct):
    stream = ask(client, max_tokens=41, stream=True, stream_options={"include_usage": True}, **SAMPLING)
    chunks = list(stream)
    expected = expected_chat(direct, MESSAGES, 41)
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks[:-1]]
    assert "".join(pieces) == expected["text"][0]
    assert len([piece for piece in pieces if piece]) > 1
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-1] == expected["finish_reason"][0]
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == expected["num_tokens"][0]


def test_samples_are_those_of_the_signature_and_differ(client, direct):
    request = {"max_tokens": 9, "n": 3, **SAMPLING}
    answer = ask(client, **request)
    expected = [expected_chat(direct, MESSAGES, 9, sample=sample) for sample in range(3)]
    assert [choice.message.content for choice in answer.choices] == [one["text"][0] for one in expected]
    assert len({choice.message.content for choice in answer.choices}) == 3
    assert answer.usage.completion_tokens == sum(one["num_tokens"][0] for one in expected)
    texts = ["", "", ""]
    for chunk in ask(client, **request, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [choice.message.content for choice in answer.choices]


def test_without_a_seed_texts_differ_with_one_they_do_not(client):
    texts = [
        client.completions.create(model="chat", prompt="The", max_tokens=12, temperature=1.5, **seed).choices[0].text
        for seed in ({}, {}, {"seed": 11}, {"seed": 11})
    ]
    assert texts[0] != texts[1] and texts[2] == texts[3]


def test_completions_of_several_prompts(client, direct, generator):
    prompts = ["The quick brown", "汉 <|im_end|>"]
    answer = client.completions.create(
        model="chat", prompt=prompts, max_tokens=10, n=2, temperature=0.8, seed=5, extra_body={"top_k": 40}
    )
    sampling = {"max_new_tokens": 10, "temperature": 0.8, "seed": 5, "top_k": 40, "sample": [0, 1, 0, 1]}
    texts = [prompt for prompt in prompts for _ in range(2)]
    expected = direct.generate(texts, **sampling)
    assert [choice.text for choice in answer.choices] == expected["text"]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage.prompt_tokens == sum(len(encode_prompt(generator.tokenizer, prompt)) for prompt in prompts)
    streamed = client.completions.create(
        model="chat", prompt=prompts[0], max_tokens=10, temperature=0.8, seed=5, stream=True, extra_body={"top_k": 40}
    )
    assert "".join(chunk.choices[0].text for chunk in streamed) == expected["text"][0]


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_text_before_it(client, stream):
    whole = client.completions.create(model="chat", prompt="The", max_tokens=40, temperature=0, seed=1)
    text = whole.choices[0].text
    stop = text[5:8]
    answer = client.completions.create(
        model="chat", prompt="The", max_tokens=40, temperature=0, seed=1, stop=["\0no", stop], stream=stream
    )
    chunks = list(answer) if stream else [answer]
    assert "".join(chunk.choices[0].text for chunk in chunks) == text[: text.index(stop)]
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_log_probabilities_are_the_models(client, direct):
    answer = ask(client, max_tokens=6, logprobs=True, **SAMPLING)
    expected = expected_chat(direct, MESSAGES, 6)
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == expected["num_tokens"][0] == 6
    assert sum(token.logprob for token in tokens) == pytest.approx(expected["log_probability"][0], abs=1e-3)
    assert b"".join(bytes(token.bytes) for token in tokens) == expected["text_bytes"][0]
    plain = client.completions.create(model="chat", prompt="The", max_tokens=4, logprobs=0, temperature=0)
    known = plain.choices[0].logprobs
    streamed = ask(client, max_tokens=6, logprobs=True, stream=True, **SAMPLING)
    entries = [entry for chunk in streamed if chunk.choices[0].logprobs for entry in chunk.choices[0].logprobs.content]
    assert [entry.logprob for entry in entries] == [token.logprob for token in tokens]
    direct_plain = direct.generate(["The"], max_new_tokens=4, temperature=0.0)
    assert sum(known.token_logprobs) == pytest.approx(direct_plain["log_probability"][0], abs=1e-3)
    assert known.text_offset[0] == 0 and "".join(known.tokens).startswith(plain.choices[0].text[:1])


def test_embeddings_are_the_signatures_in_both_encodings(client, direct, server):
    texts = ["The quick brown", "zebras"]
    expected = direct.embed(texts)
    found = client.embeddings.create(model="chat", input=texts)  # The client asks for base64.
    np.testing.assert_array_equal(np.float32([one.embedding for one in found.data]), np.float32(expected))
    plain = client.embeddings.create(model="chat", input=texts[0], encoding_format="float")
    np.testing.assert_allclose(plain.data[0].embedding, expected[0], rtol=1e-5)
    assert found.usage.prompt_tokens == sum(len(ids) + 1 for ids in direct.tokenize(texts))


def test_models_are_listed_and_others_are_not_found(client):
    [listed] = client.models.list().data
    assert listed.id == client.models.retrieve("chat").id == "chat"
    with pytest.raises(openai.NotFoundError, match="no model 'gpt'"):
        ask(client, model="gpt")


def test_a_conversation_longer_than_the_context_is_refused(client):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, messages=[{"role": "user", "content": "quick " * 60}])
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.type == "invalid_request_error"
    assert caught.value.param == "messages"


def test_requests_at_the_same_time_are_written_together(version):
    with running(version, batch_wait_ms=300.0) as server:

        def ask(number: int) -> str:
            body = {"model": "chat", "prompt": "The", "max_tokens": 20, "seed": number}
            return httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).json()["choices"][0]["text"]

        with ThreadPoolExecutor(6) as pool:
            together = list(pool.map(ask, range(6)))
        assert max(server.backend.rows) == 6
        assert len(server.backend.rows) < 6 * 3  # 4 + 8 + 8 tokens are three calls for each alone.
        assert [ask(number) for number in range(2)] == together[:2]


def test_events_are_those_of_the_standard(server):
    body = {"model": "chat", "messages": MESSAGES, "max_tokens": 4, "stream": True}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = answer.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert json.loads(events[0].removeprefix("data: "))["choices"][0]["delta"]["role"] == "assistant"


def test_an_answer_can_be_sent_back_as_the_client_gives_it(client):
    reply = ask(client, messages=MESSAGES[1:], max_tokens=2, **SAMPLING)
    message = reply.choices[0].message.model_dump()
    assert None in message.values()
    full = {**message, "annotations": [], "tool_calls": [], "reasoning": "hm", "reasoning_content": "hm"}
    texts = {
        ask(client, messages=[MESSAGES[1], one], max_tokens=8, **SAMPLING).choices[0].message.content
        for one in (message, full, {"role": "assistant", "content": message["content"]})
    }
    assert len(texts) == 1


@pytest.mark.parametrize(
    "nothing",
    [
        {"stop": ""},
        {"stop": ["", ""]},
        {"tools": [], "tool_choice": "none", "parallel_tool_calls": True},
        {"tools": None, "functions": None, "stop": None, "logit_bias": None, "stream_options": {"include_usage": None}},
        {"seed": 7.0, "max_tokens": 9.0},
        {"stream_options": {"include_usage": True}},
        {"messages": [{"role": "developer", "content": "a"}, {"role": "user", "content": PARTS}]},
    ],
    ids=str,
)
def test_what_asks_for_nothing_and_other_spellings_of_a_request_change_nothing(client, direct, nothing):
    found = ask(client, max_tokens=9, **SAMPLING, extra_body=nothing).choices[0].message.content
    assert found == expected_chat(direct, MESSAGES, 9)["text"][0]


def test_prompts_as_ids_are_taken_as_they_are(client, direct):
    texts = ["The quick", "zebras"]
    ids = prompt_ids(direct.predict("tokenize", {"text": texts}))
    written = [
        client.completions.create(model="chat", prompt=prompt, max_tokens=9, **SAMPLING)
        for prompt in (texts, ids, ids[0])
    ]
    found = [[choice.text for choice in one.choices] for one in written]
    assert found[0] == found[1] and found[2] == found[0][:1]
    assert written[1].usage == written[0].usage


@pytest.mark.parametrize("path", ["/v1/completions/", "/v1//completions", "//v1/completions"])
def test_a_slash_too_many_in_the_base_url_does_no_harm(server, path):
    body = {"model": "chat", "prompt": "The", "max_tokens": 1}
    assert httpx.post(server.url + path, json=body, timeout=60).status_code == 200


def test_an_event_is_one_line_whatever_the_reader_takes_for_a_lines_end():
    content = {"text": "a\x0b\x1c\x85\u2028\u2029é汉😀\n"}
    read = httpx.Response(200, content=format_event(content).encode())
    [line, end] = read.iter_lines()
    assert json.loads(line.removeprefix("data: ")) == content and end == ""
    assert "é汉😀" in line
