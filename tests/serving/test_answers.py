"""Answers alone, without a server."""

import asyncio

import pytest
from starlette.requests import ClientDisconnect

from tfgpt.serving.answers import Answer, EventResponse
from tfgpt.serving.batching import Ticket
from tfgpt.serving.metrics import Metrics


@pytest.mark.parametrize("version", ["2.3", "2.4"])
def test_a_stream_whose_client_leaves_before_its_first_event_leaves_the_queue(version):
    async def receive():
        return {"type": "http.disconnect"}

    async def send(message):
        if version == "2.4":
            raise OSError("so say servers of ASGI 2.4 that the client is gone")
        await asyncio.sleep(60)

    async def answered() -> bool:
        ticket = Ticket()
        response = EventResponse(Answer(ticket, True, "chat", 1, 1, False, {}, Metrics(), 0.0), False)
        scope = {"type": "http", "asgi": {"spec_version": version}}
        if version == "2.4":
            with pytest.raises(ClientDisconnect):
                await response(scope, receive, send)
        else:
            await response(scope, receive, send)
        return ticket.cancelled

    assert asyncio.run(answered())
