"""Talks to a served model over gRPC or REST: retries on the right codes, a deadline for all of it, errors in one line.

    client = connect("localhost:8500", model="chat")            # gRPC; "http://localhost:8501" for REST
    client.chat([{"role": "user", "content": "Hello!"}], temperature=0.7)
    for piece in client.stream_chat([{"role": "user", "content": "Hello!"}]): ...

Imports neither Keras nor the model. Every request can be sent again without harm: the server keeps nothing, and the
same seed gives the same text. So what is worth trying again is tried again (the server is away, is full, or closed the
connection), with growing pauses, as long as the deadline allows; a wrong request or one that ran out of time is not.
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from tfgpt.common.errors import RunError, UserError
from tfgpt.generation.detokenizer import StreamingDetokenizer
from tfgpt.serving.signatures import signature
from tfgpt.tokenization.jinja_template import DEFAULT_TEMPLATE, ChatTemplate

# What a request gets that does not say otherwise: REST has no defaults, and over gRPC a batch would not match them.
DEFAULTS: dict[str, Any] = {
    "max_new_tokens": 128, "temperature": 0.8, "top_k": 50, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0,
    "seed": 0, "sample": 0,
}  # fmt: skip
# Tokens of a stream's chunks: the first words soon, then fewer requests.
FIRST_CHUNK, LARGEST_CHUNK = 4, 32
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0

Answer = dict[str, list[Any]]


class ServingError(RunError):
    """The server did not answer as asked; one line that names the address, the model and the signature.

    Attributes:
        code: gRPC's name of the status, such as "UNAVAILABLE".
        retryable: whether the same request may well be answered later.
    """

    def __init__(self, message: str, code: str, retryable: bool):
        super().__init__(message)
        self.code, self.retryable = code, retryable


RETRYABLE = ("UNAVAILABLE", "RESOURCE_EXHAUSTED", "ABORTED")
"""Away or full; a batching queue that is full says UNAVAILABLE. DEADLINE_EXCEEDED is not among them: the time is up."""

EXPLAINED = {
    "UNAVAILABLE": "nobody answers or the server is full; is it running?",
    "RESOURCE_EXHAUSTED": "the server is full, or the message is too large",
    "DEADLINE_EXCEEDED": "no answer in time; allow more seconds or ask for fewer tokens",
    "NOT_FOUND": "no such model, version or label; see models.config",
    "INVALID_ARGUMENT": "the request is wrong",
    "FAILED_PRECONDITION": "the model is not ready, or was exported wrongly",
}


class Transport(Protocol):
    """One request and its answer."""

    address: str

    def predict(self, name: str, inputs: Mapping[str, list[Any]], seconds: float) -> Answer:
        """Sends a request once.

        Raises:
            ServingError: no good answer.
        """

    def close(self) -> None:
        """Ends the connection."""


@dataclasses.dataclass
class Client:
    """A served model.

    Attributes:
        transport: gRPC or REST.
        seconds: the deadline of a call, all tries together.
        template: the model's chat template, which its export tells in `assets.extra/tfgpt.json`.
    """

    transport: Transport
    seconds: float = 60.0
    template: ChatTemplate = DEFAULT_TEMPLATE

    def predict(self, name: str, inputs: Mapping[str, list[Any]]) -> Answer:
        """Calls a signature, again while that makes sense.

        Args:
            name: the signature.
            inputs: every input, a list with an item a row; text as str or bytes.

        Returns:
            Every output, a list with an item a row.

        Raises:
            ServingError: the last try's error.
        """
        deadline = time.monotonic() + self.seconds
        pause = FIRST_PAUSE
        while True:
            try:
                return self.transport.predict(name, inputs, max(deadline - time.monotonic(), 0.001))
            except ServingError as error:
                # Half of the pause is drawn, so that many clients do not come back at once.
                wait = pause * random.uniform(0.5, 1.0)
                if not error.retryable or time.monotonic() + wait >= deadline:
                    raise
            time.sleep(wait)
            pause = min(2 * pause, LONGEST_PAUSE)

    def generate(self, texts: Sequence[str], **sampling: Any) -> Answer:
        """Continues texts; `sampling` as `DEFAULTS` names it, one value for all or a list with one for each."""
        return self.predict("generate", {"text": list(texts), **sampling_inputs(sampling, len(texts))})

    def chat(self, messages: Sequence[Mapping[str, Any]], **sampling: Any) -> str:
        """The assistant's answer to one dialogue."""
        inputs = {
            "conversation": [self.template.render(messages, add_generation_prompt=True)],
            **sampling_inputs(sampling, 1),
        }
        return self.predict("chat", inputs)["text"][0]

    def stream(self, text: str, *, stop: Sequence[str] = (), **sampling: Any) -> Iterator[str]:
        """The continuation of one text as it is written, in whole characters, cut before a stop string."""
        encoded = self.predict("tokenize", {"text": [text]})
        return self._streamed(text_ids(encoded)[0], stop, sampling)

    def stream_chat(
        self, messages: Sequence[Mapping[str, Any]], *, stop: Sequence[str] = (), **sampling: Any
    ) -> Iterator[str]:
        """The assistant's answer to one dialogue as it is written."""
        encoded = self.predict(
            "tokenize_chat", {"conversation": [self.template.render(messages, add_generation_prompt=True)]}
        )
        return self._streamed(encoded["ids"][0][: encoded["num_tokens"][0]], stop, sampling)

    def _streamed(self, ids: list[int], stop: Sequence[str], sampling: Mapping[str, Any]) -> Iterator[str]:
        inputs = sampling_inputs(sampling, 1)
        [left] = inputs.pop("max_new_tokens")
        text, size = StreamingDetokenizer(stop), FIRST_CHUNK
        while left > 0 and not text.stopped:
            asked: dict[str, list[Any]] = {
                "ids": [ids],
                "length": [len(ids)],
                "max_new_tokens": [min(size, left)],
                **inputs,
            }
            answer = self.predict("stream", asked)
            new = answer["tokens"][0][: answer["num_tokens"][0]]
            ids, left, size = ids + new, left - len(new), min(2 * size, LARGEST_CHUNK)
            piece = text.add(answer["text_bytes"][0])
            if piece:
                yield piece
            # The server's limit may be below what was asked for: fewer tokens without a stop.
            if answer["finish_reason"][0] == "stop" or not new:
                break
        rest = text.end()
        if rest:
            yield rest

    def score(self, texts: Sequence[str]) -> Answer:
        """Log-likelihoods, tokens and bytes of texts."""
        return self.predict("score", {"text": list(texts)})

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of texts."""
        answer = self.predict("tokenize", {"text": list(texts)})
        return [ids[:count] for ids, count in zip(answer["ids"], answer["num_tokens"])]

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """The mean hidden states of texts."""
        return self.predict("embed", {"text": list(texts)})["embedding"]

    def close(self) -> None:
        """Ends the connection."""
        self.transport.close()


def connect(
    address: str, *, model: str, label: str = "", seconds: float = 60.0, template: ChatTemplate = DEFAULT_TEMPLATE
) -> Client:
    """A client for "HOST:PORT" (gRPC) or "http://HOST:PORT" (REST).

    Args:
        address: where the server is.
        model: the model's name.
        label: a version's label, such as "stable" or "canary"; "" for the newest version.
        seconds: the deadline of a call.
        template: the model's chat template.
    """
    from tfgpt.serving.tf_serving_transports import GrpcTransport, RestTransport

    make: Callable[..., Transport] = RestTransport if address.startswith(("http://", "https://")) else GrpcTransport
    return Client(make(address, model, label), seconds, template)


def text_ids(encoded: Answer) -> list[list[int]]:
    """The ids of each text that `tokenize` answered for, behind what texts begin with, as `stream` wants them."""
    rows = zip(encoded["end_of_text_id"], encoded["ids"], encoded["num_tokens"])
    return [[first, *ids[:count]] if first >= 0 else ids[:count] for first, ids, count in rows]


def sampling_inputs(sampling: Mapping[str, Any], rows: int) -> dict[str, list[Any]]:
    """The sampling inputs of a request.

    Raises:
        UserError: a name that is no sampling input, or a list of another length.
    """
    unknown = sampling.keys() - DEFAULTS.keys()
    if unknown:
        raise UserError(f"{min(unknown)}: no such sampling input; there are {', '.join(DEFAULTS)}")
    inputs = {}
    for name, default in DEFAULTS.items():
        value = sampling.get(name, default)
        inputs[name] = list(value) if isinstance(value, (list, tuple)) else [value] * rows
        if len(inputs[name]) != rows:
            raise UserError(f"{name}: {len(inputs[name])} values for {rows} texts")
    return inputs


def input_types(name: str) -> dict[str, str]:
    """The types of a signature's inputs."""
    return {item.name: item.dtype for item in signature(name).inputs}


def failed(address: str, model: str, name: str, code: str, detail: str) -> ServingError:
    """The error for a status."""
    explained = EXPLAINED.get(code, "the server failed")
    said = " ".join(detail.split())[:300]
    message = f"{address}: model {model}, signature {name}: {code}: {explained}" + (f" ({said})" if said else "")
    return ServingError(message, code, code in RETRYABLE)
