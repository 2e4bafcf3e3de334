"""What every request passes: its size and time limits, the API key, the access log, the counters."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import sys
import time
import uuid
from collections.abc import Sequence
from typing import Any

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tfgpt.serving.api_errors import ApiError, as_api_error
from tfgpt.serving.batching import ShutdownError
from tfgpt.serving.prometheus_metrics import Metrics
from tfgpt.serving.serve_config import ServeConfig

# How much of a body that is too large is read all the same, so that its sender gets to read the answer.
READ_ANYWAY = 64 << 20
# nginx's status for a client that left before its answer; only the log and the counters see it.
CLIENT_LEFT = 499

log = logging.getLogger("tfgpt.serving")

Facts = dict[str, Any]
"""What a request's handler tells the access log: counts and names, never contents."""


class RequestMiddleware:
    """The outermost part of the app, in plain ASGI: it sees each byte that goes in and out.

    Args:
        app: what is behind.
        config: the limits.
        keys: the API keys; none: nobody is asked.
        metrics: what is counted.
    """

    def __init__(self, app: ASGIApp, config: ServeConfig, keys: Sequence[str], metrics: Metrics):
        self.app, self.config, self.metrics = app, config, metrics
        self.keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, identity, method = time.monotonic(), uuid.uuid4().hex, scope["method"]
        facts: Facts = {}
        # Base URLs are written with and without a slash at the end; HEAD is GET without the body.
        path = "/" + "/".join(part for part in scope["path"].split("/") if part)
        changed = {"path": path, "method": "GET" if method == "HEAD" else method}
        scope = {**scope, **changed, "tfgpt.facts": facts, "tfgpt.begun": begun}
        status, streaming = 0, False

        async def sending(message: Message) -> None:
            nonlocal status, streaming
            if message["type"] == "http.response.start":
                status = message["status"]
                kind = dict(message.get("headers", ())).get(b"content-type", b"")
                streaming = kind.startswith(b"text/event-stream")
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", identity.encode())]
            else:
                streaming = streaming and message.get("more_body", False)
                if method == "HEAD":
                    message = {**message, "body": b""}
            await send(message)

        try:
            with anyio.fail_after(self.config.request_seconds):
                await self._within_limits(scope, receive, sending)
        except (asyncio.CancelledError, Exception) as error:
            facts["cut"] = bool(status)
            # Cancelled: uvicorn's time for shutting down is over.
            told = error if isinstance(error, Exception) else ShutdownError("the server is stopping")
            if isinstance(told, TimeoutError):
                told = ApiError(504, f"not finished within {self.config.request_seconds:g} s", code="timeout")
            answer = as_api_error(told).response()
            if not status:
                await answer(scope, receive, sending)
            elif streaming:
                await sending({"type": "http.response.body", "body": b"data: " + bytes(answer.body) + b"\n\n"})
            if not isinstance(error, Exception):
                raise
        finally:
            self._report({**scope, "method": method}, identity, status, time.monotonic() - begun, facts)

    async def _within_limits(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name: value for name, value in scope["headers"]}
        try:
            if scope["path"].startswith("/v1/") and scope["method"] != "OPTIONS":
                self._check_key(headers.get(b"authorization", b""))
            body = await self._body(headers, receive)
            if body and headers.get(b"content-type", b"").split(b";")[0].strip().lower() != b"application/json":
                # Also keeps web pages of others from posting here without being asked by CORS.
                raise ApiError(415, "the body must be application/json")
            encoding = headers.get(b"content-encoding", b"identity").strip().lower()
            if body and encoding != b"identity":
                known = {"Accept-Encoding": "identity"}
                raise ApiError(
                    415, f"the body is sent as {encoding.decode('latin-1')}; send it as it is", headers=known
                )
            if body and half_characters(body):
                raise ApiError(400, "the body has half of a surrogate pair, which is no text", code="invalid_json")
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        if body is None:
            return
        given = False

        async def receiving() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, receiving, send)

    def _check_key(self, authorization: bytes) -> None:
        if not self.keys:
            return
        scheme, _, given = authorization.partition(b" ")
        # Every key is compared in constant time, so that no timing tells how much of one was right.
        known = [hmac.compare_digest(given.strip(), key) for key in self.keys]
        if scheme.lower() != b"bearer" or not any(known):
            raise ApiError(401, "no or wrong API key", code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes | None:
        """The whole body; None when the client left before it was sent."""
        limit = self.config.max_body_kb * 1024
        parts: list[bytes] = []
        size = 0
        declared = headers.get(b"content-length", b"0")
        try:
            with anyio.fail_after(self.config.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    size += len(message.get("body", b""))
                    if size <= limit:
                        parts.append(message.get("body", b""))
                    too_much = declared.isdigit() and int(declared[:20]) > READ_ANYWAY
                    if not message.get("more_body") or size > READ_ANYWAY or too_much:
                        break
        except TimeoutError:
            message_text = f"the request did not arrive within {self.config.body_seconds:g} s"
            raise ApiError(408, message_text, code="timeout", headers={"Connection": "close"}) from None
        if size > limit or too_much:
            raise ApiError(413, f"the request is larger than {self.config.max_body_kb} KiB", code="too_large")
        return b"".join(parts)

    def _report(self, scope: Scope, identity: str, status: int, seconds: float, facts: Facts) -> None:
        route = getattr(scope.get("route"), "path", "other")
        status = status or CLIENT_LEFT
        self.metrics.requests.labels(route, str(status)).inc()
        self.metrics.seconds.labels(route).observe(seconds)
        if not self.config.access_log:
            return
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "id": identity,
            "method": scope["method"],
            "route": route,
            "status": status,
            "seconds": round(seconds, 4),
            **facts,
        }
        with contextlib.suppress(OSError, ValueError):  # Who reads the log has left, or the disk is full.
            print(json.dumps(line), file=sys.stdout, flush=True)


def half_characters(body: bytes) -> bool:
    r"""Whether JSON spells half of a surrogate pair, such as "\ud800": Python reads it and cannot write it again."""
    if b"\\ud" not in body.lower():
        return False
    try:
        json.dumps(json.loads(body), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    except (ValueError, RecursionError):
        return False  # Whoever reads the body says what is wrong with it.
    return False
