"""Full queues, clients that leave, wrong and hostile requests, keys, logs, counters: what an operator relies on."""

import asyncio
import contextlib
import gzip
import json
import socket
import threading
import time

import httpx
import openai
import pytest
from starlette.requests import ClientDisconnect

from tests.serving.loopback import Loopback
from tests.serving.running import running, until
from tfgpt.serving.api_errors import QueueFullError
from tfgpt.serving.app import MAX_OTHER_CALLS, Server
from tfgpt.serving.batching import Batcher, RequestHandle
from tfgpt.serving.openai_responses import CompletionResponse, EventResponse
from tfgpt.serving.prometheus_metrics import Metrics
from tfgpt.serving.sequence_state import SequenceState
from tfgpt.serving.serve_config import ServeConfig
from tfgpt.serving.tf_serving_transports import ServingError

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HELLO = {"model": "chat", "messages": [{"role": "user", "content": "secret words"}], "max_tokens": 2}
WORDS = {"model": "chat", "input": "a few words"}
ORIGIN = "https://a.example"
# The model of the tests never ends this text: after 800 tokens it still repeats itself.
LONG = {"model": "chat", "prompt": "The", "max_tokens": 2000, "temperature": 0}


@pytest.fixture(scope="module")
def server(version):
    with running(version, max_queue=2, max_batch=2, max_body_kb=64, body_seconds=1.0) as found:
        yield found


def post(server, path=CHAT, **options):
    return httpx.post(server.url + path, timeout=60, **options)


def error_of(answer) -> dict:
    [content] = answer.json().values()
    assert content.keys() == {"message", "type", "param", "code"}
    return content


def raw_request(server, body) -> socket.socket:
    """Sends a request over a connection that is never read."""
    content = json.dumps(body).encode()
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    client.connect(("127.0.0.1", int(server.url.rsplit(":", 1)[1])))
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    client.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    return client


def idle(server) -> bool:
    text = httpx.get(f"{server.url}/metrics").text
    return "tfgpt_active_texts 0.0" in text and "tfgpt_waiting_texts 0.0" in text


WRONG = {
    "bad JSON": ({"content": b'{"model": '}, 400),
    "bad UTF-8": ({"content": b'{"model": "\xff\xfe"}'}, 400),
    "half a surrogate": ({"content": b'{"model": "chat", "messages": [{"role": "user", "content": "\\ud800"}]}'}, 400),
    "a surrogate in a name": ({"content": b'{"\\udfff": 1}'}, 400),
    "no object": ({"content": b"[1]"}, 400),
    "deep nesting": ({"content": b"[" * 30_000}, 400),
    "a number of 5000 digits": ({"content": b'{"model": "chat", "messages": [], "seed": ' + b"9" * 5000 + b"}"}, 400),
    "not a number": ({"content": json.dumps({**HELLO, "temperature": float("nan")}).encode()}, 400),
    "negative temperature": ({"json": {**HELLO, "temperature": -0.5}}, 400),
    "huge max_tokens": ({"json": {**HELLO, "max_tokens": 10**30}}, 400),
    "no tokens": ({"json": {**HELLO, "max_tokens": 0}}, 400),
    "too many choices": ({"json": {**HELLO, "n": 9}}, 400),
    "huge seed": ({"json": {**HELLO, "seed": 2**63}}, 400),
    "a tool": ({"json": {**HELLO, "tools": [{"type": "function"}]}}, 400),
    "half a token": ({"json": {**HELLO, "max_tokens": 16.5}}, 400),
    "an unknown role": ({"json": {**HELLO, "messages": [{"role": "wizard", "content": "a"}]}}, 400),
    "no messages": ({"json": {**HELLO, "messages": []}}, 400),
    "nothing for the model": ({"json": {**HELLO, "model": None}}, 400),
    "10 MB": ({"content": b'{"model": "' + b"a" * 10_000_000 + b'"}'}, 413),
    "a form": ({"data": {"model": "chat"}}, 415),
    "gzip": ({"content": gzip.compress(b"{}"), "headers": {"Content-Encoding": "gzip"}}, 415),
    "nothing": ({}, 400),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_requests_are_refused_in_openais_shape(server, name):
    options, status = WRONG[name]
    if "content" in options:
        options = {**options, "headers": {"Content-Type": "application/json", **options.get("headers", {})}}
    answer = post(server, **options)
    assert answer.status_code == status, answer.text
    assert error_of(answer)["type"] == "invalid_request_error"
    assert "x-request-id" in answer.headers


def test_what_is_wrong_is_named(server):
    assert error_of(post(server, json={**HELLO, "temperature": -0.5}))["param"] == "temperature"
    for unknown in ({"tools": [{"type": "function"}]}, {"best_of": 3}):
        wrong = error_of(post(server, json={**HELLO, **unknown}))
        assert ([wrong["param"]], wrong["code"]) == ([*unknown], "unknown_parameter")
    assert error_of(httpx.get(f"{server.url}/nothing"))["type"] == "not_found_error"
    assert httpx.get(server.url + CHAT).status_code == 405
    many = [{"role": "user", "content": "ok"}, {"role": "user", "content": 3}]
    assert error_of(post(server, json={**HELLO, "messages": many}))["param"] == "messages.1.content"
    prompts = {"model": "chat", "prompt": ["a", 3]}
    assert error_of(post(server, COMPLETIONS, json=prompts))["param"] == "prompt.1"


def test_a_full_queue_is_429_with_retry_after_and_comes_free_again(server):
    server.backend.seconds, streamed = 0.3, {**LONG, "stream": True}
    with contextlib.ExitStack() as stack:
        answers = [
            stack.enter_context(httpx.stream("POST", server.url + COMPLETIONS, json=streamed, timeout=60))
            for _ in range(2)
        ]
        lines = [answer.iter_lines() for answer in answers]  # Kept: dropping one closes its connection.
        for line in lines:
            next(line)  # Both are being written: the batch is full.
        waiting = stack.enter_context(openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0))
        threads = [
            threading.Thread(target=lambda: post(server, COMPLETIONS, json={**LONG, "max_tokens": 1})) for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        until(lambda: "tfgpt_waiting_texts 2.0" in httpx.get(f"{server.url}/metrics").text)
        with pytest.raises(openai.RateLimitError) as caught:
            waiting.chat.completions.create(**HELLO)
        assert int(caught.value.response.headers["retry-after"]) >= 1
        assert caught.value.code == "queue_full"
    server.backend.seconds = 0.0
    for thread in threads:
        thread.join()
    until(lambda: idle(server))
    assert post(server, json=HELLO).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_does_not_read_holds_nobody_up_and_the_work_stops_when_it_leaves(server, stream):
    server.backend.seconds = 0.1
    before = len(server.backend.rows)
    with raw_request(server, {**LONG, "stream": stream}):
        until(lambda: len(server.backend.rows) >= before + 3)
        assert post(server, json=HELLO).status_code == 200  # A client that does not read holds nobody up.
    until(lambda: idle(server))
    calls = len(server.backend.rows)
    assert calls < before + 30  # 2000 tokens in chunks of at most 32 are more than 62 calls.
    time.sleep(0.3)
    assert len(server.backend.rows) == calls
    server.backend.seconds = 0.0


def test_a_client_that_sends_too_slowly_is_cut_off(server):
    with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1])), timeout=30) as client:
        client.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{{".encode())
        answer = b""
        while part := client.recv(65536):
            answer += part
    assert answer.startswith(b"HTTP/1.1 408")


def test_a_request_that_takes_too_long_ends(version):
    with running(version, request_seconds=0.5) as server:
        server.backend.seconds = 0.2
        assert error_of(post(server, COMPLETIONS, json=LONG))["code"] == "timeout"
        streamed = post(server, COMPLETIONS, json={**LONG, "stream": True}).text
        assert json.loads(streamed.split("data: ")[-1])["error"]["code"] == "timeout"
        calls = len(server.backend.rows)
        time.sleep(0.5)
        assert len(server.backend.rows) <= calls + 1


@pytest.fixture(scope="module")
def guarded(version):
    """A server with keys, for the pages of one origin, whose model has an owner as on the hub."""
    options = {"keys": ("one", "two"), "cors_origin": (ORIGIN,), "model_name": "org/chat"}
    with running(version, **options) as found:
        yield found


def test_api_keys_and_a_name_with_an_owner(guarded):
    named = {**HELLO, "model": "org/chat"}
    for key, status in (("one", 200), ("two", 200), ("on", 401), ("one,two", 401)):
        answer = post(guarded, json=named, headers={"Authorization": f"Bearer {key}"})
        assert answer.status_code == status
    assert error_of(answer)["code"] == "invalid_api_key"
    for path in ("/v1/models", "/v1/models/", "//v1//models"):
        assert httpx.get(guarded.url + path).status_code == 401
    assert httpx.get(f"{guarded.url}/healthz").status_code == 200
    with openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="one", max_retries=0) as client:
        assert client.models.retrieve("org/chat").id == "org/chat"
    key = {"Authorization": "Bearer one"}
    for name in ("org/chat", "org%2Fchat"):
        assert httpx.get(f"{guarded.url}/v1/models/{name}", headers=key).json()["id"] == "org/chat"
    assert httpx.get(f"{guarded.url}/v1/models/chat", headers=key).status_code == 404


def test_a_browsers_preflight_with_openais_headers_is_answered_for_the_origins_that_may(guarded, server):
    asked = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-arch,x-stainless-retry-count",
        "Access-Control-Request-Private-Network": "true",  # Chrome: from a public page to this machine.
    }
    allowed = httpx.options(guarded.url + CHAT, headers=asked)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == ORIGIN
    assert "x-stainless-retry-count" in allowed.headers["access-control-allow-headers"]
    assert allowed.headers["access-control-allow-private-network"] == "true"
    other = httpx.options(guarded.url + CHAT, headers={**asked, "Origin": "https://b.example"})
    assert other.status_code == 400 and "access-control-allow-origin" not in other.headers
    without = httpx.get(f"{server.url}/v1/models", headers={"Origin": ORIGIN})  # This server has no origins.
    assert not [name for name in without.headers if name.startswith("access-control")]


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/metrics", "/web/app.js", "/v1/models", "/openapi.json"])
def test_head_is_get_without_the_body(server, path):
    got, headed = httpx.get(server.url + path), httpx.head(server.url + path)
    assert headed.status_code == got.status_code == 200 and headed.content == b""
    assert headed.headers["content-type"] == got.headers["content-type"]
    assert httpx.head(server.url + CHAT).status_code == 405


def test_ids_that_the_model_does_not_have_are_refused_before_it_sees_them(server):
    calls = len(server.backend.rows)
    for prompt in ([10**6], [[1, 2], [10**6]], [-1]):
        answer = post(server, COMPLETIONS, json={**LONG, "prompt": prompt})
        assert answer.status_code == 400 and error_of(answer)["param"].startswith("prompt")
    assert len(server.backend.rows) == calls
    vector = post(server, "/v1/embeddings", json={**WORDS, "input": [[2028, 374]]})
    assert "check_embedding_ctx_length=False" in error_of(vector)["message"]


def test_the_access_log_is_json_without_contents(version, capsys):
    with running(version, access_log=True) as server:
        post(server, json={**HELLO, "user": "secret name"}, params={"secret": "query"})
        httpx.get(f"{server.url}/secret/path")
        text = post(server, COMPLETIONS, json={**LONG, "max_tokens": 30}).json()["choices"][0]["text"]
    printed = capsys.readouterr().out
    assert "secret" not in printed and text not in printed
    lines = [json.loads(line) for line in printed.splitlines()]
    assert [line["status"] for line in lines] == [200, 404, 200]
    assert lines[0]["route"] == CHAT and lines[1]["route"] == "other"
    assert lines[0]["completion_tokens"] <= 2 and lines[0]["seconds"] > 0


def test_metrics_count_requests_tokens_and_calls(version):
    with running(version) as server:
        used = post(server, json=HELLO).json()["usage"]
        post(server, json={})
        text = httpx.get(f"{server.url}/metrics").text
    assert f'tfgpt_requests_total{{route="{CHAT}",status="200"}} 1.0' in text
    assert f'tfgpt_requests_total{{route="{CHAT}",status="400"}} 1.0' in text
    assert f"tfgpt_prompt_tokens_total {used['prompt_tokens']}.0" in text
    assert f"tfgpt_written_tokens_total {used['completion_tokens']}.0" in text
    assert f"tfgpt_call_seconds_count {len(server.backend.rows)}.0" in text


@pytest.mark.parametrize("kind", ["grpc", "http"])
def test_tensorflow_serving_as_the_backend_gives_the_same_answers(served, version, server, kind):
    body = {**HELLO, "max_tokens": 12, "seed": 5}
    expected = post(server, json=body).json()
    with Loopback("chat", served) as serving:
        address = f"grpc://{serving.grpc_address}" if kind == "grpc" else serving.rest_address
        with running(version, backend=address) as fronted:
            found = post(fronted, json=body).json()
            vector = post(fronted, "/v1/embeddings", json=WORDS).json()["data"][0]["embedding"]
            assert httpx.get(f"{fronted.url}/readyz").status_code == 200
        with running(None, backend=address) as bare:  # Nothing tells it the vocabulary.
            ids = post(bare, COMPLETIONS, json={"model": "chat", "prompt": [65], "max_tokens": 2})
            assert ids.status_code == 400 and "start serve with --model" in error_of(ids)["message"]
    assert (found["choices"], found["usage"]) == (expected["choices"], expected["usage"])
    assert vector == pytest.approx(post(server, "/v1/embeddings", json=WORDS).json()["data"][0]["embedding"], rel=1e-4)


def test_a_backend_that_is_away_is_said_and_not_an_internal_error(version):
    with running(version) as server:
        server.backend.error = ServingError("host:8500", "chat", "stream", "UNAVAILABLE")
        server.backend.transport.address = "host:8500"
        answer = httpx.get(f"{server.url}/readyz")
        assert answer.status_code == 503 and error_of(answer)["code"] == "not_ready"
        assert httpx.get(f"{server.url}/healthz").status_code == 200
        server.backend.error = ServingError("host:8500", "chat", "stream", "INTERNAL")
        assert error_of(post(server, json=HELLO))["code"] == "backend_error"
        server.backend.error = None
        assert post(server, json=HELLO).status_code == 200


def texts(handle: RequestHandle, count: int) -> list[SequenceState]:
    return [SequenceState([1], 5, {}, index=index, handle=handle) for index in range(count)]


def test_clients_that_left_take_no_place_in_the_queue_and_those_that_wait_keep_theirs():
    async def arrive() -> None:
        metrics = Metrics()
        batcher = Batcher(None, 1, 3, 0.0, metrics)
        leaving, waiting, late = RequestHandle(), RequestHandle(), RequestHandle()
        batcher.submit(texts(leaving, 2))
        batcher.submit(texts(waiting, 1))
        with pytest.raises(QueueFullError):
            batcher.submit(texts(late, 1))
        leaving.cancelled = True
        with pytest.raises(QueueFullError):
            batcher.submit(texts(late, 3))  # All or none: two of its three texts would find room.
        batcher.submit(texts(late, 2))
        assert b"tfgpt_waiting_texts 3.0" in metrics.text()
        with pytest.raises(QueueFullError):
            batcher.submit(texts(late, 1))

    asyncio.run(arrive())


def test_log_probabilities_cost_no_call_more_and_an_older_export_without_them_is_named(server):
    before = len(server.backend.rows)
    asked = {**LONG, "max_tokens": 28, "logprobs": 0}
    answer = post(server, COMPLETIONS, json=asked).json()["choices"][0]
    assert len(answer["logprobs"]["tokens"]) == 28 and len(server.backend.rows) - before == 3  # 4 + 8 + 16 tokens.
    server.backend.left_out = "token_log_probabilities"
    refused = post(server, COMPLETIONS, json=asked)
    assert refused.status_code == 400 and "export the model again" in error_of(refused)["message"]
    assert post(server, json=HELLO).status_code == 200
    server.backend.left_out = ""


@pytest.mark.parametrize("version", ["2.3", "2.4"])
def test_a_stream_whose_client_leaves_before_its_first_event_leaves_the_queue(version):
    async def receive():
        return {"type": "http.disconnect"}

    async def send(message):
        if version == "2.4":
            raise OSError("so say servers of ASGI 2.4 that the client is gone")
        await asyncio.sleep(60)

    async def answered() -> bool:
        handle = RequestHandle()
        response = EventResponse(CompletionResponse(handle, True, "chat", 1, 1, False, {}, Metrics(), 0.0), False)
        scope = {"type": "http", "asgi": {"spec_version": version}}
        if version == "2.4":
            with pytest.raises(ClientDisconnect):
                await response(scope, receive, send)
        else:
            await response(scope, receive, send)
        return handle.cancelled

    assert asyncio.run(answered())


def test_calls_that_failed_or_whose_client_left_take_no_place_among_those_that_wait():
    goes_on = threading.Event()

    class Backend:
        def predict(self, name, inputs):
            if name == "fail":
                raise ZeroDivisionError
            assert goes_on.wait(30)
            return {}

    async def calls() -> None:
        # Two are running, the most at a time, and one waits.
        server = Server(Backend(), None, ServeConfig(model="a", max_queue=MAX_OTHER_CALLS + 1))
        for _ in range(MAX_OTHER_CALLS + 2):
            with pytest.raises(ZeroDivisionError):
                await server.call("fail", {})
        tasks = [asyncio.ensure_future(server.call("tokenize", {})) for _ in range(MAX_OTHER_CALLS + 1)]
        await asyncio.sleep(0.05)
        with pytest.raises(QueueFullError):
            await server.call("tokenize", {})
        tasks[-1].cancel()
        await asyncio.wait(tasks[-1:])
        tasks[-1] = asyncio.ensure_future(server.call("tokenize", {}))
        await asyncio.sleep(0)
        goes_on.set()
        assert await asyncio.gather(*tasks) == [{}] * (MAX_OTHER_CALLS + 1)

    asyncio.run(calls())


def test_an_answer_that_cannot_be_read_ends_its_request_and_no_other(server):
    server.backend.left_out = "finish_reason"
    answer = post(server, json=HELLO)
    assert answer.status_code == 500 and error_of(answer)["code"] == "internal_error"
    server.backend.left_out = ""
    assert post(server, json=HELLO).status_code == 200
    assert httpx.get(f"{server.url}/readyz").status_code == 200


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_when_the_writing_thread_has_ended_requests_fail_at_once_and_readyz_says_so(version):
    with running(version) as server:
        server.backend.stream_error = SystemExit("as if the thread were killed")
        for _ in range(2):  # The one that was being written, and one that comes after.
            answer = post(server, json=HELLO)
            assert answer.status_code == 503 and error_of(answer)["code"] == "not_ready"
        for path in ("/readyz", "/healthz"):
            assert error_of(httpx.get(server.url + path))["code"] == "not_ready"
