"""From a stream of tokens' bytes to text: whole characters only, cut before stop strings. No TensorFlow."""

from __future__ import annotations

import codecs
import copy
from collections.abc import Sequence


class StreamingDetokenizer:
    """Puts the bytes of one text's tokens together and gives out text as soon as it is sure.

    Bytes that may be the first part of a character or of a stop string are held back. The pieces given out,
    joined, are the bytes up to the cut, decoded as UTF-8 with U+FFFD for what is not valid, whatever the tokens'
    boundaries were.

    Args:
        stop: strings before which the text ends. It is cut where the stop string that is complete first begins
            (the longest one, where several are complete at once).
    """

    def __init__(self, stop: Sequence[str] = ()):
        # Stop strings are compared as bytes: a UTF-8 string occurs in UTF-8 text only at character boundaries.
        self._stop = [text.encode() for text in stop]
        self._longest = max(map(len, self._stop), default=0)
        self._held = b""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.stopped = False

    def add(self, token: bytes) -> str:
        """Takes the bytes of one more token; returns the text that is certain now, perhaps none.

        After a stop string was completed (`stopped`), bytes are ignored.
        """
        if self.stopped:
            return ""
        checked = len(self._held)
        self._held += token
        cut = self._cut(checked)
        if cut is not None:
            self.stopped = True
            text, self._held = self._held[:cut], b""
            return self._decoder.decode(text, final=True)
        sure = len(self._held) - self._possible_stop()
        text, self._held = self._held[:sure], self._held[sure:]
        return self._decoder.decode(text)

    def extended(self, token: bytes) -> StreamingDetokenizer:
        """The stream of a text that goes on with this token; this one stays as it is."""
        other = copy.copy(self)
        other._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        other._decoder.setstate(self._decoder.getstate())
        other.add(token)
        return other

    def end(self) -> str:
        """The text still held back, once no token follows."""
        if self.stopped:
            return ""
        text, self._held = self._held, b""
        return self._decoder.decode(text, final=True)

    def _cut(self, checked: int) -> int | None:
        """Where the first completed stop string begins; the first `checked` bytes hold none that is complete."""
        ends = [
            (position + len(stop), position)
            for stop in self._stop
            if (position := self._held.find(stop, max(0, checked - len(stop) + 1))) >= 0
        ]
        return min(ends)[1] if ends else None

    def _possible_stop(self) -> int:
        """How many of the last bytes may be the first part of a stop string."""
        for length in range(min(self._longest - 1, len(self._held)), 0, -1):
            tail = self._held[-length:]
            if any(stop.startswith(tail) for stop in self._stop):
                return length
        return 0


def text_of(tokens: Sequence[bytes], stop: Sequence[str] = ()) -> str:
    """The whole text of tokens given as bytes, cut before the stop string that is complete first."""
    stream = StreamingDetokenizer(stop)
    return "".join([*(stream.add(token) for token in tokens), stream.end()])
