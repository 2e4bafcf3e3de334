"""From the pieces that the batcher writes to OpenAI's answers, whole or as a stream of server-sent events."""

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

from tfgpt.serving.api_errors import as_api_error
from tfgpt.serving.batching import RequestHandle, TokenChunk
from tfgpt.serving.middleware import CLIENT_LEFT, Facts
from tfgpt.serving.prometheus_metrics import Metrics

# A comment this often tells proxies and browsers that a stream that waits for its turn is alive, in seconds.
ALIVE_SECONDS = 10
# What OpenAI writes for a log-probability of minus infinity, which JSON cannot say.
IMPOSSIBLE = -9999.0
# What Python's `splitlines`, and so clients that read with it, takes for a line's end and JSON leaves as it is.
LINE_ENDS = {ord(character): f"\\u{ord(character):04x}" for character in "\x85\u2028\u2029"}


@dataclasses.dataclass
class CompletionResponse:
    """One request's texts as they come.

    Attributes:
        ticket: where the pieces come out.
        chat: chat or plain completion.
        model: its name.
        choices: how many texts.
        prompt_tokens: of all prompts of the request.
        log_probabilities: whether they are wanted.
        facts: for the access log.
        metrics: what is counted.
        begun: when the request came, on the monotonic clock.
    """

    ticket: RequestHandle
    chat: bool
    model: str
    choices: int
    prompt_tokens: int
    log_probabilities: bool
    facts: Facts
    metrics: Metrics
    begun: float

    def __post_init__(self) -> None:
        self.id = ("chatcmpl-" if self.chat else "cmpl-") + uuid.uuid4().hex
        self.created = int(time.time())
        self.written = 0
        self.reasons = [""] * self.choices
        self._offsets = [0] * self.choices
        self.metrics.prompt.inc(self.prompt_tokens)

    async def pieces(self) -> AsyncIterator[TokenChunk | None]:
        """The pieces of all texts, None while nothing comes; ends with the last text.

        Raises:
            Exception: the model failed.
        """
        try:
            while not all(self.reasons):
                event: TokenChunk | Exception | None = None
                with anyio.move_on_after(ALIVE_SECONDS):
                    event = await self.ticket.events.get()
                if event is None:
                    yield None
                    continue
                if isinstance(event, Exception):
                    self.facts["failed"] = True
                    raise event
                if not self.written:
                    self.metrics.first.observe(time.monotonic() - self.begun)
                self.written += event.tokens
                self.reasons[event.index] = event.finish_reason
                yield event
        finally:
            self.ticket.cancel()
            self.facts.update(prompt_tokens=self.prompt_tokens, completion_tokens=self.written, choices=self.choices)
            if all(self.reasons):
                self.facts["finish_reasons"] = sorted(set(self.reasons))
            else:
                self.facts["unfinished"] = True
                if "failed" not in self.facts:
                    self.metrics.cancelled.inc()

    def usage(self) -> dict[str, int]:
        """The token counts."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.written,
            "total_tokens": self.prompt_tokens + self.written,
        }

    def heading(self, streamed: bool) -> dict[str, Any]:
        """What stands before the choices."""
        kind = "text_completion"
        if self.chat:
            kind = "chat.completion.chunk" if streamed else "chat.completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    async def whole(self) -> dict[str, Any]:
        """The answer in one piece."""
        texts = [""] * self.choices
        likely: list[list[TokenChunk]] = [[] for _ in texts]
        async for piece in self.pieces():
            if piece is not None:
                texts[piece.index] += piece.text
                likely[piece.index].append(piece)
        choices = []
        for index, text in enumerate(texts):
            said = {"message": {"role": "assistant", "content": text, "refusal": None}} if self.chat else {"text": text}
            known = self.log_probability_field(index, likely[index])
            choices.append({"index": index, **said, "logprobs": known, "finish_reason": self.reasons[index]})
        return {**self.heading(False), "choices": choices, "usage": self.usage()}

    async def events(self, include_usage: bool) -> AsyncIterator[str]:
        """The answer as server-sent events, `[DONE]` last; an error in the middle is an event too."""
        empty: dict[str, Any] = {"usage": None} if include_usage else {}

        def event(index: int, delta: dict[str, Any], known: Any, reason: str | None) -> str:
            said = {"delta": delta} if self.chat else {"text": delta.get("content", "")}
            choice = {"index": index, **said, "logprobs": known, "finish_reason": reason}
            return sent({**self.heading(True), "choices": [choice], **empty})

        try:
            if self.chat:
                for index in range(self.choices):
                    yield event(index, {"role": "assistant", "content": ""}, None, None)
            async for piece in self.pieces():
                if piece is None:
                    yield ": waiting\n\n"
                    continue
                known = self.log_probability_field(piece.index, [piece])
                if piece.text or (known and piece.log_probability is not None):
                    yield event(piece.index, {"content": piece.text}, known, None)
                if piece.finish_reason:
                    yield event(piece.index, {}, None, piece.finish_reason)
            if include_usage:
                yield sent({**self.heading(True), "choices": [], "usage": self.usage()})
            yield "data: [DONE]\n\n"
        except Exception as error:
            self.facts["cut"] = True
            yield sent(as_api_error(error).content())

    def log_probability_field(self, index: int, pieces: Sequence[TokenChunk]) -> dict[str, Any] | None:
        """The `logprobs` of a choice, in the form of chat or of completions."""
        if not self.log_probabilities:
            return None
        known = [
            (piece.content, max(piece.log_probability, IMPOSSIBLE))
            for piece in pieces
            if piece.log_probability is not None
        ]
        tokens = [content.decode("utf-8", "replace") for content, _ in known]
        if self.chat:
            entries = [
                {"token": token, "logprob": value, "bytes": list(content), "top_logprobs": []}
                for token, (content, value) in zip(tokens, known)
            ]
            return {"content": entries, "refusal": None}
        offsets = []
        for token in tokens:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(token)
        values = [value for _, value in known]
        return {"tokens": tokens, "token_logprobs": values, "top_logprobs": None, "text_offset": offsets}


def sent(content: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(content, ensure_ascii=False, separators=(',', ':')).translate(LINE_ENDS)}\n\n"


class EventResponse(StreamingResponse):
    """A stream that takes its request out of the batcher however it ends, begun or not."""

    def __init__(self, answer: CompletionResponse, include_usage: bool):
        # X-Accel-Buffering: nginx would otherwise keep the events back.
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(answer.events(include_usage), media_type="text/event-stream", headers=headers)
        self._ticket = answer.ticket

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ticket.cancel()


async def unless_gone(request: Request, answer: CompletionResponse) -> Response:
    """The whole answer; when the client leaves first, no more work is done for it."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.ensure_future(answer.whole()), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        return JSONResponse(working.result()) if working.done() else Response(status_code=CLIENT_LEFT)
    finally:
        answer.ticket.cancel()
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


def as_base64(values: Sequence[float]) -> str:
    """A vector as OpenAI's clients ask for it: little-endian float32 in base64."""
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()
