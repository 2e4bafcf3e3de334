"""What every source of documents offers, and the checks a document passes before it leaves its source."""

from __future__ import annotations

import abc
import collections
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from tfgpt.common.errors import UserError
from tfgpt.corpus.sources.json_records import SkippedRecords

# A document longer than this is handed on in parts, so that no step needs a whole book collection in memory.
LARGEST_DOCUMENT_BYTES = 64 * 2**20

Document = dict[str, Any]


class Source(abc.ABC):
    """One place that documents come from.

    A document is `{"text": str, "source": str, "id": str}` or `{"messages": [{"role": …, "content": …}, …],
    "source": str, "id": str}` (see `messages`), with the `tools` that may be called in it. Documents whose ids agree up
    to the first "#" belong together (parts of a long text, chapters of a book): a split by hash never separates them.
    Without an id of its own a document's id is a hash of its content.

    Attributes:
        spec: what the user wrote.
        licence: what is known of the licence, for the data card.
        description: a few words for the data card.
        size: bytes to be read, or None when unknown; `position` is how many were read so far.
        strict: whether a record that cannot be read is refused; else it is left out and counted in `odd`.
        notes: what a person should know of how the spec was taken: lines about what of a folder is left out.
        dropped: how many documents the source itself left out in the last reading, by reason.
        odd: the records that it could not read in the last reading.
        remarks: lines about what else was left out in the last reading.
        kept, duplicates, held_out: what the build did with the rest: used, left out as already seen, left out
            because they are in the validation text.
    """

    licence = "not recorded (the user's own choice of text)"
    description = ""

    def __init__(self, spec: str):
        self.spec = spec
        self.size: int | None = None
        self.strict = False
        self.notes: list[str] = []
        self.start_reading()
        self.kept = self.duplicates = self.held_out = 0

    def start_reading(self) -> None:
        """Forgets what an earlier reading counted."""
        self.position = 0
        self.dropped: collections.Counter[str] = collections.Counter()
        self.odd = SkippedRecords(self.strict)
        self.remarks: list[str] = []

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """The hexadecimal SHA-256 of everything that decides the documents."""

    @abc.abstractmethod
    def documents(self) -> Iterator[Document]:
        """Reads the documents, in a fixed order, without ever holding all of them.

        Raises:
            UserError: something in the source cannot be read; the line names the file and, where it can, the place.
        """


def content_digest(document: Mapping[str, Any]) -> bytes:
    """16 bytes that are equal exactly for documents of equal content (SHA-256, cut)."""
    return hashlib.sha256(content_bytes(document)).digest()[:16]


def content_bytes(document: Mapping[str, Any]) -> bytes:
    """The content in bytes; a dialogue is never equal to a text."""
    if "text" in document:
        return document["text"].encode("utf-8")
    turns: list[Any] = []
    for message in document["messages"]:
        more = {name: value for name, value in message.items() if name not in ("role", "content")}
        turns.append([message["role"], message["content"], *([more] if more else [])])
    turns += [document["tools"]] if document.get("tools") else []
    return b"\0" + json.dumps(turns, ensure_ascii=False).encode("utf-8")


def content_id(document: Mapping[str, Any]) -> str:
    """The id of a document that brings none."""
    return content_digest(document).hex()


def content_texts(document: Mapping[str, Any]) -> list[str]:
    """The pieces of text in a document: one, or one a message; tools and calls of them as JSON."""
    if "text" in document:
        return [document["text"]]
    texts = [json.dumps(document["tools"], ensure_ascii=False)] if document.get("tools") else []
    return texts + [message_text(message) for message in document["messages"]]


def message_text(message: Mapping[str, Any]) -> str:
    """What a message says: thoughts, content, and calls as JSON."""
    calls = message.get("tool_calls")
    thoughts, content = message.get("reasoning_content") or "", message["content"] or ""
    return thoughts + content + (json.dumps(calls, ensure_ascii=False) if calls else "")


def text_documents(text: str, source: str, identity: str | None = None) -> Iterator[Document]:
    """One document, or its parts when it is longer than `LARGEST_DOCUMENT_BYTES`."""
    # A character has at most 4 bytes: most texts need no counting.
    if len(text) * 4 <= LARGEST_DOCUMENT_BYTES or len(text.encode("utf-8")) <= LARGEST_DOCUMENT_BYTES:
        document = {"text": text, "source": source}
        yield {**document, "id": identity if identity is not None else content_id(document)}
        return
    rest = text.encode("utf-8")
    part = 0
    while rest:
        cut = part_end(rest) if len(rest) > LARGEST_DOCUMENT_BYTES else len(rest)
        document = {"text": rest[:cut].decode("utf-8"), "source": source}
        identity = identity if identity is not None else content_id(document)
        yield {**document, "id": part_id(identity, part)}
        rest, part = rest[cut:], part + 1


def part_id(identity: str, part: int) -> str:
    """The id of a part of a long document; parts share what stands before the "#"."""
    return f"{identity}#part{part:05d}"


def part_end(content: bytes) -> int:
    """Where to cut a long text: after the last empty line of its first part, else its last line, else character."""
    limit = LARGEST_DOCUMENT_BYTES
    for border in (b"\n\n", b"\r\n\r\n", b"\n"):
        found = content.rfind(border, limit // 2, limit)
        if found >= 0:
            return found + len(border)
    while limit > 1 and content[limit] & 0xC0 == 0x80:  # a UTF-8 continuation byte
        limit -= 1
    return limit


def validate_text(text: Any, place: str, field: str = "text") -> str:
    """The text itself.

    Raises:
        UserError: not a string, or one with half a surrogate pair, which has no UTF-8.
    """
    if not isinstance(text, str):
        raise UserError(f"{place}: {field!r} is {json_type(text)}, not a string")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = ord(text[error.start])
        raise UserError(
            f"{place}: {field!r} holds half a surrogate pair (\\u{half:04x}) at character {error.start}, "
            "which is no character; repair the file"
        ) from None
    return text


def json_type(value: Any) -> str:
    """What JSON calls a value."""
    if value is None:
        return "null"
    names = {bool: "true or false", int: "a number", float: "a number", str: "a string", list: "a list"}
    return names.get(type(value), "an object" if isinstance(value, Mapping) else type(value).__name__)


def reason_to_drop(document: Mapping[str, Any]) -> str | None:
    """Why a well-formed document is of no use, or None."""
    if "text" in document:
        return None if document["text"].strip() else "empty"
    if not any(message_text(message).strip() for message in document["messages"]):
        return "empty"
    if not any(message["role"] == "assistant" for message in document["messages"]):
        return "without a turn of the assistant"
    return None
