"""Streaming detokenizer: whole characters from the bytes of tokens, cut before stop strings. No TensorFlow."""

from __future__ import annotations

import codecs
import copy
from collections.abc import Sequence


class StreamingDetokenizer:
    """Converts the bytes of a text's tokens to text, as early as the text is certain.

    Bytes that may begin a character or a stop string are held back. The returned pieces, joined, are the bytes up to
    the cut, decoded as UTF-8 with U+FFFD for invalid bytes, for any boundaries of the tokens.

    Args:
        stop: strings before which the text ends. The cut is at the start of the stop string that is complete first
            (the longest one, if several are complete at once).

    Example:

    >>> detokenizer = StreamingDetokenizer(stop=["!"])
    >>> detokenizer.add(b"Caf\\xc3"), detokenizer.add(b"\\xa9! Bar"), detokenizer.stopped
    ('Caf', 'é', True)
    """

    def __init__(self, stop: Sequence[str] = ()):
        # Stop strings are compared as bytes: a UTF-8 string occurs in UTF-8 text only at character boundaries.
        self._stop = [text.encode() for text in stop]
        self._longest = max(map(len, self._stop), default=0)
        self._held = b""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.stopped = False

    def add(self, token: bytes) -> str:
        """Adds a token and returns the text that is certain; ignores tokens after a stop string (`stopped`)."""
        if self.stopped:
            return ""
        checked = len(self._held)
        self._held += token
        # The first `checked` bytes contain no complete stop string.
        found = [
            (start + len(stop), start)
            for stop in self._stop
            if (start := self._held.find(stop, max(0, checked - len(stop) + 1))) >= 0
        ]
        if found:
            self.stopped = True
            text, self._held = self._held[: min(found)[1]], b""
            return self._decoder.decode(text, final=True)
        # The last bytes may begin a stop string.
        starts = range(max(0, len(self._held) - self._longest + 1), len(self._held))
        possible = (start for start in starts if any(stop.startswith(self._held[start:]) for stop in self._stop))
        certain = next(possible, len(self._held))
        text, self._held = self._held[:certain], self._held[certain:]
        return self._decoder.decode(text)

    def extended(self, token: bytes) -> StreamingDetokenizer:
        other = copy.copy(self)
        other._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        other._decoder.setstate(self._decoder.getstate())
        other.add(token)
        return other

    def end(self) -> str:
        """Returns the text that is still held back when no token follows."""
        if self.stopped:
            return ""
        text, self._held = self._held, b""
        return self._decoder.decode(text, final=True)


def detokenize(tokens: Sequence[bytes], stop: Sequence[str] = ()) -> str:
    """Returns the text of tokens, cut before the stop string that is complete first."""
    detokenizer = StreamingDetokenizer(stop)
    return "".join([*(detokenizer.add(token) for token in tokens), detokenizer.end()])
