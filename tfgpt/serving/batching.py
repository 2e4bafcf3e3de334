"""Continuous batching: the texts of many requests are generated together, one chunk of tokens at a time.

One thread calls the model's `stream` signature for all active texts. Between two calls, texts that are finished or
whose client disconnected leave the batch, and waiting texts join it.
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

from tfgpt.common.errors import UserError
from tfgpt.generation.detokenizer import StreamingDetokenizer
from tfgpt.serving.api_errors import BatcherStoppedError, QueueFullError, ShutdownError
from tfgpt.serving.client import FIRST_CHUNK, LARGEST_CHUNK, Client
from tfgpt.serving.prometheus_metrics import Metrics
from tfgpt.serving.tf_serving_transports import Outputs

# The weight of the newest text in the moving average of a text's duration.
NEWEST_WEIGHT = 0.2


@dataclasses.dataclass
class TokenChunk:
    """The new tokens of one text.

    Attributes:
        index: the number of the text in its request.
        text: whole characters, cut before a stop string; may be empty.
        num_tokens: the number of generated tokens.
        finish_reason: "stop", "length", or "" while the text continues.
        log_probabilities: the bytes and the log-probability of each token, if the request asks for them.
    """

    index: int
    text: str
    num_tokens: int
    finish_reason: str
    log_probabilities: list[tuple[bytes, float]] = dataclasses.field(default_factory=list)


class RequestHandle:
    """The chunks of a request's texts, or the error that ended it; created and read in the event loop."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[TokenChunk | Exception] = asyncio.Queue()
        self.cancelled = False
        self._loop = asyncio.get_running_loop()

    def put(self, event: TokenChunk | Exception) -> None:
        """Adds an event from the batcher's thread."""
        with contextlib.suppress(RuntimeError):  # The event loop is closed.
            self._loop.call_soon_threadsafe(self.events.put_nowait, event)

    def cancel(self) -> None:
        """Tells the batcher that the request needs no more chunks."""
        self.cancelled = True


@dataclasses.dataclass
class SequenceState:
    """A text that is being generated."""

    handle: RequestHandle  # the handle of its request
    index: int  # its number in the request
    ids: list[int]  # the prompt and the new tokens
    remaining: int  # the most tokens that may follow
    sampling: Mapping[str, Any]  # the sampling inputs of `stream` except max_new_tokens
    stop: Sequence[str]  # strings before which the text ends
    log_probabilities: bool  # whether the request asks for the log-probability of each token

    def __post_init__(self) -> None:
        self.detokenizer = StreamingDetokenizer(self.stop)
        self.chunk_size = FIRST_CHUNK
        self.start_time = time.monotonic()

    def advance(self, outputs: Outputs, row: int) -> bool:
        """Adds the new tokens of a row of `stream`'s outputs; returns whether the text continues.

        Raises:
            UserError: the request asks for log-probabilities, which exports made before 2026-11-28 do not output.
        """
        count = outputs["num_tokens"][row]
        new = outputs["tokens"][row][:count]
        contents, log_probabilities = [outputs["text_bytes"][row]], []
        if self.log_probabilities:
            if "token_log_probabilities" not in outputs:
                raise UserError("logprobs: this export does not output them; export the model again")
            contents = outputs["token_bytes"][row][:count]
            log_probabilities = list(zip(contents, outputs["token_log_probabilities"][row]))
        text, num_read = "", 0
        while num_read < len(contents) and not self.detokenizer.stopped:
            text += self.detokenizer.add(contents[num_read])
            num_read += 1
        self.ids = self.ids + new
        self.remaining -= count
        self.chunk_size = min(2 * self.chunk_size, LARGEST_CHUNK)
        finish_reason = ""
        if self.detokenizer.stopped or outputs["finish_reason"][row] == "stop":
            finish_reason = "stop"
        elif self.remaining <= 0 or not new:
            finish_reason = "length"
        if finish_reason:
            text += self.detokenizer.end()
        self.handle.put(TokenChunk(self.index, text, count, finish_reason, log_probabilities[:num_read]))
        return not finish_reason


class Batcher:
    """The queue of texts and the thread that generates them.

    Args:
        client: the model.
        max_batch: the most texts in one call.
        max_queue: the most texts that wait.
        wait_seconds: the time that the first text of an idle server waits for others.
        metrics: the counters.
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
        """True while the thread runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after its current call; unfinished texts receive an error."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def submit(self, sequences: Sequence[SequenceState]) -> None:
        """Appends all of a request's texts to the queue, or none of them.

        Raises:
            QueueFullError: the queue has no room for them.
            ShutdownError: the server is stopping.
            BatcherStoppedError: the thread has ended.
        """
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
        """Waits for texts and generates a chunk of each."""
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
        self._metrics.observe_call(len(sequences), time.monotonic() - start)
        unfinished = []
        for row, sequence in enumerate(sequences):
            try:
                continues = sequence.advance(outputs, row)
            except Exception as error:  # An invalid response ends its request, not the thread.
                sequence.handle.put(error)
                continue
            self._metrics.generated.inc(outputs["num_tokens"][row])
            if continues:
                unfinished.append(sequence)
            else:
                self._mean_seconds += NEWEST_WEIGHT * (time.monotonic() - sequence.start_time - self._mean_seconds)
        return unfinished


def stream_inputs(sequences: list[SequenceState]) -> dict[str, list[Any]]:
    """Returns the inputs of `stream` for the next chunk of all sequences."""
    # The smallest chunk that a sequence needs: the first words of one do not wait for 32 tokens of another.
    size = min(sequence.chunk_size for sequence in sequences)
    longest = max(len(sequence.ids) for sequence in sequences)
    return {
        "ids": [sequence.ids + [0] * (longest - len(sequence.ids)) for sequence in sequences],
        "length": [len(sequence.ids) for sequence in sequences],
        "max_new_tokens": [min(size, sequence.remaining) for sequence in sequences],
        **{name: [sequence.sampling[name] for sequence in sequences] for name in sequences[0].sampling},
    }
