"""The gate alone, as an ASGI application."""

import asyncio
import json
import os
import sys

import pytest

from tfgpt.serving.middleware import RequestMiddleware
from tfgpt.serving.prometheus_metrics import Metrics
from tfgpt.serving.serve_config import ServeConfig


async def receive():
    return {"type": "http.request", "body": b"", "more_body": False}


SCOPE = {"type": "http", "method": "GET", "path": "/", "headers": []}


KIB = 1024


@pytest.mark.parametrize(
    ("declared", "sent_kib", "calls", "status"),
    [
        (b"99999999999", 10**6, 1, 413),  # Nobody would send all of it: its first part is enough.
        (b"", 10**6, (64 << 20) // KIB + 1, 413),  # In chunks of unknown number: 64 MiB, then no more.
        (b"5120", 5, 5, 413),  # Small enough to be read whole, so that its sender reads the answer.
        (b"2048", 2, 2, 204),
    ],
)
def test_of_a_body_that_is_too_large_no_more_is_read_than_its_sender_needs(declared, sent_kib, calls, status):
    read, answered, passed = [], [], []

    async def receive():
        read.append(1)
        return {"type": "http.request", "body": b"a" * KIB, "more_body": len(read) < sent_kib}

    async def app(scope, receive, send):
        passed.append(len((await receive())["body"]))
        await send({"type": "http.response.start", "status": 204, "headers": []})

    async def send(message):
        answered.append(message.get("status"))

    headers = [(b"content-type", b"application/json"), *([(b"content-length", declared)] if declared else [])]
    gate = RequestMiddleware(app, ServeConfig(model="a", access_log=False, max_body_kb=2), (), Metrics())
    asyncio.run(gate({**SCOPE, "method": "POST", "headers": headers}, receive, send))
    assert (len(read), answered[0]) == (calls, status)
    assert passed == ([2 * KIB] if status == 204 else [])


@pytest.mark.parametrize("begun", [False, True])
def test_a_request_that_is_cancelled_is_answered_and_stays_cancelled(begun):
    sent = []

    async def slow(scope, receive, send):
        if begun:
            headers = [(b"content-type", b"text/event-stream")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
        await asyncio.sleep(60)

    async def send(message):
        sent.append(message)

    async def cancelled() -> bool:
        gate = RequestMiddleware(slow, ServeConfig(model="a", access_log=False), (), Metrics())
        task = asyncio.ensure_future(gate(SCOPE, receive, send))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.wait((task,))
        return task.cancelled()

    assert asyncio.run(cancelled())
    assert [message.get("status") for message in sent] == ([200, None] if begun else [503, None])
    body = sent[-1]["body"].removeprefix(b"data: ")
    assert json.loads(body)["error"]["code"] == "shutting_down"


def test_requests_are_answered_when_nobody_reads_the_log_any_longer(monkeypatch):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    sent = []

    async def send(message):
        sent.append(message.get("status"))

    reading, writing = os.pipe()
    os.close(reading)
    monkeypatch.setattr(sys, "stdout", os.fdopen(writing, "w"))
    gate = RequestMiddleware(app, ServeConfig(model="a"), (), Metrics())
    for _ in range(2):
        asyncio.run(gate(SCOPE, receive, send))
    assert sent == [204, None] * 2
