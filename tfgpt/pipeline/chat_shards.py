"""Conversations as ids on disk: cut at turn borders to the length of a row, with the weight of each target.

A conversation is kept in parts that fit a row. One that fits is a part of its own. A longer one is cut before what a
user says: each part is a run of whole exchanges, and begins (unless `repeat_system` is off) with the system message
again, so that it reads as a conversation. Only an exchange that alone is longer than a row loses its end; one in which
nothing of the assistant's is left then is dropped. A part ends with the last token that counts: line ends behind the
last end of turn, and a user's word that nobody answers, teach nothing.

A directory holds `tokens.bin` (uint16 or uint32), `weights.bin` (uint8, of each token as a target), `parts.jsonl` (the
messages of each part and the tools that may be called in it, for augmentation and for people), `index.npy` and
`manifest.json`.
"""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfgpt.common.atomic_files import atomic_directory, read_json, sha256_of_file, sha256_of_json, write_json
from tfgpt.common.errors import UserError
from tfgpt.common.progress import Progress
from tfgpt.pipeline.token_shards import DamagedShards
from tfgpt.tokenization.chat_template import encode_messages
from tfgpt.tokenization.tokenizer import Tokenizer

FORMAT = "tfgpt conversations"
FORMAT_VERSION = 2
FILES = ("tokens.bin", "weights.bin", "parts.jsonl", "index.npy")

Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]] | None


@dataclasses.dataclass(frozen=True)
class ChatExample:
    """What goes into a row together.

    Attributes:
        ids: [n + 1] int32, at most a row's length and one.
        weights: [n + 1] float32 of each id as a target; the last is above 0.
        messages: what was encoded.
        tools: what may be called in it.
    """

    ids: np.ndarray
    weights: np.ndarray
    messages: Messages
    tools: Tools


def trimmed(ids: np.ndarray, weights: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and weights up to the last that counts, at most `length` + 1 of them; empty when none counts."""
    ids, weights = ids[: length + 1], weights[: length + 1]
    counted = np.flatnonzero(weights[1:])
    end = counted[-1] + 2 if len(counted) else 0
    return ids[:end], weights[:end]


def exchanges(messages: Messages) -> tuple[list[Mapping[str, Any]], list[list[Mapping[str, Any]]]]:
    """The system message (or none), and the rest in runs that begin where a user (or the system) speaks anew.

    What tools answer belongs to the run in which they were called.
    """
    system = [message for message in messages[:1] if message["role"] == "system"]
    runs: list[list[Mapping[str, Any]]] = []
    for message in messages[len(system) :]:
        answered = bool(runs) and runs[-1][-1]["role"] in ("assistant", "tool")
        if not runs or (message["role"] in ("user", "system") and answered):
            runs.append([])
        runs[-1].append(message)
    return system, runs


class ConversationSplitter:
    """Encodes conversations in parts.

    Args:
        tokenizer: with its chat template.
        length: T, tokens of a row.
        repeat_system: every part begins with the system message.

    Attributes:
        counts: of "cut" conversations, "shortened" exchanges, and what was dropped by reason.
    """

    def __init__(self, tokenizer: Tokenizer, length: int, repeat_system: bool):
        self.tokenizer, self.length, self.repeat_system = tokenizer, length, repeat_system
        self.counts: collections.Counter[str] = collections.Counter()

    def parts(self, messages: Messages, tools: Tools = None) -> Iterator[ChatExample]:
        """The parts of a conversation, in order."""
        try:
            ids, weights = encode_messages(self.tokenizer, messages, tools=tools)
            whole = trimmed(ids, weights, len(ids))
            if len(whole[0]) <= self.length + 1:
                yield from self.useful(ChatExample(*whole, messages, tools))
                return
            self.counts["cut"] += 1
            yield from self.cut(messages, tools)
        except UserError as error:
            self.counts[f"dropped: {error}"] += 1

    def cut(self, messages: Messages, tools: Tools = None) -> Iterator[ChatExample]:
        """As many exchanges in each part as fit."""
        system, runs = exchanges(messages)
        first = 0
        while first < len(runs):
            # At least one exchange; then one more as long as all of them fit.
            last, part = first, None
            while last < len(runs):
                said = [*system, *(message for run in runs[first : last + 1] for message in run)]
                ids, weights = encode_messages(self.tokenizer, said, tools=tools)
                longer = ChatExample(*trimmed(ids, weights, len(ids)), said, tools)
                if len(longer.ids) > self.length + 1:
                    break
                part, last = longer, last + 1
            if part is None:
                part = ChatExample(*trimmed(ids, weights, self.length), said, tools)
                last = first + 1
                if len(part.ids):
                    self.counts["shortened"] += 1
            yield from self.useful(part)
            first = last
            if not self.repeat_system:
                system, tools = [], None

    def useful(self, part: ChatExample) -> Iterator[ChatExample]:
        """The part, unless nothing in it is learned."""
        if len(part.ids):
            yield part
        else:
            self.counts["dropped: nothing of the assistant's"] += 1


class ChatShards:
    """An opened directory of conversations.

    Attributes:
        directory: where they are.
        manifest: counts and hashes.
        fingerprint: SHA-256 of the manifest, and so of all content.
        lengths: [parts] int64, places in a row that each part takes: its ids less the last, which is only a target.
        learned: [parts] int64, targets that count.
        sources: [parts] int64, number of each part's source in `source_names`.
        source_names: what the user wrote.
        origin: what they were made from, for error lines; who makes them from documents says it.
    """

    def __init__(self, directory: Path, manifest: Mapping[str, Any]):
        self.directory, self.manifest = directory, manifest
        self.fingerprint = sha256_of_json(manifest)
        self.origin = str(directory)
        self.source_names: list[str] = manifest["sources"]
        self.offsets, self.lines, learned, sources = np.load(directory / "index.npy")
        self.learned, self.sources = learned[:-1], sources[:-1]
        self.lengths = np.diff(self.offsets) - 1
        count = int(self.offsets[-1])
        self.ids = mapped(directory / "tokens.bin", manifest["dtype"], count)
        self.weights = mapped(directory / "weights.bin", "uint8", count)
        self.text = mapped(directory / "parts.jsonl", "uint8", int(self.lines[-1]))

    def __len__(self) -> int:
        return len(self.lengths)

    @classmethod
    def open(cls, directory: Path) -> ChatShards:
        """Opens a directory after checking it.

        Raises:
            DamagedShards: something is missing or is not what the manifest says.
        """
        remedy = f"delete {directory} and run again"
        path = directory / "manifest.json"
        try:
            manifest = read_json(path)
            known = manifest["format"] == FORMAT and manifest["format_version"] == FORMAT_VERSION
        except (UserError, KeyError, TypeError) as error:
            raise DamagedShards(f"{path}: no manifest of conversations ({error}); {remedy}") from error
        if not known:
            raise DamagedShards(f"{path}: not a manifest of conversations that this version reads; {remedy}")
        for name, digest in manifest["sha256"].items():
            if not (directory / name).is_file() or sha256_of_file(directory / name) != digest:
                raise DamagedShards(
                    f"{directory / name}: missing or damaged (its sha256 is not the manifest's); {remedy}"
                )
        return cls(directory, manifest)

    def part(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids and weights of a part, each [lengths[number] + 1]."""
        start, end = self.offsets[number], self.offsets[number + 1]
        return self.ids[start:end], self.weights[start:end]

    def dialogue(self, number: int) -> dict[str, Any]:
        """What a part says: `messages`, and the `tools` that may be called in it."""
        return json.loads(self.text[self.lines[number] : self.lines[number + 1]].tobytes())

    def dialogues(self) -> Iterator[dict[str, Any]]:
        """What every part says, in order."""
        return map(self.dialogue, range(len(self)))


def mapped(path: Path, dtype: str, count: int) -> np.ndarray:
    """A file of numbers as an array over its memory map."""
    if not count:
        return np.zeros(0, dtype)
    return np.asarray(np.memmap(path, np.dtype(dtype).newbyteorder("<"), mode="r", shape=(count,)))


def write_conversations(
    documents: Iterable[Mapping[str, Any]],
    tokenizer: Tokenizer,
    directory: Path,
    *,
    length: int,
    repeat_system: bool,
    sources: Mapping[str, str],
    num_documents: int | None = None,
    title: str = "encoding",
) -> ChatShards:
    """Encodes documents and writes them.

    Args:
        documents: `{"messages": …, "source": …}`, read once.
        tokenizer: with its chat template.
        directory: appears when it is complete.
        length: T, tokens of a row.
        repeat_system: as `ConversationSplitter`'s.
        sources: a document's source → what the user wrote.
        num_documents: for the progress bar.
        title: heads it.

    Raises:
        UserError: a document that is no conversation; the line names its source.
    """
    cutter = ConversationSplitter(tokenizer, length, repeat_system)
    dtype = np.dtype("uint16" if tokenizer.vocabulary_size <= 1 << 16 else "uint32")
    names = list(dict.fromkeys(sources.values()))
    numbers = {name: number for number, name in enumerate(names)}
    offsets, lines, learned, of_source = [0], [0], list[int](), list[int]()
    conversations = 0
    with atomic_directory(directory) as temporary:
        with (
            open(temporary / "tokens.bin", "wb") as tokens,
            open(temporary / "weights.bin", "wb") as weights,
            open(temporary / "parts.jsonl", "wb") as parts,
            Progress(num_documents, "document", title) as progress,
        ):
            for document in documents:
                progress.advance(1)
                if "messages" not in document:
                    raise UserError(
                        f"{document['source']}: holds plain text ({document['text'][:40]!r}), and --objective=chat is "
                        "for conversations (messages); leave it out, or take --objective=pretrain"
                    )
                conversations += 1
                for part in cutter.parts(document["messages"], document.get("tools")):
                    tokens.write(part.ids.astype(dtype.newbyteorder("<")).tobytes())
                    weights.write((part.weights > 0).astype(np.uint8).tobytes())
                    dialogue = {"messages": part.messages, **({"tools": part.tools} if part.tools else {})}
                    line = json.dumps(dialogue, ensure_ascii=False).encode() + b"\n"
                    parts.write(line)
                    offsets.append(offsets[-1] + len(part.ids))
                    lines.append(lines[-1] + len(line))
                    learned.append(int((part.weights[1:] > 0).sum()))
                    of_source.append(numbers[sources[document["source"]]])
        # (4, parts + 1): where each part's ids and line begin, and the ends; its learned targets and source.
        np.save(temporary / "index.npy", np.array([offsets, lines, [*learned, 0], [*of_source, 0]], np.int64))
        manifest = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "dtype": dtype.name,
            "conversations": conversations,
            "parts": len(learned),
            "tokens": offsets[-1] - len(learned),
            "learned": sum(learned),
            "length": length,
            "counts": dict(sorted(cutter.counts.items())),
            "sources": names,
            "tokenizer_fingerprint": tokenizer.fingerprint,
            "sha256": {name: sha256_of_file(temporary / name) for name in FILES},
        }
        write_json(temporary / "manifest.json", manifest)
    return ChatShards.open(directory)
