"""The queue alone: no thread writes, so what waits keeps waiting."""

import asyncio

import pytest

from tfgpt.serving.batching import Batcher, QueueFullError, Row, Ticket
from tfgpt.serving.metrics import Metrics


def rows(ticket: Ticket, count: int) -> list[Row]:
    return [Row(ticket, index, [1], 5, {}, (), False) for index in range(count)]


def test_clients_that_left_take_no_place_in_the_queue_and_those_that_wait_keep_theirs():
    async def arrive() -> None:
        metrics = Metrics()
        batcher = Batcher(None, 1, 3, 0.0, metrics)
        leaving, waiting, late = Ticket(), Ticket(), Ticket()
        batcher.submit(rows(leaving, 2))
        batcher.submit(rows(waiting, 1))
        with pytest.raises(QueueFullError):
            batcher.submit(rows(late, 1))
        leaving.cancel()
        with pytest.raises(QueueFullError):
            batcher.submit(rows(late, 3))  # All or none: two of its three texts would find room.
        batcher.submit(rows(late, 2))
        assert b"tfgpt_waiting_texts 3.0" in metrics.text()
        with pytest.raises(QueueFullError):
            batcher.submit(rows(late, 1))

    asyncio.run(arrive())
