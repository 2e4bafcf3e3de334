"""The interface of document sources, and the checks of a document."""

from __future__ import annotations

import abc
import collections
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from tfgpt.common.errors import UserError
from tfgpt.corpus.sources.json_records import SkippedRecords

# A longer document is handed on in parts, so that no step needs a whole book collection in memory.
LARGEST_DOCUMENT_BYTES = 64 * 2**20

Document = dict[str, Any]


class Source(abc.ABC):
    """A place that documents come from.

    A document is `{"text": str, "source": str, "id": str}` or `{"messages": [{"role": …, "content": …}, …],
    "source": str, "id": str}` (see `messages`), with the `tools` that may be called in it. Documents whose ids agree up
    to the first "#" belong together (parts of a long text, chapters of a book): a split by hash never separates them.
    A document without an id gets a hash of its content as its id.

    Attributes:
        spec: the source as the user wrote it.
        licence: the licence, for the data card.
        description: a few words for the data card.
        size: bytes to be read, or None when unknown; `position` is the number of bytes read so far.
        strict: whether a record that cannot be read is refused instead of counted in `skipped`.
        notes: lines about the files of a folder that are not read.
        dropped: the number of documents of the last reading that the source left out, by reason.
        kept, left_out: the number of those that the build used, and that it left out, by reason.
        skipped: the records that could not be read in the last reading.
        remarks: further lines about the last reading.
    """

    licence = "not recorded (the user's own choice of text)"
    description = ""

    def __init__(self, spec: str):
        self.spec = spec
        self.size: int | None = None
        self.strict = False
        self.notes: list[str] = []
        self.start_reading()

    def start_reading(self) -> None:
        self.position = self.kept = 0
        self.dropped: collections.Counter[str] = collections.Counter()
        self.left_out: collections.Counter[str] = collections.Counter()
        self.skipped = SkippedRecords(self.strict)
        self.remarks: list[str] = []

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Returns the hexadecimal SHA-256 of everything that decides the documents."""

    @abc.abstractmethod
    def read(self) -> Iterator[Document | str]:
        """Yields all documents in a fixed order, and the reason for each one that is left out."""

    def documents(self) -> Iterator[Document]:
        """Yields the documents that can be learned from; one at a time is in memory."""
        self.start_reading()
        for document in self.read():
            reason = document if isinstance(document, str) else reason_to_drop(document)
            if reason:
                self.dropped[reason] += 1
            elif isinstance(document, dict):
                yield document


def text_documents(text: str, source: str, identity: str | None = None) -> Iterator[Document]:
    """Yields the document of a text, in parts when it is longer than `LARGEST_DOCUMENT_BYTES`."""
    rest = text.encode("utf-8")
    if len(rest) <= LARGEST_DOCUMENT_BYTES:
        yield with_id({"text": text, "source": source}, identity)
        return
    part = 0
    while rest:
        end = part_end(rest) if len(rest) > LARGEST_DOCUMENT_BYTES else len(rest)
        document = with_id({"text": rest[:end].decode("utf-8"), "source": source}, identity)
        identity = document["id"]
        yield {**document, "id": part_id(identity, part)}
        rest, part = rest[end:], part + 1


def part_id(identity: str, part: int) -> str:
    """Returns the id of a part of a long document; the parts share what comes before the "#"."""
    return f"{identity}#part{part:05d}"


def part_end(content: bytes | bytearray) -> int:
    """Returns where to cut a long text: after the last empty line of its first part, else its last line, else
    character."""
    limit = LARGEST_DOCUMENT_BYTES
    for border in (b"\n\n", b"\r\n\r\n", b"\n"):
        found = content.rfind(border, limit // 2, limit)
        if found >= 0:
            return found + len(border)
    while limit > 1 and content[limit] & 0xC0 == 0x80:  # a UTF-8 continuation byte
        limit -= 1
    return limit


def with_id(document: Document, identity: str | None = None) -> Document:
    """Returns the document with its id, by default a hash of its content."""
    return {**document, "id": content_digest(document).hex() if identity is None else identity}


def content_digest(document: Mapping[str, Any]) -> bytes:
    """Returns 16 bytes of SHA-256 that are equal only for equal contents; a dialogue never equals a text."""
    if "text" in document:
        content = document["text"].encode("utf-8")
    else:
        turns: list[Any] = []
        for message in document["messages"]:
            more = {name: value for name, value in message.items() if name not in ("role", "content")}
            turns.append([message["role"], message["content"], *([more] if more else [])])
        turns += [document["tools"]] if document.get("tools") else []
        content = b"\0" + json.dumps(turns, ensure_ascii=False).encode("utf-8")
    return hashlib.sha256(content).digest()[:16]


def content_texts(document: Mapping[str, Any]) -> list[str]:
    """Returns the pieces of text in a document: one, or one per message; tools and calls as JSON."""
    if "text" in document:
        return [document["text"]]
    texts = [json.dumps(document["tools"], ensure_ascii=False)] if document.get("tools") else []
    return texts + [message_text(message) for message in document["messages"]]


def message_text(message: Mapping[str, Any]) -> str:
    """Returns the text of a message: reasoning, content, and calls as JSON."""
    calls = message.get("tool_calls")
    reasoning, content = message.get("reasoning_content") or "", message["content"] or ""
    return reasoning + content + (json.dumps(calls, ensure_ascii=False) if calls else "")


def validate_text(text: Any, place: str, field: str = "text") -> str:
    """Returns a text; raises `UserError` for another type or half a surrogate pair, which UTF-8 cannot express."""
    if not isinstance(text, str):
        raise UserError(f"{place}: {field!r} is {json_type(text)}, not a string")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = ord(text[error.start])
        raise UserError(
            f"{place}: {field!r} holds half a surrogate pair (\\u{half:04x}) at character {error.start}, "
            "which is not a character; repair the file"
        ) from None
    return text


def json_type(value: Any) -> str:
    """Returns the name of a value's JSON type, with its article."""
    if value is None:
        return "null"
    names = {bool: "true or false", int: "a number", float: "a number", str: "a string", list: "a list"}
    return names.get(type(value), "an object" if isinstance(value, Mapping) else type(value).__name__)


def reason_to_drop(document: Mapping[str, Any]) -> str | None:
    if not any(text.strip() for text in content_texts({**document, "tools": None})):
        return "empty"
    if "messages" in document and not any(message["role"] == "assistant" for message in document["messages"]):
        return "without a turn of the assistant"
    return None
