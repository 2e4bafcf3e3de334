"""Readers of JSON Lines, JSON lists and lines of text, plain or compressed.

- JSON Lines: one JSON value per line. A byte-order mark at the start and blank lines are skipped.
- A JSON list (the first character of the file is `[`): each item is a record. The file is held in memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tfgpt.common.errors import UserError
from tfgpt.corpus.sources.compressed import format_suffix, open_decompressed

SUFFIXES = (".jsonl", ".ndjson", ".json")
LARGEST_LINE_BYTES = 2**30
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
MAX_ERRORS_SHOWN = 3
# The first bytes of other formats, and what to do with them.
FILE_STARTS = {
    **dict.fromkeys((b"\xff\xfe", b"\xfe\xff"), "it looks like UTF-16; convert it with iconv -f UTF-16 -t UTF-8"),
    b"\x1f\x8b": "it is compressed by gzip; give it a name that ends in .gz",
    b"\x28\xb5\x2f\xfd": "it is compressed by Zstandard; give it a name that ends in .zst",
}
WHITE_SPACE = re.compile(r"[ \t\r\n]*")


def is_records_file(path: Path) -> bool:
    """Returns whether a file's name ends in `.jsonl`, `.ndjson` or `.json`, compressed or not."""
    return format_suffix(path) in SUFFIXES


class SkippedRecords:
    """Counts records that cannot be used; with `strict`, refuses the first one.

    Attributes:
        read: the number of records so far, skipped ones included.
        num_skipped: the number of skipped records.
        first: the first few errors; each names its place.

    Example:

    >>> skipped = SkippedRecords()
    >>> skipped.read += 3
    >>> skipped.skip(UserError("a.jsonl:2: 'text' is null, not a string"))
    >>> skipped.describe("a.jsonl")[:34]
    'a.jsonl: 1 record is left out of 3'
    """

    def __init__(self, strict: bool = False):
        self.strict = strict
        self.read = self.num_skipped = 0
        self.first: list[str] = []

    def skip(self, error: UserError) -> None:
        """Counts a record; raises its error when strict."""
        if self.strict:
            raise error
        self.num_skipped += 1
        if len(self.first) < MAX_ERRORS_SHOWN:
            self.first.append(str(error))

    def add(self, other: SkippedRecords) -> None:
        """Adds the counts of another file."""
        self.read, self.num_skipped = self.read + other.read, self.num_skipped + other.num_skipped
        self.first = (self.first + other.first)[:MAX_ERRORS_SHOWN]

    def raise_if_most(self, name: str) -> None:
        """Raises `UserError` where more than half of the records were skipped: the file holds something else."""
        if self.num_skipped * 2 > self.read:
            raise UserError(
                f"{name}: {self.num_skipped:,} of its {self.read:,} records cannot be read; the first: {self.first[0]}"
            )

    def describe(self, name: str) -> str | None:
        """Returns a line about the skipped records of `name`, or None."""
        if not self.num_skipped:
            return None
        number = "1 record is" if self.num_skipped == 1 else f"{self.num_skipped:,} records are"
        errors = "; ".join([*self.first, *(["…"] if self.num_skipped > len(self.first) else [])])
        return f"{name}: {number} left out of {self.read:,} ({errors}); --strict stops there instead"


def read_records(path: Path, skipped: SkippedRecords | None = None) -> Iterator[tuple[str, Any]]:
    """Yields the place (FILE:LINE) and value of each record of a file.

    `skipped` counts the records that cannot be read; None refuses them.
    """
    with open_decompressed(path) as (stream, _):
        yield from records(stream, str(path), skipped or SkippedRecords(strict=True))


def records(stream: BinaryIO, name: str, skipped: SkippedRecords) -> Iterator[tuple[str, Any]]:
    """Yields what `read_records` does, of an open file."""
    offset, number = skip_byte_order_mark(stream), 0
    if stream.peek(1 << 10)[: 1 << 10].lstrip()[:1] == b"[":  # type: ignore[attr-defined]
        for place, value in list_items(stream, name, offset):
            skipped.read += 1
            yield place, value
        return
    while content := stream.readline(LARGEST_LINE_BYTES + 1):
        number += 1
        if len(content) > LARGEST_LINE_BYTES:
            raise UserError(f"{name}:{number}: a line of more than {LARGEST_LINE_BYTES} bytes; is this JSON Lines?")
        if content.strip():
            skipped.read += 1
            try:
                value = parse_json(decode_utf8(content, name, offset, number), f"{name}:{number}")
            except UserError as error:
                skipped.skip(error)
            else:
                yield f"{name}:{number}", value
        offset += len(content)


def parse_json(text: str, place: str) -> Any:
    """Returns the value of a JSON text."""
    text = text.strip("\r\n")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        problem = json_problem(error)
        if text.strip() == "{":
            problem = "an object that spans several lines; put each record on one line, or all of them into a list"
        raise UserError(f"{place}: not JSON ({problem})") from None


def json_problem(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg.removesuffix(' at')} at column {error.colno}"
    return str(error)


def list_items(stream: BinaryIO, name: str, offset: int) -> Iterator[tuple[str, Any]]:
    """Yields the place and value of each item of a file that holds one JSON list."""
    content = stream.read(LARGEST_LINE_BYTES + 1)
    if len(content) > LARGEST_LINE_BYTES:
        raise UserError(f"{name}: a list of more than {LARGEST_LINE_BYTES} bytes; make it JSON Lines")
    text = decode_utf8(content, name, offset, 1)
    decoder = json.JSONDecoder()
    line = counted = 0

    def skip_space(position: int) -> int:
        nonlocal line, counted
        position = WHITE_SPACE.match(text, position).end()  # type: ignore[union-attr]
        line, counted = line + text.count("\n", counted, position), position
        return position

    position = skip_space(0)
    after = skip_space(position + 1)
    if text[after : after + 1] == "]":
        position = after
    while text[position : position + 1] in ("[", ","):
        position = skip_space(position + 1)
        try:
            value, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            number = error.lineno if isinstance(error, json.JSONDecodeError) else line + 1
            raise UserError(f"{name}:{number}: not JSON ({json_problem(error)})") from None
        yield f"{name}:{line + 1}", value
        position = skip_space(end)
    if text[position : position + 1] != "]":
        raise UserError(f"{name}:{line + 1}: not JSON (an item is followed by neither a comma nor the closing bracket)")
    if skip_space(position + 1) < len(text):
        raise UserError(f"{name}:{line + 1}: not JSON (there is more after the list's closing bracket)")


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields the number, from 1, and text of each line of a UTF-8 file, plain or compressed, without line ends."""
    with open_decompressed(path) as (stream, _):
        offset = skip_byte_order_mark(stream)
        for number, content in enumerate(stream, start=1):
            yield number, decode_utf8(content, str(path), offset, number).removesuffix("\n").removesuffix("\r")
            offset += len(content)


def read_text(path: Path) -> str:
    """Returns the text of a UTF-8 file, plain or compressed, with its line ends."""
    with open_decompressed(path) as (stream, _):
        offset = skip_byte_order_mark(stream)
        return decode_utf8(stream.read(), str(path), offset, 1)


def skip_byte_order_mark(stream: BinaryIO) -> int:
    """Skips a UTF-8 byte-order mark; returns its number of bytes."""
    if stream.peek(3)[:3] != BYTE_ORDER_MARK:  # type: ignore[attr-defined]
        return 0
    return len(stream.read(3))


def decode_utf8(content: bytes | bytearray, name: str, offset: int, line: int) -> str:
    """Returns the text of some bytes of a file, of which the first is at `offset`, from 0, and in `line`, from 1."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line += content.count(b"\n", 0, error.start)
        hint = "convert it, for example with iconv -f WINDOWS-1252 -t UTF-8 (or its encoding)"
        if b"\0" in content[:4096]:
            hint = "it looks like a binary file; leave it out"
        for start, known in FILE_STARTS.items():
            if offset == 0 and content.startswith(start):
                hint = known
        byte = content[error.start]
        raise UserError(f"{name}: line {line}, byte {offset + error.start}: not UTF-8 (0x{byte:02x}); {hint}") from None
