"""Documents in files: plain text, Markdown and JSON records, plain or compressed.

- Plain text and Markdown (`.txt`, `.md` and every suffix not listed here): a file is one document. Lines that are
  exactly `<|endoftext|>` separate documents (the TinyStories convention). Everything else is kept byte for byte, except
  a UTF-8 byte-order mark at the start.
- Records (`.jsonl`, `.ndjson`, `.json`; see `json_records`): objects with `text` or a dialogue (see `chat_formats`),
  and optionally an `id`; other fields are not used. A record that cannot be read is counted, or refused where the
  source is strict. A file in which most records cannot be read is refused.
- Blank documents are left out and counted. A file without a document is an error where it is the only one.
- A document of more than 64 MiB is cut, at empty lines where there are any, into parts that belong together.
"""

from __future__ import annotations

import codecs
import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from tfgpt.common.atomic_files import sha256_of_json
from tfgpt.common.errors import UserError
from tfgpt.corpus.sources import base
from tfgpt.corpus.sources.chat_formats import parse_messages, parse_tools
from tfgpt.corpus.sources.compressed import open_decompressed
from tfgpt.corpus.sources.file_hashes import FileHashes
from tfgpt.corpus.sources.json_records import (
    SkippedRecords,
    decode_utf8,
    is_records_file,
    records,
    skip_byte_order_mark,
)

SEPARATOR = "<|endoftext|>"
SEPARATOR_LINE = re.compile(rb"<\|endoftext\|>[^\S\n]*(?:\n|\Z)")
BLOCK_BYTES = 1 << 20


class FileSource(base.Source):
    """The documents of a list of files, in order.

    Example:

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "a.txt")
    ...     _ = path.write_text("One day.\\n<|endoftext|>\\nThe end.\\n")
    ...     [document["text"] for document in FileSource(str(path), [path], FileHashes()).documents()]
    ['One day.\\n', 'The end.\\n']
    """

    def __init__(self, spec: str, paths: Sequence[Path], hashes: FileHashes):
        super().__init__(spec)
        self.paths, self.hashes = list(paths), hashes
        self.size = sum(path.stat().st_size for path in self.paths)
        self.description = f"{len(self.paths)} file{'s' if len(self.paths) > 1 else ''}"

    def fingerprint(self) -> str:
        return sha256_of_json([[str(path), digest] for path, digest in zip(self.paths, self.hashes.of(self.paths))])

    def read(self) -> Iterator[base.Document]:
        start, count, separators, empty_files = 0, 0, 0, []
        for index, path in enumerate(self.paths, start=1):
            # `dropped` counts a document before this generator continues.
            self.position, num_read, dropped = start, 0, self.dropped.copy()
            skipped = SkippedRecords(self.strict)
            try:
                for document in self.file_documents(path, skipped):
                    num_read += 1
                    separators += document.get("text", "").count(SEPARATOR)
                    yield document
                skipped.raise_if_most(str(path))
            except UserError as error:
                if len(self.paths) == 1:
                    raise
                place = f"file {index} of {len(self.paths)}; documents read before it: {count:,}"
                raise UserError(f"{error} ({place})") from None
            dropped = self.dropped - dropped
            self.skipped.add(skipped)
            if num_read == dropped.total():
                empty_files.append(f"{path}: {describe_empty(dropped, skipped)}")
            count += num_read - dropped.total()
            start += path.stat().st_size
        self.position = start
        if self.paths and not count:
            others = f"; the other {len(self.paths) - 1} files hold none either" if empty_files[1:] else ""
            raise UserError(f"{empty_files[0]}{others}; leave it out")
        if separators:
            self.remarks.append(
                f"{self.spec}: {SEPARATOR} occurs {separators:,} times inside a line, where it is learned as "
                "letters; on a line by itself it separates documents"
            )
        if empty_files:
            number = f"{len(empty_files)} of {len(self.paths)} files {'holds' if len(empty_files) == 1 else 'hold'}"
            self.remarks.append(f"{self.spec}: {number} nothing to learn from, the first: {empty_files[0]}")

    def file_documents(self, path: Path, skipped: SkippedRecords) -> Iterator[base.Document]:
        start, name = self.position, str(path)
        with open_decompressed(path) as (stream, file):
            read = record_documents(stream, name, skipped) if is_records_file(path) else plain_text(stream, name)
            for document in read:
                self.position = start + file.tell()
                yield document


def describe_empty(dropped: Mapping[str, int], skipped: SkippedRecords) -> str:
    reasons = [f"{count:,} {reason}" for reason, count in dropped.items()]
    reasons += [f"{skipped.num_skipped:,} that cannot be read"] if skipped.num_skipped else []
    if not reasons:
        return "the file is empty"
    if set(dropped) == {"empty"} and not skipped.num_skipped:
        return "holds no document (only blank text)"
    return f"holds no document that can be used ({', '.join(reasons)})"


def record_documents(stream: BinaryIO, name: str, skipped: SkippedRecords) -> Iterator[base.Document]:
    for place, value in records(stream, name, skipped):
        try:
            yield from parse_record(value, name, place)
        except UserError as error:
            skipped.skip(error)


def parse_record(value: Any, name: str, place: str) -> Iterator[base.Document]:
    """Yields the document of a record, in parts when it is very long."""
    if not isinstance(value, dict):
        raise UserError(f"{place}: {base.json_type(value)}, not an object with 'text' or 'messages'")
    identity = parse_id(value.get("id"), place)
    messages = parse_messages(value, place)
    if messages is not None:
        yield base.with_id({"messages": messages, **parse_tools(value, place), "source": name}, identity)
    elif "text" in value:
        yield from base.text_documents(base.validate_text(value["text"], place), name, identity)
    else:
        fields = ", ".join(list(value)[:10]) or "none"
        raise UserError(
            f"{place}: neither 'text' nor 'messages' in this object (its fields: {fields}); dialogues may also have "
            "'conversations' (ShareGPT) or 'instruction' and 'output' (Alpaca)"
        )


def parse_id(value: Any, place: str) -> str | None:
    """Returns a record's id as text. Numbers count, as tables write them: 7.0 is 7, NaN is absent."""
    if value is None or value != value:
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise UserError(f"{place}: 'id' is {base.json_type(value)}, not a string or a number")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return base.validate_text(str(value), place, "id")


def plain_text(stream: BinaryIO, name: str) -> Iterator[base.Document]:
    """Yields the documents of a plain text: cut at separator lines, very long ones in parts."""
    offset, line, content = skip_byte_order_mark(stream), 1, bytearray()
    part, identity = 0, None
    refuse_utf16(stream.peek(1 << 12)[: 1 << 12], name)  # type: ignore[attr-defined]
    for more, separator in split_documents(stream):
        content += more
        while len(content) > base.LARGEST_DOCUMENT_BYTES or (content and separator is not None):
            end = base.part_end(content) if len(content) > base.LARGEST_DOCUMENT_BYTES else len(content)
            text = decode_utf8(content[:end], name, offset, line)
            offset, line = offset + end, line + content.count(b"\n", 0, end)
            del content[:end]
            document = base.with_id({"text": text, "source": name}, identity)
            identity = document["id"]
            yield {**document, "id": base.part_id(identity, part)} if part or content or separator is None else document
            part += 1
        if separator is not None:
            offset, line, part, identity = offset + separator, line + 1, 0, None


def split_documents(stream: BinaryIO) -> Iterator[tuple[bytes, int | None]]:
    """Yields pieces of a document; with its last one the number of bytes of the separator line, else None."""
    for lines, line_start in read_blocks(stream):
        position = 0
        for match in SEPARATOR_LINE.finditer(lines):
            start = match.start()
            if lines[start - 1 : start] == b"\n" if start else line_start:
                yield lines[position:start], len(match[0])
                position = match.end()
        yield lines[position:], None
    yield b"", 0


def read_blocks(stream: BinaryIO) -> Iterator[tuple[bytes, bool]]:
    """Yields blocks that end with a line (unless it is longer), and whether each begins with a line."""
    rest, line_start = b"", True
    while block := stream.read(BLOCK_BYTES):
        block = rest + block
        end = block.rfind(b"\n") + 1 or len(block)
        yield block[:end], line_start
        rest, line_start = block[end:], block.endswith(b"\n", 0, end)
    if rest:
        yield rest, line_start


def refuse_utf16(start: bytes, name: str) -> None:
    """Refuses UTF-16 without a byte-order mark: valid UTF-8 in which at least a quarter of the bytes is 0."""
    with contextlib.suppress(UnicodeDecodeError):
        codecs.getincrementaldecoder("utf-8")().decode(start)
        if start.count(b"\0") * 4 < max(1, len(start)):
            return
        order = "LE" if start[1::2].count(b"\0") >= start[::2].count(b"\0") else "BE"
        raise UserError(f"{name}: looks like UTF-16 (zero bytes); convert it with iconv -f UTF-16{order} -t UTF-8")
