"""Records in files: JSON Lines or a JSON list, plain or compressed; what every reader of such files in tfgpt uses.

- JSON Lines: a JSON value a line. A byte-order mark at the start and blank lines are skipped.
- A JSON list (the file's first character is `[`), whatever its lines: each of its items is a record. Such a file is
  held in memory whole.

A record that makes no sense is left out, counted and named by its line, unless its reader is strict.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tfgpt.common.errors import UserError
from tfgpt.corpus.sources import compressed

SUFFIXES = (".jsonl", ".ndjson", ".json")
LARGEST_LINE_BYTES = 2**30
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
MOST_NAMED = 3
WHITE_SPACE = re.compile(r"[ \t\r\n]*")


def is_records_file(path: Path) -> bool:
    """Whether a file's name says that it holds records: `.jsonl`, `.ndjson` or `.json`, compressed or not."""
    return compressed.format_suffix(path) in SUFFIXES


class SkippedRecords:
    """Records that cannot be used: left out and counted, or, when strict, refused at the first.

    Args:
        strict: refuse.

    Attributes:
        read: records seen so far, the odd ones too.
        num_skipped: how many of them were odd.
        first: what is wrong with the first few, each a line that names its place.
    """

    def __init__(self, strict: bool = False):
        self.strict = strict
        self.read = self.num_skipped = 0
        self.first: list[str] = []

    def skip(self, error: UserError) -> None:
        """Counts a record whose reading failed.

        Raises:
            UserError: the error itself, when strict.
        """
        if self.strict:
            raise error
        self.num_skipped += 1
        if len(self.first) < MOST_NAMED:
            self.first.append(str(error))

    def add(self, other: SkippedRecords) -> None:
        """Counts what another one counted."""
        self.read, self.num_skipped = self.read + other.read, self.num_skipped + other.num_skipped
        self.first = (self.first + other.first)[:MOST_NAMED]

    def raise_if_most(self, name: str) -> None:
        """Refuses a file of which more is odd than not: it is not what it is taken for.

        Raises:
            UserError: more than half of the records were left out.
        """
        if self.num_skipped * 2 > self.read:
            raise UserError(
                f"{name}: {self.num_skipped:,} of its {self.read:,} records cannot be read; the first: {self.first[0]}"
            )

    def describe(self, name: str) -> str | None:
        """A line about what was left out of `name`, or None."""
        if not self.num_skipped:
            return None
        number = "1 record is" if self.num_skipped == 1 else f"{self.num_skipped:,} records are"
        more = "" if self.num_skipped <= len(self.first) else "; …"
        return (
            f"{name}: {number} left out of {self.read:,} ({'; '.join(self.first)}{more}); --strict stops there instead"
        )


def read_records(path: Path, odd: SkippedRecords | None = None, name: str | None = None) -> Iterator[tuple[str, Any]]:
    """The records of a file.

    Args:
        path: the file.
        odd: counts what is left out; None refuses it.
        name: how error lines call the file; None takes the path.

    Yields:
        For each record its place, FILE:LINE, and its value.

    Raises:
        UserError: the file cannot be read, or, where nothing may be left out, one of its records.
    """
    name = name or str(path)
    with compressed.open_decompressed(path, name) as (stream, _):
        yield from records(stream, name, odd or SkippedRecords(strict=True))


def records(stream: BinaryIO, name: str, odd: SkippedRecords) -> Iterator[tuple[str, Any]]:
    """As `read_records`, of an open file."""
    offset, number = skip_byte_order_mark(stream), 0
    if stream.peek(1 << 10)[: 1 << 10].lstrip()[:1] == b"[":  # type: ignore[attr-defined]
        for place, value in list_items(stream, name, offset):
            odd.read += 1
            yield place, value
        return
    while content := stream.readline(LARGEST_LINE_BYTES + 1):
        number += 1
        if len(content) > LARGEST_LINE_BYTES:
            raise UserError(f"{name}:{number}: a line of more than {LARGEST_LINE_BYTES} bytes; is this JSON Lines?")
        if content.strip():
            odd.read += 1
            try:
                value = parse_json(decode_utf8(content, name, offset, number), f"{name}:{number}")
            except UserError as error:
                odd.skip(error)
            else:
                yield f"{name}:{number}", value
        offset += len(content)


def parse_json(text: str, place: str) -> Any:
    """The value of a JSON text.

    Raises:
        UserError: it is none; the line begins with the place.
    """
    text = text.strip("\r\n")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        words = json_problem(error)
        if text.strip() == "{":
            words = "an object that goes on in other lines; put each record on one line, or all of them into a list"
        raise UserError(f"{place}: not JSON ({words})") from None


def json_problem(error: ValueError | RecursionError) -> str:
    """What Python's reader says of a text that is no JSON."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg.removesuffix(' at')} at column {error.colno}"
    return str(error)


def list_items(stream: BinaryIO, name: str, offset: int) -> Iterator[tuple[str, Any]]:
    """The items of a file that holds one JSON list.

    Raises:
        UserError: no whole list: behind a mistake nobody knows where the next item begins.
    """
    content = stream.read(LARGEST_LINE_BYTES + 1)
    if len(content) > LARGEST_LINE_BYTES:
        raise UserError(f"{name}: a list of more than {LARGEST_LINE_BYTES} bytes; make it JSON Lines, an item a line")
    text = decode_utf8(content, name, offset, 1)
    item_at = json.JSONDecoder().raw_decode

    def behind_space(position: int) -> int:
        return WHITE_SPACE.match(text, position).end()  # type: ignore[union-attr]

    position = behind_space(0)
    line, counted, mark = 1, 0, "["
    while mark in ("[", ","):
        position = behind_space(position + 1)
        line, counted = line + text.count("\n", counted, position), position
        if mark == "[" and text[position : position + 1] == "]":
            mark = "]"
            break
        try:
            value, position = item_at(text, position)
        except (ValueError, RecursionError) as error:
            line = error.lineno if isinstance(error, json.JSONDecodeError) else line
            raise UserError(f"{name}:{line}: not JSON ({json_problem(error)})") from None
        yield f"{name}:{line}", value
        position = behind_space(position)
        mark = text[position : position + 1]
    if mark != "]":
        line += text.count("\n", counted, position)
        raise UserError(f"{name}:{line}: not JSON (the list goes on with neither a comma nor its closing bracket)")
    if text[position + 1 :].strip():
        line += text.count("\n", counted, behind_space(position + 1))
        raise UserError(f"{name}:{line}: not JSON (there is more behind the list's closing bracket)")


def read_lines(path: Path, name: str | None = None) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file, plain or compressed, numbered from 1, without their ends.

    Raises:
        UserError: the file cannot be read or is not UTF-8; the line names file and line.
    """
    name = name or str(path)
    with compressed.open_decompressed(path, name) as (stream, _):
        offset = skip_byte_order_mark(stream)
        for number, content in enumerate(stream, start=1):
            yield number, decode_utf8(content, name, offset, number).removesuffix("\n").removesuffix("\r")
            offset += len(content)


def read_text(path: Path, name: str | None = None) -> str:
    """The whole text of a UTF-8 file, plain or compressed, line ends as they are.

    Raises:
        UserError: the file cannot be read or is not UTF-8; the line names file and line.
    """
    name = name or str(path)
    with compressed.open_decompressed(path, name) as (stream, _):
        offset = skip_byte_order_mark(stream)
        return decode_utf8(stream.read(), name, offset, 1)


def skip_byte_order_mark(stream: BinaryIO) -> int:
    """Skips a UTF-8 byte-order mark; returns how many bytes that were."""
    if stream.peek(3)[:3] != BYTE_ORDER_MARK:  # type: ignore[attr-defined]
        return 0
    return len(stream.read(3))


def decode_utf8(content: bytes, name: str, offset: int, line: int) -> str:
    """The text of some bytes of a file.

    Args:
        content: the bytes.
        name: the file.
        offset: the byte of the file that comes first, from 0.
        line: the line that it is in, from 1.

    Raises:
        UserError: not UTF-8; the line names the file, the line and the byte.
    """
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line += content.count(b"\n", 0, error.start)
        hint = "convert it, for example with iconv -f WINDOWS-1252 -t UTF-8 (or what it was written in)"
        if offset == 0 and content[:2] in (b"\xff\xfe", b"\xfe\xff"):
            hint = "it looks like UTF-16; convert it with iconv -f UTF-16 -t UTF-8"
        elif offset == 0 and content[:2] == b"\x1f\x8b":
            hint = "it is compressed by gzip; give it a name that ends in .gz"
        elif offset == 0 and content[:4] == b"\x28\xb5\x2f\xfd":
            hint = "it is compressed by Zstandard; give it a name that ends in .zst"
        elif b"\0" in content[:4096]:
            hint = "it looks like no text at all; leave it out"
        byte = content[error.start]
        raise UserError(f"{name}: line {line}, byte {offset + error.start}: not UTF-8 (0x{byte:02x}); {hint}") from None
