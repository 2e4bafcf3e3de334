"""ASGI middleware: API keys, size and time limits, access log and metrics of every request."""

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

from tfgpt.serving.api_errors import ApiError, ShutdownError, to_api_error
from tfgpt.serving.prometheus_metrics import Metrics
from tfgpt.serving.serve_config import ServeConfig

# Bytes of a too large body that are read, so that its sender finishes and reads the response.
MAX_DISCARDED_BYTES = 64 << 20
# nginx's status for a client that disconnected before the response; only the log and the metrics contain it.
CLIENT_CLOSED_REQUEST = 499

logger = logging.getLogger("tfgpt.serving")

AccessRecord = dict[str, Any]
"""The fields that a route adds to the access log: counts and names, never contents."""


class RequestMiddleware:
    """The outermost layer of the app, in plain ASGI: it sees every byte of requests and responses."""

    def __init__(self, app: ASGIApp, config: ServeConfig, keys: Sequence[str], metrics: Metrics):
        self.app, self.config, self.metrics = app, config, metrics
        self.keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, request_id, method = time.monotonic(), uuid.uuid4().hex, scope["method"]
        record: AccessRecord = {}
        # Clients write base URLs with and without a final slash; HEAD is GET without a body.
        path = "/" + "/".join(part for part in scope["path"].split("/") if part)
        changes = {"path": path, "method": "GET" if method == "HEAD" else method}
        scope = {**scope, **changes, "tfgpt.access_record": record, "tfgpt.start_time": start}
        status, streaming = 0, False

        async def send_with_id(message: Message) -> None:
            nonlocal status, streaming
            if message["type"] == "http.response.start":
                status = message["status"]
                content_type = dict(message.get("headers", ())).get(b"content-type", b"")
                streaming = content_type.startswith(b"text/event-stream")
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            else:
                streaming = streaming and message.get("more_body", False)
                if method == "HEAD":
                    message = {**message, "body": b""}
            await send(message)

        try:
            with anyio.fail_after(self.config.request_seconds):
                await self._check_and_run(scope, receive, send_with_id)
        except (asyncio.CancelledError, Exception) as error:
            record["cut"] = bool(status)
            if isinstance(error, TimeoutError):
                answer = ApiError(504, f"not finished within {self.config.request_seconds:g} s", code="timeout")
            else:  # A cancelled task is not an Exception: uvicorn's time for shutting down is over.
                answer = to_api_error(error) if isinstance(error, Exception) else ShutdownError()
            response = answer.response()
            if not status:
                await response(scope, receive, send_with_id)
            elif streaming:
                body = b"data: " + bytes(response.body) + b"\n\n"
                await send_with_id({"type": "http.response.body", "body": body})
            if not isinstance(error, Exception):
                raise
        finally:
            self._log({**scope, "method": method}, request_id, status or CLIENT_CLOSED_REQUEST, record)

    async def _check_and_run(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        try:
            if self.keys and scope["path"].startswith("/v1/") and scope["method"] != "OPTIONS":
                scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
                # Compares every key in constant time, so that the time does not reveal a part of a key.
                matches = [hmac.compare_digest(key.strip(), known) for known in self.keys]
                if scheme.lower() != b"bearer" or not any(matches):
                    challenge = {"WWW-Authenticate": "Bearer"}
                    raise ApiError(401, "no or wrong API key", code="invalid_api_key", headers=challenge)
            body = await self._read_body(headers, receive)
            if body:
                check_body(headers, body)
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        if body is None:
            return
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_body() -> Message:
            return messages.pop() if messages else await receive()

        await self.app(scope, receive_body, send)

    async def _read_body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes | None:
        """Returns the body, or None when the client disconnects before its end."""
        limit = self.config.max_body_kb * 1024
        parts: list[bytes] = []
        size = 0
        declared = headers.get(b"content-length", b"0")
        discard = declared.isdigit() and int(declared[:20]) > MAX_DISCARDED_BYTES
        try:
            with anyio.fail_after(self.config.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    size += len(message.get("body", b""))
                    if size <= limit:
                        parts.append(message.get("body", b""))
                    if not message.get("more_body") or size > MAX_DISCARDED_BYTES or discard:
                        break
        except TimeoutError:
            message_text = f"the request did not arrive within {self.config.body_seconds:g} s"
            raise ApiError(408, message_text, code="timeout", headers={"Connection": "close"}) from None
        if size > limit or discard:
            raise ApiError(413, f"the request is larger than {self.config.max_body_kb} KiB", code="too_large")
        return b"".join(parts)

    def _log(self, scope: Scope, request_id: str, status: int, record: AccessRecord) -> None:
        seconds = time.monotonic() - scope["tfgpt.start_time"]
        route = getattr(scope.get("route"), "path", "other")
        self.metrics.requests.labels(route, str(status)).inc()
        self.metrics.seconds.labels(route).observe(seconds)
        if not self.config.access_log:
            return
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "id": request_id,
            "method": scope["method"],
            "route": route,
            "status": status,
            "seconds": round(seconds, 4),
            **record,
        }
        with contextlib.suppress(OSError, ValueError):  # The reader of the log is gone, or the disk is full.
            print(json.dumps(line), file=sys.stdout, flush=True)


def check_body(headers: dict[bytes, bytes], body: bytes) -> None:
    """Raises an ApiError unless the body is uncompressed JSON whose strings are valid text."""
    if headers.get(b"content-type", b"").split(b";")[0].strip().lower() != b"application/json":
        # Also prevents pages of other origins from posting here without CORS.
        raise ApiError(415, "the body must be application/json")
    encoding = headers.get(b"content-encoding", b"identity").strip().lower()
    if encoding != b"identity":
        message = f"the body has the encoding {encoding.decode('latin-1')}; send it without"
        raise ApiError(415, message, headers={"Accept-Encoding": "identity"})
    if b"\\ud" in body.lower():
        try:
            json.dumps(json.loads(body), ensure_ascii=False).encode()
        except UnicodeEncodeError:
            message = "the body contains half of a surrogate pair, which is not text"
            raise ApiError(400, message, code="invalid_json") from None
        except (ValueError, RecursionError):
            pass  # The parser of the request reports the problem.
