"""Documents in files: plain text, Markdown and JSON Lines, each also compressed; single files, folders and globs.

- Plain text and Markdown (`.txt`, `.md` and every suffix not listed here): a file is one document, unless it has
  lines that are exactly `<|endoftext|>` (the TinyStories convention): those lines are taken out and the file is cut
  there. Everything else is kept byte for byte, line ends too; only a UTF-8 byte-order mark at the very start, which
  is no text, is left out.
- JSON Lines (`.jsonl`, `.ndjson`): an object a line, with `text` or a dialogue in one of the usual shapes (see
  `dialogue_shapes`), and an `id` if it has one; other fields are not used. UTF-8; a byte-order mark at the start is
  skipped; blank lines are skipped.
- Blank documents are left out and counted. A file in which nothing is left is refused.
- A document of more than 64 MiB is cut, at empty lines where there are any, into parts that belong together.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from tfgpt.common.errors import SettingError, UserError
from tfgpt.common.files import sha256_of_json
from tfgpt.corpus.sources import base, compressed
from tfgpt.corpus.sources.dialogue_shapes import messages_in, tools_in
from tfgpt.corpus.sources.fingerprints import FileHashes

SEPARATOR = b"<|endoftext|>"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
PIECE_BYTES = 1 << 20
LARGEST_LINE_BYTES = 2**30
JSON_LINES_SUFFIXES = (".jsonl", ".ndjson")


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
        self.dropped.clear()
        before = 0
        for path in self.paths:
            self.position = before
            kept = 0
            for document in self.in_file(path):
                reason = base.reason_to_drop(document)
                if reason:
                    self.dropped[reason] += 1
                else:
                    kept += 1
                    yield document
            if not kept:
                raise UserError(f"{path}: holds no document (only blank text); leave it out")
            before += size_of(path)
        self.position = before

    def in_file(self, path: Path) -> Iterator[base.Document]:
        """The documents of one file, the useless ones too."""
        read = json_lines if compressed.inner_suffix(path) in JSON_LINES_SUFFIXES else plain_text
        before = self.position
        with compressed.opened(path, str(path)) as (stream, file):
            if not first_bytes(stream):
                raise UserError(f"{path}: the file is empty; leave it out")
            for document in read(stream, str(path)):
                self.position = before + file.tell()
                yield document


def find_files(spec: str, flag: str) -> list[Path]:
    """The files that a path, a folder or a glob stands for, sorted by name.

    Of a folder every file is taken, in folders within it too, except what has a name that starts with a dot. A glob
    is read as Python's `glob` does, `**` included; folders that it matches are passed over.

    Raises:
        UserError: nothing is there.
    """
    path = Path(spec).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        found = sorted(files_under(path))
        if not found:
            raise SettingError(flag, f"{spec}: no file in this folder")
        return found
    if path.exists():
        raise SettingError(flag, f"{spec}: neither a file nor a folder")
    if not glob.has_magic(spec):
        raise SettingError(flag, f"{spec}: no such file or folder")
    matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
    found = [match for match in matches if match.is_file()]
    if not found:
        words = "matches folders only; add /** to take the files in them" if matches else "matches no file"
        raise SettingError(flag, f"{spec}: {words}")
    return found


def files_under(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(parent, name)
            if not name.startswith(".") and path.is_file():
                yield path


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def first_bytes(stream: BinaryIO) -> bytes:
    """What comes first, left to be read; empty for an empty stream."""
    return stream.peek(1)  # type: ignore[attr-defined]


def skip_byte_order_mark(stream: BinaryIO) -> int:
    """Skips a UTF-8 byte-order mark; returns how many bytes that were."""
    if stream.peek(3)[:3] != BYTE_ORDER_MARK:  # type: ignore[attr-defined]
        return 0
    return len(stream.read(3))


def plain_text(stream: BinaryIO, name: str) -> Iterator[base.Document]:
    """The documents of a plain text: cut at separator lines, very long ones in parts."""
    text = TextCutter(name, skip_byte_order_mark(stream))
    for lines, line_start in whole_lines(stream):
        position = 0
        for start, end in separator_lines(lines, line_start):
            yield from text.add(lines[position:start])
            yield from text.end_document(end - start)
            position = end
        yield from text.add(lines[position:])
    yield from text.end_document(0)


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
        made: base.Document = {"text": decoded(content, self.name, self.offset, self.line), "source": self.name}
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


def decoded(content: bytes, name: str, offset: int, line: int) -> str:
    """The text.

    Raises:
        UserError: not UTF-8; the line names the file, the byte and the line, counted from 0 and 1.
    """
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line += content.count(b"\n", 0, error.start)
        hint = "convert it, for example with iconv -t UTF-8"
        if offset == 0 and content[:2] in (b"\xff\xfe", b"\xfe\xff"):
            hint = "it looks like UTF-16; convert it with iconv -f UTF-16 -t UTF-8"
        elif b"\0" in content[:4096]:
            hint = "it looks like no text at all; leave it out"
        byte = content[error.start]
        raise UserError(f"{name}: line {line}, byte {offset + error.start}: not UTF-8 (0x{byte:02x}); {hint}") from None


def json_lines(stream: BinaryIO, name: str) -> Iterator[base.Document]:
    """The documents of a JSON Lines file."""
    offset, number = skip_byte_order_mark(stream), 0
    while content := stream.readline(LARGEST_LINE_BYTES + 1):
        number += 1
        place = f"{name}:{number}"
        if len(content) > LARGEST_LINE_BYTES:
            raise UserError(f"{place}: a line of more than {LARGEST_LINE_BYTES} bytes; is this JSON Lines?")
        if content.strip():
            yield from json_documents(decoded(content, name, offset, number), name, place)
        offset += len(content)


def json_documents(line: str, name: str, place: str) -> Iterator[base.Document]:
    """The document (or the parts of a very long one) in a line."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        words = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise UserError(f"{place}: not JSON ({words})") from None
    if not isinstance(value, dict):
        raise UserError(f"{place}: {base.kind_of(value)}, not an object with 'text' or 'messages'")
    identity = value.get("id")
    if identity is not None:
        if isinstance(identity, bool) or not isinstance(identity, (str, int)):
            raise UserError(f"{place}: 'id' is {base.kind_of(identity)}, not a string or a whole number")
        identity = base.checked_text(str(identity), place, "id")
    messages = messages_in(value, place)
    if messages is not None:
        document: base.Document = {"messages": messages, **tools_in(value, place), "source": name}
        yield {**document, "id": identity if identity is not None else base.content_id(document)}
    elif "text" in value:
        yield from base.text_documents(base.checked_text(value["text"], place), name, identity)
    else:
        fields = ", ".join(list(value)[:10]) or "none"
        raise UserError(
            f"{place}: neither 'text' nor 'messages' in this object (its fields: {fields}); dialogues may also have "
            "'conversations' (ShareGPT) or 'instruction' and 'output' (Alpaca)"
        )
