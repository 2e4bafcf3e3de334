"""Documents in files: plain text, Markdown and JSON Lines, each also compressed; single files, folders and globs.

- Plain text and Markdown (`.txt`, `.md` and every suffix not listed here): a file is one document, unless it has
  lines that are exactly `<|endoftext|>` (the TinyStories convention): those lines are taken out and the file is cut
  there. Everything else is kept byte for byte, line ends too; only a UTF-8 byte-order mark at the very start, which
  is no text, is left out.
- Records (`.jsonl`, `.ndjson`, `.json`; see `records`): an object a line, or a list of objects, with `text` or a
  dialogue in one of the usual shapes (see `dialogue_shapes`), and an `id` if it has one; other fields are not used. A
  record that cannot be read is left out and counted, or refused where the source is strict; a file in which most are
  of that kind is refused.
- Blank documents are left out and counted. A file in which nothing is left is refused.
- Formats that hold text and are none (`formats`: tables, web pages, PDF, …) are refused by name.
- A document of more than 64 MiB is cut, at empty lines where there are any, into parts that belong together.
"""

from __future__ import annotations

import codecs
import collections
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from tfgpt.common.atomic_files import sha256_of_json
from tfgpt.common.errors import UserError
from tfgpt.corpus.sources import base, compressed
from tfgpt.corpus.sources.chat_formats import parse_messages, parse_tools
from tfgpt.corpus.sources.file_hashes import FileHashes
from tfgpt.corpus.sources.json_records import (
    SkippedRecords,
    decode_utf8,
    is_records_file,
    records,
    skip_byte_order_mark,
)

SEPARATOR = b"<|endoftext|>"
PIECE_BYTES = 1 << 20


class FileSource(base.Source):
    """The documents of a list of files, in order.

    Args:
        spec: what the user wrote.
        paths: the files.
        hashes: computes (and remembers) the files' hashes.
    """

    description = "files"

    def __init__(self, spec: str, paths: Sequence[Path], hashes: FileHashes):
        super().__init__(spec)
        self.paths, self.hashes = list(paths), hashes
        self.size = sum(size_of(path) for path in self.paths)
        self.description = f"{len(self.paths)} file{'s' if len(self.paths) > 1 else ''}"

    def fingerprint(self) -> str:
        return sha256_of_json([[str(path), digest] for path, digest in zip(self.paths, self.hashes.of(self.paths))])

    def documents(self) -> Iterator[base.Document]:
        self.start_reading()
        before, marks, nothing_in, total = 0, 0, [], 0
        for index, path in enumerate(self.paths, start=1):
            self.position = before
            kept, dropped, odd = 0, collections.Counter[str](), SkippedRecords(self.strict)
            try:
                for document in self.in_file(path, odd):
                    reason = base.reason_to_drop(document)
                    if reason:
                        dropped[reason] += 1
                    else:
                        kept += 1
                        marks += document.get("text", "").count(SEPARATOR.decode())
                        yield document
                odd.raise_if_most(str(path))
            except UserError as error:
                if len(self.paths) == 1:
                    raise
                place = f"file {index} of {len(self.paths)}; documents read before it: {total:,}"
                raise UserError(f"{error} ({place})") from None
            total += kept
            self.dropped.update(dropped)
            self.odd.add(odd)
            if not kept:
                nothing_in.append(f"{path}: {self.nothing_left(dropped, odd)}")
                if len(nothing_in) == len(self.paths):
                    others = f"; nor does another of the {len(self.paths)} files hold one" if nothing_in[1:] else ""
                    raise UserError(f"{nothing_in[0]}{others}; leave it out")
            before += size_of(path)
        self.position = before
        if marks:
            self.remarks.append(
                f"{self.spec}: {SEPARATOR.decode()} stands {marks:,} times inside a line, where it is learned as "
                "letters; on a line of its own it separates documents"
            )
        if nothing_in:
            number = f"{len(nothing_in)} of {len(self.paths)} files {'holds' if len(nothing_in) == 1 else 'hold'}"
            self.remarks.append(f"{self.spec}: {number} nothing to learn from, the first: {nothing_in[0]}")

    def nothing_left(self, dropped: Mapping[str, int], odd: SkippedRecords) -> str:
        """Why a file gave no document."""
        if not dropped and not odd.num_skipped:
            return "the file is empty"
        if set(dropped) == {"empty"} and not odd.num_skipped:
            return "holds no document (only blank text)"
        reasons = [f"{count:,} {reason}" for reason, count in dropped.items()]
        reasons += [f"{odd.num_skipped:,} that cannot be read"] if odd.num_skipped else []
        return f"holds no document that can be used ({', '.join(reasons)})"

    def in_file(self, path: Path, odd: SkippedRecords) -> Iterator[base.Document]:
        """The documents of one file, the useless ones too; odd records are counted."""
        before, name = self.position, str(path)
        with compressed.open_decompressed(path, name) as (stream, file):
            read = json_file(stream, name, odd) if is_records_file(path) else plain_text(stream, name)
            for document in read:
                self.position = before + file.tell()
                yield document


def json_file(stream: BinaryIO, name: str, odd: SkippedRecords) -> Iterator[base.Document]:
    """The documents of a file of records."""
    for place, value in records(stream, name, odd):
        try:
            yield from json_documents(value, name, place)
        except UserError as error:
            odd.skip(error)


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def plain_text(stream: BinaryIO, name: str) -> Iterator[base.Document]:
    """The documents of a plain text: cut at separator lines, very long ones in parts."""
    text = TextCutter(name, skip_byte_order_mark(stream))
    refuse_utf16(stream.peek(1 << 12)[: 1 << 12], name)  # type: ignore[attr-defined]
    for lines, line_start in whole_lines(stream):
        position = 0
        for start, end in separator_lines(lines, line_start):
            yield from text.add(lines[position:start])
            yield from text.end_document(end - start)
            position = end
        yield from text.add(lines[position:])
    yield from text.end_document(0)


def refuse_utf16(start: bytes, name: str) -> None:
    """Refuses UTF-16 without a byte-order mark, which for Latin letters is valid UTF-8 with a zero at each of them.

    Raises:
        UserError: a quarter or more of the first bytes is 0.
    """
    with contextlib.suppress(UnicodeDecodeError):
        codecs.getincrementaldecoder("utf-8")().decode(start)
        if start.count(b"\0") * 4 < max(1, len(start)):
            return
        order = "LE" if start[1::2].count(b"\0") >= start[::2].count(b"\0") else "BE"
        raise UserError(f"{name}: looks like UTF-16 (zero bytes); convert it with iconv -f UTF-16{order} -t UTF-8")


class TextCutter:
    """Gathers bytes and makes documents of them.

    Args:
        name: how the file is called in documents and error lines.
        offset: the byte of the file that comes first.
    """

    def __init__(self, name: str, offset: int):
        self.name, self.offset, self.line = name, offset, 1
        self.start_document()

    def start_document(self) -> None:
        self.pieces: list[bytes] = []
        self.length = self.part = 0
        self.identity: str | None = None

    def add(self, content: bytes) -> Iterator[base.Document]:
        """Takes more of the current document; gives out a part of it when it is very long."""
        if content:
            self.pieces.append(content)
            self.length += len(content)
        while self.length > base.LARGEST_DOCUMENT_BYTES:
            content = b"".join(self.pieces)
            cut = base.part_end(content)
            made = self.document(content[:cut])
            yield {**made, "id": base.part_id(str(self.identity), self.part)}
            self.pieces, self.length, self.part = [content[cut:]], len(content) - cut, self.part + 1

    def end_document(self, separator_bytes: int) -> Iterator[base.Document]:
        """Gives out the current document, if it has anything in it, and passes over the separator line after it."""
        if self.pieces:
            made = self.document(b"".join(self.pieces))
            identity = str(self.identity)
            yield {**made, "id": base.part_id(identity, self.part) if self.part else identity}
        self.offset += separator_bytes
        self.line += 1
        self.start_document()

    def document(self, content: bytes) -> base.Document:
        made: base.Document = {"text": decode_utf8(content, self.name, self.offset, self.line), "source": self.name}
        if self.identity is None:
            self.identity = base.content_id(made)
        self.offset += len(content)
        self.line += content.count(b"\n")
        return made


def whole_lines(stream: BinaryIO) -> Iterator[tuple[bytes, bool]]:
    """The stream in pieces that end where a line ends, and whether they begin where one begins.

    Only a line longer than a piece is cut.
    """
    rest, line_start = b"", True
    while block := stream.read(PIECE_BYTES):
        block = rest + block
        end = block.rfind(b"\n") + 1 or len(block)
        yield block[:end], line_start
        rest, line_start = block[end:], block.endswith(b"\n", 0, end)
    if rest:
        yield rest, line_start


def separator_lines(lines: bytes, line_start: bool) -> Iterator[tuple[int, int]]:
    """Where separator lines begin and end, the line end included."""
    start = lines.find(SEPARATOR)
    while start >= 0:
        end = lines.find(b"\n", start) + 1 or len(lines)
        begins_line = lines[start - 1 : start] == b"\n" if start else line_start
        if begins_line and not lines[start + len(SEPARATOR) : end].strip():
            yield start, end
        start = lines.find(SEPARATOR, end)


def json_documents(value: Any, name: str, place: str) -> Iterator[base.Document]:
    """The document (or the parts of a very long one) of a record."""
    if not isinstance(value, dict):
        raise UserError(f"{place}: {base.json_type(value)}, not an object with 'text' or 'messages'")
    identity = identity_of(value.get("id"), place)
    messages = parse_messages(value, place)
    if messages is not None:
        document: base.Document = {"messages": messages, **parse_tools(value, place), "source": name}
        yield {**document, "id": identity if identity is not None else base.content_id(document)}
    elif "text" in value:
        yield from base.text_documents(base.validate_text(value["text"], place), name, identity)
    else:
        fields = ", ".join(list(value)[:10]) or "none"
        raise UserError(
            f"{place}: neither 'text' nor 'messages' in this object (its fields: {fields}); dialogues may also have "
            "'conversations' (ShareGPT) or 'instruction' and 'output' (Alpaca)"
        )


def identity_of(value: Any, place: str) -> str | None:
    """A record's id as text; a number is one too, as tables write it (7.0 is 7, and "not a number" is no id)."""
    if value is None or value != value:
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise UserError(f"{place}: 'id' is {base.json_type(value)}, not a string or a number")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return base.validate_text(str(value), place, "id")
