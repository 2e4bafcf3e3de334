"""Client for a served model over gRPC or REST, with retries and a deadline. Imports neither Keras nor the model.

    client = connect("localhost:8500", model="chat")            # gRPC; "http://localhost:8501" for REST
    client.chat([{"role": "user", "content": "Hello!"}], temperature=0.7)
    for text in client.stream_chat([{"role": "user", "content": "Hello!"}]): ...

The server keeps no state, and the same seed gives the same text, so every request is safe to repeat. A request is
repeated until its deadline while the server is away or full; a wrong request is not.
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tfgpt.common.errors import UserError
from tfgpt.generation.config import SamplingConfig
from tfgpt.serving.sequence_state import SequenceState, stream_inputs
from tfgpt.serving.signatures import sampling_values
from tfgpt.serving.tf_serving_transports import GrpcTransport, Outputs, RestTransport, ServingError, Transport
from tfgpt.tokenization.jinja_template import DEFAULT_TEMPLATE, ChatTemplate

# REST has no defaults, and gRPC's defaults have the wrong length for a batch, so every request sends all inputs.
DEFAULTS = sampling_values(SamplingConfig())
# Seconds between two attempts.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0


@dataclasses.dataclass
class Client:
    """A client for a served model.

    Args:
        seconds: the deadline of a call, including all retries.
        template: the model's chat template, which its export records in `assets.extra/tfgpt.json`.

    Example:

    >>> client = connect("localhost:8500", model="chat")
    >>> client.transport.address
    'localhost:8500'
    >>> client.close()
    """

    transport: Transport
    seconds: float = 60.0
    template: ChatTemplate = DEFAULT_TEMPLATE

    def predict(self, name: str, inputs: Mapping[str, list[Any]]) -> Outputs:
        """Calls a signature and retries while that can succeed; raises the ServingError of the last attempt.

        Inputs and outputs are lists with one item per row; text is str or bytes.
        """
        encoded = {
            key: [item.encode() if isinstance(item, str) else item for item in column] for key, column in inputs.items()
        }
        deadline = time.monotonic() + self.seconds
        pause = FIRST_PAUSE
        while True:
            try:
                outputs = self.transport.predict(name, encoded, max(deadline - time.monotonic(), 0.001))
                return {
                    key: [
                        item.decode() if isinstance(item, bytes) and not key.endswith("_bytes") else item
                        for item in column
                    ]
                    for key, column in outputs.items()
                }
            except ServingError as error:
                # Half of the pause is random, so that many clients do not return at once.
                wait = pause * random.uniform(0.5, 1.0)
                if not error.retryable or time.monotonic() + wait >= deadline:
                    raise
            time.sleep(wait)
            pause = min(2 * pause, LONGEST_PAUSE)

    def generate(self, texts: Sequence[str], **sampling: Any) -> Outputs:
        """Continues texts; each sampling input (see `DEFAULTS`) is one value for all texts or a list of values."""
        return self.predict("generate", {"text": list(texts), **sampling_inputs(sampling, len(texts))})

    def chat(self, messages: Sequence[Mapping[str, Any]], **sampling: Any) -> str:
        """Returns the assistant's reply to a conversation."""
        return self.predict("chat", {**self._conversation(messages), **sampling_inputs(sampling, 1)})["text"][0]

    def stream(self, text: str, *, stop: Sequence[str] = (), **sampling: Any) -> Iterator[str]:
        """Yields the continuation of a text as it is generated, in whole characters, cut before a stop string."""
        return self._stream(prompt_ids(self.predict("tokenize", {"text": [text]}))[0], stop, sampling)

    def stream_chat(
        self, messages: Sequence[Mapping[str, Any]], *, stop: Sequence[str] = (), **sampling: Any
    ) -> Iterator[str]:
        """Yields the assistant's reply to a conversation as it is generated."""
        [ids] = self.predict("tokenize_chat", self._conversation(messages))["ids"]
        return self._stream(ids, stop, sampling)

    def score(self, texts: Sequence[str]) -> Outputs:
        """Returns the log-likelihoods of texts and their numbers of tokens and bytes."""
        return self.predict("score", {"text": list(texts)})

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the token ids of texts."""
        outputs = self.predict("tokenize", {"text": list(texts)})
        return [ids[:count] for ids, count in zip(outputs["ids"], outputs["num_tokens"])]

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Returns the mean hidden state of each text."""
        return self.predict("embed", {"text": list(texts)})["embedding"]

    def close(self) -> None:
        self.transport.close()

    def _conversation(self, messages: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
        return {"conversation": [self.template.render(messages, add_generation_prompt=True)]}

    def _stream(self, ids: list[int], stop: Sequence[str], sampling: Mapping[str, Any]) -> Iterator[str]:
        inputs = sampling_inputs(sampling, 1)
        [max_tokens] = inputs.pop("max_new_tokens")
        state = SequenceState(ids, max_tokens, {name: value for name, [value] in inputs.items()}, stop)
        finish_reason = ""
        while not finish_reason:
            chunk = state.advance(self.predict("stream", stream_inputs([state])), 0)
            finish_reason = chunk.finish_reason
            if chunk.text:
                yield chunk.text


def connect(
    address: str, *, model: str, label: str = "", seconds: float = 60.0, template: ChatTemplate = DEFAULT_TEMPLATE
) -> Client:
    """Returns a client for "HOST:PORT" (gRPC) or "http://HOST:PORT" (REST).

    `label` is that of a version, such as "stable" or "canary"; "" for the newest version.
    """
    is_rest = address.startswith(("http://", "https://"))
    transport: Callable[..., Transport] = RestTransport if is_rest else GrpcTransport
    return Client(transport(address, model, label), seconds, template)


def prompt_ids(encoded: Outputs) -> list[list[int]]:
    """Returns the ids that `stream` continues: those of `tokenize`, after the token that texts begin with."""
    rows = zip(encoded["end_of_text_id"], encoded["ids"], encoded["num_tokens"])
    return [[first, *ids[:count]] if first >= 0 else ids[:count] for first, ids, count in rows]


def sampling_inputs(sampling: Mapping[str, Any], rows: int) -> dict[str, list[Any]]:
    """Returns the sampling inputs of a request of `rows` texts; `sampling` has one value or a list for each name."""
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
