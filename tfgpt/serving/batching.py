"""Continuous batching: the texts of many requests are generated together, one chunk of tokens at a time.

One thread calls the model's `stream` signature for all active texts. Between two calls, texts that are finished or
whose client disconnected leave the batch, and waiting texts join it.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import math
import threading
import time
from collections.abc import Sequence

from tfgpt.serving.api_errors import BatcherStoppedError, QueueFullError, ShutdownError
from tfgpt.serving.client import Client
from tfgpt.serving.prometheus_metrics import Metrics
from tfgpt.serving.sequence_state import SequenceState, TokenChunk, stream_inputs

# The weight of the newest text in the moving average of a text's duration.
NEWEST_WEIGHT = 0.2


class RequestHandle:
    """The chunks of a request's texts, or the error that ended it; created and read in the event loop."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[TokenChunk | Exception] = asyncio.Queue()
        self.cancelled = False  # True tells the batcher that the request needs no more chunks.
        self._loop = asyncio.get_running_loop()

    def put(self, event: TokenChunk | Exception) -> None:
        with contextlib.suppress(RuntimeError):  # The event loop is closed.
            self._loop.call_soon_threadsafe(self.events.put_nowait, event)


class Batcher:
    """The queue of texts and the thread that generates them; an idle server waits `wait_seconds` for more texts."""

    def __init__(self, client: Client, max_batch: int, max_queue: int, wait_seconds: float, metrics: Metrics):
        self._client, self._max_batch, self._max_queue = client, max_batch, max_queue
        self._wait_seconds, self._metrics = wait_seconds, metrics
        self._waiting: collections.deque[SequenceState] = collections.deque()
        self._changed = threading.Condition()
        self._active: list[SequenceState] = []
        self._stopping = self._ended = False
        self._mean_seconds = 1.0
        self.thread = threading.Thread(target=self._run, name="batcher", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        """Ends the thread after its current call; unfinished texts receive an error."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self.thread.join()

    def submit(self, sequences: Sequence[SequenceState]) -> None:
        """Appends all of a request's texts to the queue, or raises an ApiError and appends none of them."""
        with self._changed:
            if self._stopping:
                raise ShutdownError()
            if self._ended:
                raise BatcherStoppedError
            waiting = collections.deque(sequence for sequence in self._waiting if not sequence.handle.cancelled)
            if len(waiting) + len(sequences) > self._max_queue:
                raise QueueFullError(self.retry_seconds(len(waiting)))
            waiting.extend(sequences)
            self._waiting = waiting
            self._metrics.waiting.set(len(waiting))
            self._changed.notify()

    def retry_seconds(self, waiting: int) -> int:
        """Returns the time after which a queue of `waiting` texts may have room."""
        return min(max(math.ceil(self._mean_seconds * waiting / self._max_batch), 1), 60)

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._step()
        finally:
            # All requests end when the thread does, for any reason.
            with self._changed:
                self._ended = True
                sequences = [*self._active, *self._waiting]
                self._active, self._waiting = [], collections.deque()
            error = ShutdownError() if self._stopping else BatcherStoppedError()
            for sequence in sequences:
                sequence.handle.put(error)

    def _step(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._active or self._waiting)
            if not self._active:
                self._changed.wait_for(
                    lambda: self._stopping or len(self._waiting) >= self._max_batch, self._wait_seconds
                )
            if self._stopping:
                return
            while self._waiting and len(self._active) < self._max_batch:
                self._active.append(self._waiting.popleft())
                self._active[-1].start_time = time.monotonic()
            self._metrics.waiting.set(len(self._waiting))
        self._active = [sequence for sequence in self._active if not sequence.handle.cancelled]
        self._metrics.active.set(len(self._active))
        if self._active:
            self._active = self._generate_chunk(self._active)
            self._metrics.active.set(len(self._active))

    def _generate_chunk(self, sequences: list[SequenceState]) -> list[SequenceState]:
        """Calls the model once for all sequences; returns those that continue."""
        start = time.monotonic()
        try:
            outputs = self._client.predict("stream", stream_inputs(sequences))
        except Exception as error:  # Any error ends these requests, not the thread.
            for sequence in sequences:
                sequence.handle.put(error)
            return []
        self._metrics.calls.observe(time.monotonic() - start)
        self._metrics.batch.observe(len(sequences))
        unfinished = []
        for row, sequence in enumerate(sequences):
            try:
                chunk = sequence.advance(outputs, row)
            except Exception as error:  # An invalid response ends its request, not the thread.
                sequence.handle.put(error)
                continue
            sequence.handle.put(chunk)
            self._metrics.generated.inc(chunk.num_tokens)
            if not chunk.finish_reason:
                unfinished.append(sequence)
            else:
                self._mean_seconds += NEWEST_WEIGHT * (time.monotonic() - sequence.start_time - self._mean_seconds)
        return unfinished
