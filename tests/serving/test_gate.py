"""The gate alone, as an ASGI application."""

import asyncio
import json

import pytest

from tfgpt.serving.gate import Gate
from tfgpt.serving.metrics import Metrics
from tfgpt.serving.serve_config import ServeConfig


@pytest.mark.parametrize("begun", [False, True])
def test_a_request_that_is_cancelled_is_answered_and_stays_cancelled(begun):
    sent = []

    async def slow(scope, receive, send):
        if begun:
            headers = [(b"content-type", b"text/event-stream")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
        await asyncio.sleep(60)

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    async def cancelled() -> bool:
        gate = Gate(slow, ServeConfig(model="a", access_log=False), (), Metrics())
        scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
        task = asyncio.ensure_future(gate(scope, receive, send))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.wait((task,))
        return task.cancelled()

    assert asyncio.run(cancelled())
    assert [message.get("status") for message in sent] == ([200, None] if begun else [503, None])
    body = sent[-1]["body"].removeprefix(b"data: ")
    assert json.loads(body)["error"]["code"] == "shutting_down"
