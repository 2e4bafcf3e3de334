"""A directory of documents: JSON Lines shards of both sides, a manifest and a data card."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from tfgpt.common.atomic_files import read_json
from tfgpt.common.errors import RunError, UserError
from tfgpt.common.formatting import pluralize
from tfgpt.corpus.sources.base import Document, content_texts

# Part of every fingerprint. Increase it when the same sources and options give other documents than before.
FORMAT = 3
SIDES = ("train", "validation")
SHARD_BYTES = 256 * 2**20
MANIFEST = "manifest.json"
CARD = "card.md"

encode_json = json.JSONEncoder(ensure_ascii=False).encode


@dataclasses.dataclass(frozen=True)
class DocumentShards:
    """Documents on disk, divided into "train" and "validation".

    Attributes:
        directory: holds `train-00000.jsonl`…, `validation-00000.jsonl`…, `manifest.json` and `card.md`.
        manifest: counts, bytes and SHA-256 of every shard, and how they were made.

    Example:

    >>> import tempfile
    >>> from tfgpt.corpus.build import build_documents
    >>> from tfgpt.corpus.config import CorpusConfig
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "a.txt")
    ...     _ = path.write_text("One day.")
    ...     config = CorpusConfig(train_text=(str(path),), validation_fraction=0.0, cache_dir=folder)
    ...     documents = build_documents(config)
    ...     [document["text"] for document in documents.documents("train")]
    ['One day.']
    """

    directory: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, directory: str | os.PathLike) -> DocumentShards:
        """Opens a directory that `build_documents` made."""
        directory = Path(directory)
        manifest = read_json(directory / MANIFEST)
        if not isinstance(manifest, dict) or "sides" not in manifest:
            raise UserError(f"{directory / MANIFEST}: not a manifest of documents")
        if manifest.get("format") != FORMAT:
            raise UserError(
                f"{directory / MANIFEST}: documents of format {manifest.get('format')}, this version reads {FORMAT}; "
                f"delete {directory} and run again"
            )
        for shard in (shard for side in SIDES for shard in manifest["sides"][side]["shards"]):
            path = directory / shard["name"]
            if not path.is_file():
                raise UserError(f"{path}: this shard is missing; delete {directory} and run again")
            if path.stat().st_size != shard["file_bytes"]:
                raise UserError(f"{path}: damaged (not {shard['file_bytes']} bytes); delete {directory} and run again")
        return cls(directory, manifest)

    @property
    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of what decides the documents: the sources' contents and the options."""
        return self.manifest["fingerprint"]

    @property
    def text(self) -> tuple[str, ...]:
        """The sources, as the user wrote them."""
        return tuple(dict.fromkeys(source["spec"] for source in self.manifest["sources"]))

    @property
    def card(self) -> Path:
        """The data card, Markdown."""
        return self.directory / CARD

    def summary(self, spec: str | None = None) -> str:
        """Returns the numbers of documents of one spec or all: read, left out and why, and left."""
        sources = [source for source in self.manifest["sources"] if spec in (None, source["spec"])]
        return summarize_sources(sources, None if spec else self.manifest["sides"], self.manifest["split"]["used"])

    def num_documents(self, side: str) -> int:
        """Returns the number of documents of a side."""
        return self.manifest["sides"][side]["documents"]

    def num_bytes(self, side: str) -> int:
        """Returns the number of UTF-8 bytes of text of a side."""
        return self.manifest["sides"][side]["bytes"]

    def documents(self, side: str) -> Iterator[Document]:
        """Yields the documents of a side, "train" or "validation", in order.

        Raises:
            RunError: a shard is damaged. The hash is known after the shard's last document was yielded.
        """
        for shard in self.manifest["sides"][side]["shards"]:
            path, digest = self.directory / shard["name"], hashlib.sha256()
            damaged = RunError(f"{path}: damaged (differs from its manifest); delete {path.parent} and run again")
            with open(path, "rb") as file:
                for line in file:
                    digest.update(line)
                    try:
                        document = json.loads(line)
                    except ValueError:
                        raise damaged from None
                    yield document
            if digest.hexdigest() != shard["sha256"]:
                raise damaged


def summarize_sources(
    sources: Sequence[Mapping[str, Any]], sides: Mapping[str, Mapping[str, Any]] | None, split: str
) -> str:
    """Returns the numbers of documents read, left out and why, and (with `sides`) left, of parts of a manifest."""
    dropped: collections.Counter[str] = collections.Counter()
    for source in sources:
        dropped.update(source["dropped"])
    read = sum(source["documents"] for source in sources) + dropped.total()
    left_out = f", {describe_dropped(dropped)}" if dropped else ""
    uses = {"train": "left"} if split == "none" else {"train": "to train on", "validation": "held out"}
    left = ", ".join(
        f"{pluralize(sides[side]['documents'], 'document')} ({pluralize(sides[side]['bytes'], 'byte')}) {use}"
        for side, use in uses.items()
        if sides
    )
    return f"{pluralize(read, 'document')} read{left_out}{'; ' if left else ''}{left}"


def describe_dropped(dropped: Mapping[str, int]) -> str:
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(dropped.items()))
    return f"{sum(dropped.values()):,} left out ({reasons})"


class ShardWriter:
    """Writes the documents of one side as shards of at most about 256 MiB."""

    def __init__(self, directory: Path, side: str):
        self.directory, self.side = directory, side
        self.shards: list[dict[str, Any]] = []
        self.num_characters = self.num_bytes = 0
        self.file: BinaryIO | None = None

    def write(self, document: Document) -> None:
        line = encode_json(document).encode("utf-8") + b"\n"
        if self.file is None or self.shards[-1]["file_bytes"] + len(line) > SHARD_BYTES:
            self.end_shard()
            name = f"{self.side}-{len(self.shards):05d}.jsonl"
            self.file, self.digest = open(self.directory / name, "wb"), hashlib.sha256()  # noqa: SIM115
            self.shards.append({"name": name, "documents": 0, "file_bytes": 0, "sha256": ""})
        self.file.write(line)
        self.digest.update(line)
        self.shards[-1]["documents"] += 1
        self.shards[-1]["file_bytes"] += len(line)
        for text in content_texts(document):
            self.num_characters += len(text)
            self.num_bytes += len(text.encode("utf-8"))

    def end_shard(self) -> None:
        if self.file is not None:
            self.file.close()
            self.shards[-1]["sha256"] = self.digest.hexdigest()
            self.file = None

    def close(self) -> dict[str, Any]:
        """Ends the last shard; returns the side's part of the manifest."""
        self.end_shard()
        return {
            "documents": sum(shard["documents"] for shard in self.shards),
            "characters": self.num_characters,
            "bytes": self.num_bytes,
            "shards": self.shards,
        }
