"""Writes the texts of many requests together, a chunk at a time.

One thread calls the model's `stream` signature for all texts in hand. Between two calls, texts that are done or whose
client has left go, and waiting ones come in: continuous batching, with a chunk of tokens as its step.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import math
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tfgpt.common.errors import RunError, TfgptError
from tfgpt.generation.detokenizer import StreamingDetokenizer
from tfgpt.serving.client import FIRST_CHUNK, LARGEST_CHUNK, Client
from tfgpt.serving.prometheus_metrics import Metrics

# Weight of the newest text in the mean time that a text takes.
NEWEST = 0.2


class QueueFullError(TfgptError):
    """No room for more requests.

    Attributes:
        seconds: after how long there may be some.
    """

    def __init__(self, seconds: int):
        super().__init__(f"the server is busy; try again in {seconds} s")
        self.seconds = seconds


class ShutdownError(RunError):
    """The server is stopping."""


class BatcherStoppedError(RunError):
    """The thread that writes has ended, and nothing but a restart brings it back."""

    def __init__(self) -> None:
        super().__init__("the thread that writes texts has ended; restart the server")


@dataclasses.dataclass
class TokenChunk:
    """What a chunk adds to one text.

    Attributes:
        index: which text of the request.
        text: whole characters, nothing behind a stop string; perhaps empty.
        tokens: how many tokens were written.
        finish_reason: "stop", "length", or "" while the text goes on.
        log_probability: of the one token, where the request wants it and there is one.
        content: that token's bytes.
    """

    index: int
    text: str
    tokens: int
    finish_reason: str
    log_probability: float | None = None
    content: bytes = b""


class RequestHandle:
    """One request's place: the pieces of its texts come out of it. Made and read in the event loop.

    Attributes:
        events: pieces, or the error that ended the request.
        cancelled: nobody wants the rest.
    """

    def __init__(self) -> None:
        self.events: asyncio.Queue[TokenChunk | Exception] = asyncio.Queue()
        self.cancelled = False
        self._loop = asyncio.get_running_loop()

    def put(self, event: TokenChunk | Exception) -> None:
        """Called by the writing thread."""
        with contextlib.suppress(RuntimeError):  # The loop is closed: nobody waits for it any longer.
            self._loop.call_soon_threadsafe(self.events.put_nowait, event)

    def cancel(self) -> None:
        """The client has left or has everything: no more work for it."""
        self.cancelled = True


class SequenceState:
    """One text that is being written.

    Args:
        ticket: its request's.
        index: its number in the request.
        ids: the prompt's.
        max_tokens: the most tokens to write.
        sampling: the signature's sampling inputs but for max_new_tokens.
        stop: strings before which the text ends.
        one_by_one: a token a call, so that the log-probability of each is known.
    """

    def __init__(
        self,
        ticket: RequestHandle,
        index: int,
        ids: Sequence[int],
        max_tokens: int,
        sampling: Mapping[str, Any],
        stop: Sequence[str],
        one_by_one: bool,
    ):
        self.ticket, self.index, self.ids, self.left = ticket, index, list(ids), max_tokens
        self.sampling, self.text, self.one_by_one = sampling, StreamingDetokenizer(stop), one_by_one
        self.size = 1 if one_by_one else FIRST_CHUNK
        self.since = time.monotonic()

    def advance(self, new: list[int], content: bytes, reason: str, log_probability: float) -> bool:
        """Takes a chunk's result; says whether the text goes on."""
        self.ids += new
        self.left -= len(new)
        if not self.one_by_one:
            self.size = min(2 * self.size, LARGEST_CHUNK)
        text = self.text.add(content)
        finish = ""
        if self.text.stopped or reason == "stop":
            finish = "stop"
        elif self.left <= 0 or not new:
            finish = "length"
        if finish:
            text += self.text.end()
        known = log_probability if self.one_by_one and new else None
        self.ticket.put(TokenChunk(self.index, text, len(new), finish, known, content))
        return not finish


class Batcher:
    """The thread that writes.

    Args:
        client: the model.
        max_batch: the most texts in one call.
        max_queue: the most texts that wait.
        wait_seconds: how long the first text of an idle server waits for others.
        metrics: what is counted.
    """

    def __init__(self, client: Client, max_batch: int, max_queue: int, wait_seconds: float, metrics: Metrics):
        self._client, self._max_batch, self._max_queue = client, max_batch, max_queue
        self._wait_seconds, self._metrics = wait_seconds, metrics
        self._waiting: collections.deque[SequenceState] = collections.deque()
        self._changed = threading.Condition()
        self._active: list[SequenceState] = []
        self._stopping = self._ended = False
        self._mean_seconds = 1.0
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether texts are written."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begins to write."""
        self._thread.start()

    def stop(self) -> None:
        """Ends after the call of the model that is running; what is not finished gets an error."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def submit(self, rows: Sequence[SequenceState]) -> None:
        """Puts a request's texts at the end of the queue: all or none.

        Raises:
            QueueFullError: the queue has no room for them.
            ShutdownError: the server is stopping.
            BatcherStoppedError: nobody would ever write them.
        """
        with self._changed:
            if self._ended and not self._stopping:
                raise BatcherStoppedError
            if self._stopping:
                raise ShutdownError("the server is stopping")
            waiting = collections.deque(row for row in self._waiting if not row.ticket.cancelled)
            if len(waiting) + len(rows) > self._max_queue:
                raise QueueFullError(self.retry_seconds(len(waiting)))
            waiting.extend(rows)
            self._waiting = waiting
            self._metrics.waiting.set(len(waiting))
            self._changed.notify()

    def retry_seconds(self, waiting: int) -> int:
        """When a queue of that length may have room."""
        return min(max(math.ceil(self._mean_seconds * waiting / self._max_batch), 1), 60)

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._step()
        finally:
            # However the thread ends, nobody waits for it.
            with self._changed:
                self._ended = True
                rows = [*self._active, *self._waiting]
                self._active, self._waiting = [], collections.deque()
            for row in rows:
                row.ticket.put(ShutdownError("the server is stopping") if self._stopping else BatcherStoppedError())

    def _step(self) -> None:
        """Waits for texts and writes a chunk of each."""
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
                self._active[-1].since = time.monotonic()
            self._metrics.waiting.set(len(self._waiting))
        self._active = [row for row in self._active if not row.ticket.cancelled]
        self._metrics.active.set(len(self._active))
        if self._active:
            self._active = self._chunk(self._active)
            self._metrics.active.set(len(self._active))

    @staticmethod
    def _inputs(rows: list[SequenceState]) -> dict[str, list[Any]]:
        """What the signature gets for the rows."""
        # The smallest chunk that a row wants: nobody's first words wait for another's thirty-two.
        size = min((row.size for row in rows if not row.one_by_one), default=1)
        longest = max(len(row.ids) for row in rows)
        inputs: dict[str, list[Any]] = {
            "ids": [row.ids + [0] * (longest - len(row.ids)) for row in rows],
            "length": [len(row.ids) for row in rows],
            "max_new_tokens": [min(1 if row.one_by_one else size, row.left) for row in rows],
        }
        return {**inputs, **{name: [row.sampling[name] for row in rows] for name in rows[0].sampling}}

    def _chunk(self, rows: list[SequenceState]) -> list[SequenceState]:
        """One call of the model for all rows; returns those that go on."""
        begun = time.monotonic()
        try:
            answer = self._client.predict("stream", self._inputs(rows))
        except Exception as error:  # Whatever it is, these requests end with it and the thread goes on.
            for row in rows:
                row.ticket.put(error)
            return []
        self._metrics.chunk(len(rows), time.monotonic() - begun)
        left = []
        for number, row in enumerate(rows):
            try:
                new = answer["tokens"][number][: answer["num_tokens"][number]]
                reason, likely = answer["finish_reason"][number], answer["log_probability"][number]
                goes_on = row.advance(new, answer["text_bytes"][number], reason, likely)
            except Exception as error:  # An answer that makes no sense ends its request, not the thread.
                row.ticket.put(error)
                continue
            self._metrics.written.inc(len(new))
            if goes_on:
                left.append(row)
            else:
                self._mean_seconds += NEWEST * (time.monotonic() - row.since - self._mean_seconds)
        return left
