"""Chat shards: conversations as ids on disk, cut between turns to the length of a row, with the weight of each target.

A conversation longer than a row is cut before user messages: each part consists of whole exchanges, and begins (unless
`repeat_system` is off) with the system message again. Only an exchange that alone is longer than a row loses its end;
one that has no target left then is dropped. A part ends with its last target: line ends after the last end of turn, and
a user message without a reply, teach nothing.

A directory holds `tokens.bin` (uint16 or uint32), `weights.bin` (uint8, of each token as a target), `parts.jsonl` (the
messages of each part and the tools that may be called in it, for augmentation and for people), `index.npy` and
`manifest.json`.
"""

from __future__ import annotations

import collections
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tfgpt.common.atomic_files import atomic_directory, sha256_of_file, sha256_of_json, write_json
from tfgpt.common.errors import UserError
from tfgpt.common.progress import Progress
from tfgpt.pipeline.manifest import MANIFEST, check_files, read_manifest
from tfgpt.pipeline.memmap_array import memory_map
from tfgpt.pipeline.token_shards import TokenShards, token_dtype
from tfgpt.tokenization.chat_template import encode_messages
from tfgpt.tokenization.tokenizer import Tokenizer

FORMAT = "tfgpt conversations"
FORMAT_VERSION = 2
FILES = ("tokens.bin", "weights.bin", "parts.jsonl", "index.npy")

Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]] | None


class ChatShards:
    """An opened, checked directory of conversations.

    Attributes:
        fingerprint: SHA-256 of the manifest, and so of all content.
        lengths: [parts] int64, positions of a row that each part takes: its ids less the last, which is only a target.
        num_targets: [parts] int64, targets that count.
        sources: [parts] int64, number of each part's source in `source_names`.
        source_names: the sources as the user wrote them.
        origin: description of the sources, for error messages.

    Example:

    >>> import tempfile
    >>> from tfgpt.tokenization.train_tokenizer import byte_tokenizer
    >>> chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     documents, directory = [{"messages": chat, "source": "a"}], Path(folder, "shards")
    ...     shards = write_chat_shards(documents, byte_tokenizer(), directory, length=64, sources={"a": "a"})
    ...     len(shards), shards.num_targets.tolist()
    (1, [3])
    """

    def __init__(self, directory: Path, manifest: Mapping[str, Any]):
        self.directory, self.manifest = directory, manifest
        self.fingerprint = sha256_of_json(manifest)
        self.origin = str(directory)
        self.source_names: list[str] = manifest["sources"]
        self.offsets, self.lines, num_targets, sources = np.load(directory / "index.npy")
        self.num_targets, self.sources = num_targets[:-1], sources[:-1]
        self.lengths = np.diff(self.offsets) - 1
        self.ids = memory_map(directory / "tokens.bin", manifest["dtype"])
        self.weights = memory_map(directory / "weights.bin", "uint8")
        self.text = memory_map(directory / "parts.jsonl", "uint8")

    def __len__(self) -> int:
        return len(self.lengths)

    @classmethod
    def open(cls, directory: Path) -> ChatShards:
        """Opens a directory after checking it; raises `DamagedShards` if it differs from its manifest."""
        manifest = read_manifest(directory, FORMAT, FORMAT_VERSION)
        check_files(directory, [{"file": name, "sha256": digest} for name, digest in manifest["sha256"].items()])
        return cls(directory, manifest)

    def part(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns ids and weights of a part, each [lengths[number] + 1]."""
        start, end = self.offsets[number], self.offsets[number + 1]
        return self.ids[start:end], self.weights[start:end]

    def dialogue(self, number: int) -> dict[str, Any]:
        """Returns the `messages` of a part, and the `tools` that may be called in it."""
        return json.loads(self.text[self.lines[number] : self.lines[number + 1]].tobytes())

    def describe(self) -> str:
        counts = self.manifest
        return (
            f"{counts['conversations']:,} in {len(self):,} parts, {counts['tokens']:,} tokens, "
            f"{counts['learned']:,} of them the assistant's{describe_cuts(counts['counts'], '; ')}"
        )

    def summary(self) -> dict[str, Any]:
        """Returns the part of a run's provenance about these conversations."""
        counts = {name: self.manifest[name] for name in ("conversations", "parts", "tokens", "learned", "counts")}
        return {"fingerprint": self.fingerprint, "directory": str(self.directory), **counts}


def open_held_out(held_out: Mapping[str, Any], tokenizer: Tokenizer) -> TokenShards | ChatShards | None:
    """Opens what a run held out ("validation" under "data" in training.json), or raises `DamagedShards`.

    Returns:
        None if the run held out neither (a run on preferences, for example), if they are no longer in the cache or
        have changed, or if the tokenizer is another one.
    """
    directory = Path(held_out.get("directory") or "")
    if not held_out.get("directory") or not (directory / MANIFEST).is_file():
        return None
    holds_chats = f'"{FORMAT}"' in (directory / MANIFEST).read_text(encoding="utf-8", errors="replace")
    opened = ChatShards.open(directory) if holds_chats else TokenShards.open(directory)
    found = opened.fingerprint, opened.manifest["tokenizer_fingerprint"]
    return opened if found == (held_out.get("fingerprint"), tokenizer.fingerprint) else None


def write_chat_shards(
    documents: Iterable[Mapping[str, Any]],
    tokenizer: Tokenizer,
    directory: Path,
    *,
    length: int,
    repeat_system: bool = True,
    sources: Mapping[str, str],
    num_documents: int | None = None,
    title: str = "encoding",
) -> ChatShards:
    """Encodes conversations, writes them and opens these; raises `UserError` for a document without messages.

    Args:
        documents: `{"messages": …, "source": …}`, read once.
        tokenizer, directory: encodes in its chat template; the directory appears when it is complete.
        length: T, tokens of a row.
        repeat_system: begins every part of a conversation with the system message.
        sources: a document's source → the source as the user wrote it.
        num_documents, title: total and title of the progress bar.
    """
    splitter = ConversationSplitter(tokenizer, length, repeat_system)
    dtype = token_dtype(tokenizer)
    names = list(dict.fromkeys(sources.values()))
    offsets, lines, num_targets, source_numbers = [0], [0], list[int](), list[int]()
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
                for part in splitter.split(document["messages"], document.get("tools")):
                    tokens.write(part.ids.astype(dtype.newbyteorder("<")).tobytes())
                    weights.write((part.weights > 0).astype(np.uint8).tobytes())
                    dialogue = {"messages": part.messages, **({"tools": part.tools} if part.tools else {})}
                    line = json.dumps(dialogue, ensure_ascii=False).encode() + b"\n"
                    parts.write(line)
                    offsets.append(offsets[-1] + len(part.ids))
                    lines.append(lines[-1] + len(line))
                    num_targets.append(int((part.weights[1:] > 0).sum()))
                    source_numbers.append(names.index(sources[document["source"]]))
        # (4, parts + 1): first id and first byte of each part, and the ends; its number of targets, its source.
        index = [offsets, lines, [*num_targets, 0], [*source_numbers, 0]]
        np.save(temporary / "index.npy", np.array(index, np.int64))
        manifest = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "dtype": dtype.name,
            "conversations": conversations,
            "parts": len(num_targets),
            "tokens": offsets[-1] - len(num_targets),
            "learned": sum(num_targets),
            "length": length,
            "counts": dict(sorted(splitter.counts.items())),
            "sources": names,
            "tokenizer_fingerprint": tokenizer.fingerprint,
            "sha256": {name: sha256_of_file(temporary / name) for name in FILES},
        }
        write_json(temporary / MANIFEST, manifest)
    return ChatShards.open(directory)


class ChatExample(NamedTuple):
    """A part of a conversation: ids int32 [n + 1], n at most a row's length, and their weights as targets."""

    ids: np.ndarray
    weights: np.ndarray
    messages: Messages
    tools: Tools


class ConversationSplitter:
    """Encodes conversations in parts; counts "cut" and dropped conversations, and "shortened" exchanges."""

    def __init__(self, tokenizer: Tokenizer, length: int, repeat_system: bool):
        self.tokenizer, self.length, self.repeat_system = tokenizer, length, repeat_system
        self.counts: collections.Counter[str] = collections.Counter()

    def split(self, messages: Messages, tools: Tools = None) -> Iterator[ChatExample]:
        """Yields the parts of a conversation, in order."""
        try:
            whole = self.encode(messages, tools)
            fits = len(whole.ids) <= self.length + 1
            if not fits:
                self.counts["cut"] += 1
            for part in [whole] if fits else self.cut(messages, tools):
                if len(part.ids):
                    yield part
                else:
                    self.counts["dropped: nothing of the assistant's"] += 1
        except UserError as error:
            self.counts[f"dropped: {error}"] += 1

    def encode(self, messages: Messages, tools: Tools, length: int | None = None) -> ChatExample:
        ids, weights = encode_messages(self.tokenizer, messages, tools=tools)
        return ChatExample(*drop_unlearned_tail(ids, weights, length or len(ids)), messages, tools)

    def cut(self, messages: Messages, tools: Tools = None) -> Iterator[ChatExample]:
        """Yields parts with as many exchanges as fit."""
        system, exchanges = split_exchanges(messages)
        first = 0
        while first < len(exchanges):
            part, last = None, first
            while last < len(exchanges):
                said = [*system, *(message for run in exchanges[first : last + 1] for message in run)]
                longer = self.encode(said, tools)
                if len(longer.ids) > self.length + 1:
                    break
                part, last = longer, last + 1
            if part is None:
                part, last = self.encode(said, tools, self.length), first + 1
                if len(part.ids):
                    self.counts["shortened"] += 1
            yield part
            first = last
            if not self.repeat_system:
                system, tools = [], None


def drop_unlearned_tail(ids: np.ndarray, weights: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns ids and weights up to the last target, at most `length` + 1 of them; empty without a target."""
    ids, weights = ids[: length + 1], weights[: length + 1]
    targets = np.flatnonzero(weights[1:])
    end = targets[-1] + 2 if len(targets) else 0
    return ids[:end], weights[:end]


def split_exchanges(messages: Messages) -> tuple[list[Mapping[str, Any]], list[list[Mapping[str, Any]]]]:
    """Returns the system message (or none), and the others in runs; answers of tools are in the run of the call."""
    system = [message for message in messages[:1] if message["role"] == "system"]
    runs: list[list[Mapping[str, Any]]] = []
    for message in messages[len(system) :]:
        answered = bool(runs) and runs[-1][-1]["role"] in ("assistant", "tool")
        if not runs or (message["role"] in ("user", "system") and answered):
            runs.append([])
        runs[-1].append(message)
    return system, runs


def describe_cuts(counts: Mapping[str, int], before: str = "") -> str:
    """Returns what was cut, shortened and dropped, after `before`; "" if nothing was."""
    words = []
    if counts.get("cut"):
        words.append(f"{counts['cut']:,} longer than a row were cut at turns")
    if counts.get("shortened"):
        words.append(f"{counts['shortened']:,} single exchanges lost their end")
    words += [f"{count:,} {reason}" for reason, count in counts.items() if reason.startswith("dropped: ")]
    return before + ", ".join(words) if words else ""
