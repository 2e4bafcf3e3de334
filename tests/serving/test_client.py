"""The client over gRPC and REST, against `tensorflow_model_server` where it is on PATH, else against the loopback."""

import contextlib
import shutil
import socket
import subprocess
import sys
import time

import pytest

from tests.serving.conftest import DEFAULTS
from tests.serving.loopback import Loopback
from tests.serving.running import until
from tfgpt.common.errors import UserError
from tfgpt.generation.config import SamplingConfig
from tfgpt.generation.prompts import encode_chat
from tfgpt.serving.client import connect
from tfgpt.serving.signatures import SIGNATURES
from tfgpt.serving.tf_serving_transports import ServingError, is_loopback

MODEL_SERVER = shutil.which("tensorflow_model_server")
DIALOGUE = [{"role": "user", "content": "Quick? <|im_end|>"}]
DRAWN = {"max_new_tokens": 20, "temperature": 1.0, "top_k": 0, "seed": 5}


@pytest.fixture(scope="module")
def loopback(served):
    with Loopback("chat", served) as server:
        yield server


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def addresses(request, version):
    """gRPC and REST addresses of the real server, or of the stand-in."""
    if MODEL_SERVER is None:
        server = request.getfixturevalue("loopback")
        yield {"grpc": server.grpc_address, "rest": server.rest_address}
        return
    grpc_port, rest_port = free_port(), free_port()
    flags = [f"--port={grpc_port}", f"--rest_api_port={rest_port}", "--model_name=chat"]
    process = subprocess.Popen([MODEL_SERVER, *flags, f"--model_base_path={version.parent}"])
    try:
        until(lambda: listens(rest_port) or process.poll() is not None, 120)
        assert process.poll() is None
        yield {"grpc": f"127.0.0.1:{grpc_port}", "rest": f"http://127.0.0.1:{rest_port}"}
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module", params=["grpc", "rest"])
def client(request, addresses):
    found = connect(addresses[request.param], model="chat", seconds=60)
    yield found
    found.close()


def test_tokens_through_the_server_equal_those_of_generate(client, generator):
    texts = ["The quick brown", "汉"]
    configs = [SamplingConfig(**{**DRAWN, "seed": seed}) for seed in (5, 6)]
    answer = client.generate(texts, **{**DRAWN, "seed": [5, 6]})
    for row, [expected] in enumerate(generator.generate(texts, configs)):
        assert answer["tokens"][row][: answer["num_tokens"][row]] == expected.token_ids
        assert answer["text"][row] == expected.text
        assert answer["text_bytes"][row] == b"".join(generator.token_bytes[token] for token in expected.token_ids)


def test_chat_and_streams_give_the_same_text(client, generator):
    [[expected]] = generator.generate([encode_chat(generator.tokenizer, DIALOGUE)], SamplingConfig(**DRAWN))
    assert client.chat(DIALOGUE, **DRAWN) == expected.text
    pieces = list(client.stream_chat(DIALOGUE, **DRAWN))
    assert "".join(pieces) == expected.text and len(pieces) > 1
    [[expected]] = generator.generate(["The quick"], SamplingConfig(**DRAWN, stop=("e",)))
    assert "".join(client.stream("The quick", stop=["e"], **DRAWN)) == expected.text


def test_every_signature_answers(client, generator):
    assert client.tokenize(["The quick", ""]) == [generator.tokenizer.encode("The quick").tolist(), []]
    assert client.score(["The quick"])["num_bytes"] == [9]
    assert len(client.embed(["a", "b"])[1]) == 32
    [[expected]] = generator.generate(["a"], DEFAULTS)
    assert client.predict("serving_default", {"text": ["a"]}) == {"text": [expected.text]}
    assert {"generate", "chat", "stream", "tokenize_chat"} < {entry.name for entry in SIGNATURES}


def test_grpc_honours_defaults_and_rest_does_not(addresses):
    assert connect(addresses["grpc"], model="chat").predict("generate", {"text": ["a"]})["num_tokens"]
    with pytest.raises(ServingError, match="INVALID_ARGUMENT"):
        connect(addresses["rest"], model="chat").predict("generate", {"text": ["a"]})


def test_an_error_names_address_model_and_signature_in_one_line(addresses):
    for kind in ("grpc", "rest"):
        with pytest.raises(ServingError) as caught:
            connect(addresses[kind], model="other").score(["a"])
        said = str(caught.value)
        assert f"{addresses[kind]}: model other, signature score: NOT_FOUND: no such model" in said
        assert "\n" not in said and not caught.value.retryable
        with pytest.raises(ServingError, match="NOT_FOUND"):
            connect(addresses[kind], model="chat", label="canary").score(["a"])


@pytest.mark.parametrize("kind", ["grpc_address", "rest_address"])
@pytest.mark.parametrize(
    ("refusals", "tries", "problem"),
    [
        (["UNAVAILABLE", "RESOURCE_EXHAUSTED"], 3, None),
        (["INVALID_ARGUMENT", "UNAVAILABLE"], 1, "INVALID_ARGUMENT"),
        (["UNAVAILABLE"] * 1000, None, "the server does not respond or is full"),
    ],
    ids=["away or full", "wrong", "away for ever"],
)
def test_what_may_pass_is_asked_again_until_the_deadline(loopback, kind, refusals, tries, problem):
    client = connect(getattr(loopback, kind), model="chat", label="stable", seconds=1.0 if tries is None else 60.0)
    loopback.refusals, before, started = [*refusals], loopback.requests, time.monotonic()
    with pytest.raises(ServingError, match=problem) if problem else contextlib.nullcontext():
        assert client.score(["ab"])["num_bytes"] == [2]
    assert tries in (None, loopback.requests - before) and (tries or time.monotonic() - started < 5)
    loopback.refusals = []


@pytest.mark.parametrize("scheme", ["", "http://"])
def test_a_server_that_is_not_there_is_reported(scheme):
    with pytest.raises(ServingError, match="UNAVAILABLE: the server does not respond"):
        connect(f"{scheme}127.0.0.1:{free_port()}", model="chat", seconds=0.5).score(["a"])


@pytest.mark.parametrize("kind", ["grpc", "rest"])
def test_a_server_on_this_machine_is_reached_past_the_environments_proxy(addresses, monkeypatch, kind):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")  # Nobody is there.
    assert connect(addresses[kind], model="chat", seconds=10).tokenize([""]) == [[]]


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("//localhost:8500", True),
        ("//[::1]:8500", True),
        ("http://127.0.0.2:8501/", True),
        ("//10.0.0.1:8500", False),
        ("https://localhost.example", False),
        ("//[", False),
    ],
)
def test_what_is_on_this_machine(url, here):
    assert is_loopback(url) == here


def test_wrong_sampling_inputs_are_refused_before_anything_is_sent(loopback):
    client = connect(loopback.grpc_address, model="chat")
    before = loopback.requests
    with pytest.raises(UserError, match="heat: no such sampling input; there are max_new_tokens, temperature"):
        client.generate(["a"], heat=2)
    with pytest.raises(UserError, match="seed: 2 values for 1 texts"):
        client.generate(["a"], seed=[1, 2])
    assert loopback.requests == before


def test_the_client_imports_neither_keras_nor_the_model():
    code = (
        "import sys, tfgpt.serving.client, tfgpt.serving.tf_serving_transports\n"
        "assert not {'keras', 'tensorflow', 'tfgpt.model'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
