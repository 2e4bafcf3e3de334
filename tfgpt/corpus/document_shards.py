"""A directory of documents: JSON Lines shards for each side, a manifest that describes them, a data card."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tfgpt.common.atomic_files import read_json
from tfgpt.common.errors import RunError, UserError
from tfgpt.corpus.source_summary import summarize_sources
from tfgpt.corpus.sources.base import Document, content_texts

# Part of every fingerprint: raise it when the same sources and options give other documents than before.
FORMAT = 3
SIDES = ("train", "validation")
SHARD_BYTES = 256 * 2**20
MANIFEST = "manifest.json"
CARD = "card.md"

as_json = json.JSONEncoder(ensure_ascii=False).encode


@dataclasses.dataclass(frozen=True)
class DocumentShards:
    """Documents on disk, divided into "train" and "validation".

    Attributes:
        directory: holds `train-00000.jsonl`…, `validation-00000.jsonl`…, `manifest.json` and `card.md`.
        manifest: counts, bytes and SHA-256 of every shard, and how they were made.
    """

    directory: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, directory: str | os.PathLike) -> DocumentShards:
        """Opens a directory that `build_documents` made.

        Raises:
            UserError: no manifest, or a shard is missing or has another size than the manifest says; names it.
        """
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
        """What was read, of one spec or of all, what was left out and why, and what is left, in a sentence."""
        sources = [source for source in self.manifest["sources"] if spec in (None, source["spec"])]
        return summarize_sources(sources, None if spec else self.manifest["sides"], self.manifest["split"]["used"])

    def num_documents(self, side: str) -> int:
        """How many documents a side has."""
        return self.manifest["sides"][side]["documents"]

    def num_bytes(self, side: str) -> int:
        """How many UTF-8 bytes of text a side has."""
        return self.manifest["sides"][side]["bytes"]

    def documents(self, side: str) -> Iterator[Document]:
        """Reads the documents of a side, "train" or "validation", in order.

        Raises:
            RunError: a shard is damaged; the line names it. Its last documents may have been given out before that
                is known.
        """
        for shard in self.manifest["sides"][side]["shards"]:
            yield from read_shard(self.directory / shard["name"], shard["sha256"])


def read_shard(path: Path, sha256: str) -> Iterator[Document]:
    """The documents of a shard, whose hash is checked on the way."""
    damaged = RunError(f"{path}: damaged (not what its manifest says); delete {path.parent} and run again")
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for line in file:
            digest.update(line)
            try:
                document = json.loads(line)
            except ValueError:
                raise damaged from None
            yield document
    if digest.hexdigest() != sha256:
        raise damaged


class ShardWriter:
    """Writes the documents of one side as shards of at most about 256 MiB.

    Args:
        directory: where to write; the caller renames it when all is done.
        side: "train" or "validation".
    """

    def __init__(self, directory: Path, side: str):
        self.directory, self.side = directory, side
        self.shards: list[dict[str, Any]] = []
        self.num_documents = self.num_characters = self.num_bytes = 0
        self.file: BinaryIO | None = None

    def write(self, document: Document) -> None:
        """Appends a document."""
        line = as_json(document).encode("utf-8") + b"\n"
        if self.file is None or self.shards[-1]["file_bytes"] + len(line) > SHARD_BYTES:
            self.start_shard()
        assert self.file is not None
        self.file.write(line)
        self.digest.update(line)
        shard = self.shards[-1]
        shard["documents"] += 1
        shard["file_bytes"] += len(line)
        self.num_documents += 1
        for text in content_texts(document):
            self.num_characters += len(text)
            self.num_bytes += len(text.encode("utf-8"))

    def start_shard(self) -> None:
        self.end_shard()
        name = f"{self.side}-{len(self.shards):05d}.jsonl"
        self.file = open(self.directory / name, "wb")  # noqa: SIM115
        self.digest = hashlib.sha256()
        self.shards.append({"name": name, "documents": 0, "file_bytes": 0, "sha256": ""})

    def end_shard(self) -> None:
        if self.file is not None:
            self.file.close()
            self.shards[-1]["sha256"] = self.digest.hexdigest()
            self.file = None

    def close(self) -> dict[str, Any]:
        """Ends the last shard; returns the side's part of the manifest."""
        self.end_shard()
        return {
            "documents": self.num_documents,
            "characters": self.num_characters,
            "bytes": self.num_bytes,
            "shards": self.shards,
        }

    def discard(self) -> None:
        """Removes what was written."""
        self.end_shard()
        for shard in self.shards:
            (self.directory / shard["name"]).unlink()
