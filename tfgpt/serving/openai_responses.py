"""OpenAI's responses, complete or as server-sent events, from the batcher's chunks."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import struct
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

import anyio
from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from tfgpt.serving.api_errors import to_api_error
from tfgpt.serving.batching import RequestHandle
from tfgpt.serving.middleware import CLIENT_CLOSED_REQUEST, AccessRecord
from tfgpt.serving.prometheus_metrics import Metrics
from tfgpt.serving.sequence_state import TokenChunk

# Seconds between comments that show proxies and browsers that a waiting stream is alive.
KEEP_ALIVE_SECONDS = 10
# OpenAI's value for a log-probability of minus infinity, which JSON cannot express.
MIN_LOG_PROBABILITY = -9999.0
# Characters that `str.splitlines`, and so clients that use it, treats as line ends and JSON does not escape.
LINE_ENDS = {ord(character): f"\\u{ord(character):04x}" for character in "\x85\u2028\u2029"}


@dataclasses.dataclass
class CompletionResponse:
    """The response to one request for texts."""

    handle: RequestHandle
    chat: bool  # whether the request is a chat; otherwise it is a plain completion
    model: str
    choices: int  # the number of texts
    prompt_tokens: int  # the number of tokens of all prompts
    log_probabilities: bool  # whether the request asks for log-probabilities
    record: AccessRecord
    metrics: Metrics
    start_time: float  # the time of the request on the monotonic clock

    def __post_init__(self) -> None:
        self.id = ("chatcmpl-" if self.chat else "cmpl-") + uuid.uuid4().hex
        self.created = int(time.time())
        self.completion_tokens = 0
        self.finish_reasons = [""] * self.choices
        self._offsets = [0] * self.choices
        self.metrics.prompt.inc(self.prompt_tokens)

    async def chunks(self) -> AsyncIterator[TokenChunk | None]:
        """Yields the chunks of all texts, and None when no chunk arrives for `KEEP_ALIVE_SECONDS`."""
        try:
            while not all(self.finish_reasons):
                event: TokenChunk | Exception | None = None
                with anyio.move_on_after(KEEP_ALIVE_SECONDS):
                    event = await self.handle.events.get()
                if isinstance(event, Exception):
                    self.record["failed"] = True
                    raise event
                if event is not None:
                    if not self.completion_tokens:
                        self.metrics.first.observe(time.monotonic() - self.start_time)
                    self.completion_tokens += event.num_tokens
                    self.finish_reasons[event.index] = event.finish_reason
                yield event
        finally:
            self.handle.cancelled = True
            self.record.update(
                prompt_tokens=self.prompt_tokens, completion_tokens=self.completion_tokens, choices=self.choices
            )
            if all(self.finish_reasons):
                self.record["finish_reasons"] = sorted(set(self.finish_reasons))
            else:
                self.record["unfinished"] = True
                if "failed" not in self.record:
                    self.metrics.cancelled.inc()

    async def body(self) -> dict[str, Any]:
        texts = [""] * self.choices
        log_probabilities: list[list[tuple[bytes, float]]] = [[] for _ in texts]
        async for chunk in self.chunks():
            if chunk is not None:
                texts[chunk.index] += chunk.text
                log_probabilities[chunk.index] += chunk.log_probabilities
        choices = [
            self._choice(
                index,
                {"message": {"role": "assistant", "content": text, "refusal": None}} if self.chat else {"text": text},
                self._logprobs(index, log_probabilities[index]),
                self.finish_reasons[index],
            )
            for index, text in enumerate(texts)
        ]
        heading = self.heading("chat.completion" if self.chat else "text_completion")
        return {**heading, "choices": choices, "usage": self.usage()}

    async def events(self, include_usage: bool) -> AsyncIterator[str]:
        """Yields the response as server-sent events, `[DONE]` last; a late error is an event too."""
        heading = self.heading("chat.completion.chunk" if self.chat else "text_completion")
        no_usage: dict[str, Any] = {"usage": None} if include_usage else {}

        def event(index: int, delta: dict[str, Any], logprobs: Any = None, finish_reason: str | None = None) -> str:
            content = {"delta": delta} if self.chat else {"text": delta.get("content", "")}
            choice = self._choice(index, content, logprobs, finish_reason)
            return format_event({**heading, "choices": [choice], **no_usage})

        try:
            if self.chat:
                for index in range(self.choices):
                    yield event(index, {"role": "assistant", "content": ""})
            async for chunk in self.chunks():
                if chunk is None:
                    yield ": waiting\n\n"
                    continue
                if chunk.text or chunk.log_probabilities:
                    logprobs = self._logprobs(chunk.index, chunk.log_probabilities)
                    yield event(chunk.index, {"content": chunk.text}, logprobs)
                if chunk.finish_reason:
                    yield event(chunk.index, {}, None, chunk.finish_reason)
            if include_usage:
                yield format_event({**heading, "choices": [], "usage": self.usage()})
            yield "data: [DONE]\n\n"
        except Exception as error:
            self.record["cut"] = True
            yield format_event(to_api_error(error).content())

    def heading(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def usage(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }

    @staticmethod
    def _choice(index: int, content: dict[str, Any], logprobs: Any, finish_reason: str | None) -> dict[str, Any]:
        return {"index": index, **content, "logprobs": logprobs, "finish_reason": finish_reason}

    def _logprobs(self, index: int, log_probabilities: Sequence[tuple[bytes, float]]) -> dict[str, Any] | None:
        """Returns the `logprobs` of a choice in the format of chats or of completions."""
        if not self.log_probabilities:
            return None
        tokens = [content.decode("utf-8", "replace") for content, _ in log_probabilities]
        values = [max(value, MIN_LOG_PROBABILITY) for _, value in log_probabilities]
        if self.chat:
            entries = [
                {"token": token, "logprob": value, "bytes": list(content), "top_logprobs": []}
                for token, value, (content, _) in zip(tokens, values, log_probabilities)
            ]
            return {"content": entries, "refusal": None}
        offsets = []
        for token in tokens:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(token)
        return {"tokens": tokens, "token_logprobs": values, "top_logprobs": None, "text_offset": offsets}


class EventResponse(StreamingResponse):
    """A stream of events that cancels its request in the batcher at its end, even if it never starts."""

    def __init__(self, response: CompletionResponse, include_usage: bool):
        # X-Accel-Buffering: nginx otherwise holds the events back.
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(response.events(include_usage), media_type="text/event-stream", headers=headers)
        self._handle = response.handle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._handle.cancelled = True


async def respond_unless_disconnected(request: Request, response: CompletionResponse) -> Response:
    """Returns the complete response; stops the work when the client disconnects first."""

    async def wait_for_disconnect() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    body, disconnect = asyncio.ensure_future(response.body()), asyncio.ensure_future(wait_for_disconnect())
    try:
        await asyncio.wait((body, disconnect), return_when=asyncio.FIRST_COMPLETED)
        return JSONResponse(body.result()) if body.done() else Response(status_code=CLIENT_CLOSED_REQUEST)
    finally:
        response.handle.cancelled = True
        for task in (body, disconnect):
            task.cancel()
        await asyncio.gather(body, disconnect, return_exceptions=True)


def format_event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False, separators=(',', ':')).translate(LINE_ENDS)}\n\n"


def encode_base64(values: Sequence[float]) -> str:
    """Returns a vector in the format of OpenAI's clients: little-endian float32 in base64."""
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()
