"""From sources to documents on disk: left out, deduplicated, split, cached by the hash of what they are made from."""

from __future__ import annotations

import collections
import contextlib
import json
import sys
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import tfgpt
from tfgpt.common.atomic_files import atomic_directory, read_json, sha256_of_json, write_json, write_text
from tfgpt.common.errors import RunError, SettingError, UserError
from tfgpt.common.progress import Progress
from tfgpt.corpus.cache import entry_lock, mark_used, remove_leftovers
from tfgpt.corpus.config import CorpusConfig
from tfgpt.corpus.data_card import data_card
from tfgpt.corpus.document_shards import CARD, FORMAT, MANIFEST, SIDES, DocumentShards, ShardWriter
from tfgpt.corpus.source_summary import summarize_sources
from tfgpt.corpus.sources import Document, Source, open_sources
from tfgpt.corpus.sources.base import content_digest
from tfgpt.corpus.split import (
    FEWEST_DOCUMENTS,
    contiguous_cut,
    contiguous_sides,
    describe_few_groups,
    hash_side,
    hash_split_problem,
    num_characters,
    split_group,
)


def build_documents(config: CorpusConfig, flag: str = "train_text") -> DocumentShards:
    """The documents of a configuration, made unless they are in the cache.

    They are kept in `cache_dir/documents/HASH/`, where the hash is of the sources' contents and the options; a second
    call with unchanged files only looks at their sizes and times. Written beside and renamed: a build that is stopped
    leaves nothing that a later one could take for whole.

    Deduplication is exact, by 16 bytes of SHA-256 a document (about 100 bytes of memory each). Documents of
    `validation_text` that also occur in `train_text` are left out of training in every case.

    Args:
        config: the configuration.
        flag: the flag that `train_text` was given with, for error lines.

    Raises:
        UserError: a source or an option is at fault, or a side of the split has no document; the line names it.
        RunError: the disk is full.
    """
    if not config.train_text:
        raise SettingError(flag, "nothing to learn from; give a file, a folder, a glob, tfds:… or sample:…")
    cache = config.cache_directory
    training, held_out = (
        open_sources(specs, name, cache_dir=cache, tfds_data_dir=config.tfds_data_dir, strict=config.strict)
        for specs, name in ((config.train_text, flag), (config.validation_text, "validation_text"))
    )
    options = options_of(config)
    read = [[source.spec, source.fingerprint()] for source in (*training, *held_out)]
    fingerprint = sha256_of_json(
        {
            "format": FORMAT,
            "options": options,
            "train": read[: len(training)],
            "validation": read[len(training) :],
        }
    )
    directory = cache / "documents" / fingerprint[:32]
    documents = whole(directory)
    if documents is None:
        with entry_lock(directory):
            documents = whole(directory)
            if documents is None:
                remove_leftovers(directory.parent)
                with atomic_directory(directory) as temporary:
                    Build(options, training, held_out, temporary, flag).run(fingerprint)
                    refuse_changed(temporary, read)
                documents = DocumentShards.open(directory)
    mark_used(directory, documents.text)
    for source in (*training, *held_out):
        for note in source.notes:
            print(note, file=sys.stderr)
    described = documents.manifest["sources"]
    if config.strict:
        for source in described:
            for line in source["odd"]:
                raise UserError(line)
    for remark in (*(one for source in described for one in source["remarks"]), documents.manifest["split"]["note"]):
        if remark:
            print(remark, file=sys.stderr)
    return documents


def refuse_changed(directory: Path, read: Sequence[Sequence[str]]) -> None:
    """Refuses documents of files that changed between the hash that they are kept under and the end of their reading.

    Args:
        directory: the finished documents.
        read: spec and fingerprint of each source, as before the reading.

    Raises:
        RunError: so it is: a download goes on, or somebody saved the file.
    """
    for (spec, before), source in zip(read, read_json(directory / MANIFEST)["sources"], strict=True):
        if source["fingerprint"] != before:
            raise RunError(f"{spec}: changed while it was read; run again when nothing writes to it any more")


def options_of(config: CorpusConfig) -> dict[str, Any]:
    """The options that decide the documents."""
    if config.validation_text:
        return {"split": "files", "validation_fraction": None, "deduplicate": config.deduplicate}
    split = config.split if config.validation_fraction else "none"
    return {"split": split, "validation_fraction": config.validation_fraction, "deduplicate": config.deduplicate}


def whole(directory: Path) -> DocumentShards | None:
    """What is in the cache, if it is there and complete."""
    with contextlib.suppress(UserError):
        return DocumentShards.open(directory)
    return None


class Build:
    """One build.

    Args:
        options: as `options_of` gives them.
        training: the sources of `--train_text`.
        held_out: the sources of `--validation_text`.
        directory: an empty directory to write to.
        flag: the flag to name in error lines.
    """

    def __init__(
        self,
        options: dict[str, Any],
        training: Sequence[Source],
        held_out: Sequence[Source],
        directory: Path,
        flag: str,
    ):
        self.options, self.training, self.held_out, self.directory = options, training, held_out, directory
        self.flag = flag
        self.fraction = options["validation_fraction"] or 0.0
        self.note: str | None = None
        self.ids = ""

    def run(self, fingerprint: str) -> None:
        """Writes shards, manifest and card."""
        used = self.options["split"]
        if used == "files":
            sides = self.split_by_files()
        elif used == "none":
            sides = self.written(("train", document) for document in self.documents())
        elif used == "contiguous":
            sides = self.split_contiguously(self.count_characters())
        else:
            sides, used = self.split_by_hash()
        self.refuse_empty(sides, used)
        manifest = self.manifest(fingerprint, used, sides)
        write_text(self.directory / CARD, data_card(manifest, self.examples()))
        # Last: a directory is whole when it has a manifest.
        write_json(self.directory / MANIFEST, manifest)

    def split_by_files(self) -> dict[str, Any]:
        held_out_digests: set[bytes] = set()

        def both() -> Generator[tuple[str, Document], None, None]:
            for document in self.documents(self.held_out):
                held_out_digests.add(content_digest(document))
                yield "validation", document
            for document in self.documents(self.training, held_out_digests):
                yield "train", document

        return self.written(both())

    def split_by_hash(self) -> tuple[dict[str, Any], str]:
        groups: set[str] = set()

        def both() -> Generator[tuple[str, Document], None, None]:
            for document in self.documents():
                if len(groups) < FEWEST_DOCUMENTS:
                    groups.add(split_group(document))
                yield hash_side(document, self.fraction), document

        sides = self.written(both())
        self.ids = describe_few_groups(sum(side["documents"] for side in sides.values()), len(groups))
        reason = hash_split_problem(sides, self.fraction) if self.options["split"] == "auto" else None
        if reason is None:
            return sides, "hash"
        for writer in self.writers.values():
            writer.discard()
        total = sum(side["characters"] for side in sides.values())
        instead = f"the last {self.fraction:.3g} of the text is held out instead (--split=contiguous)"
        self.note = f"split: {reason}{self.ids}; {instead}"
        return self.split_contiguously(total), "contiguous"

    def count_characters(self) -> int:
        return sum(num_characters(document) for document in self.documents(title="counting"))

    def split_contiguously(self, total: int) -> dict[str, Any]:
        cut = contiguous_cut(total, self.fraction)

        def both() -> Generator[tuple[str, Document], None, None]:
            start = 0
            for document in self.documents():
                yield from contiguous_sides(document, start, cut)
                start += num_characters(document)
            if start != total:
                raise RunError("the text changed while it was read; run again")

        return self.written(both())

    def written(self, documents: Generator[tuple[str, Document], None, None]) -> dict[str, Any]:
        self.writers = {side: ShardWriter(self.directory, side) for side in SIDES}
        # Closed at once when a write fails, so that the progress bar ends before the error is printed.
        with contextlib.closing(documents):
            try:
                for side, document in documents:
                    self.writers[side].write(document)
            finally:
                sides = {side: writer.close() for side, writer in self.writers.items()}
        return sides

    def documents(
        self, sources: Sequence[Source] | None = None, held_out: set[bytes] | None = None, title: str = "reading"
    ) -> Iterator[Document]:
        """The useful documents of the sources, each once, with a progress bar; counts what is left out by reason."""
        sources = self.training if sources is None else sources
        seen: set[bytes] = set()
        sizes = [source.size for source in sources]
        total = None if None in sizes else sum(size for size in sizes if size)
        with Progress(total, "byte", title) as progress:
            for source in sources:
                source.kept = source.duplicates = source.held_out = 0
                position = 0
                for document in source.documents():
                    progress.advance(source.position - position)
                    position = source.position
                    digest = content_digest(document)
                    if held_out and digest in held_out:
                        source.held_out += 1
                    elif self.options["deduplicate"] and digest in seen:
                        source.duplicates += 1
                    else:
                        seen.add(digest)
                        source.kept += 1
                        yield document

    def refuse_empty(self, sides: dict[str, Any], used: str) -> None:
        """Refuses a side without a document, and says what became of what was read."""
        sources = [described_source(source, "") for source in (*self.training, *self.held_out)]
        words = summarize_sources(sources, sides, used)
        left = sides["train"]["documents"] + sides["validation"]["documents"]
        if used == "files" and not sides["train"]["documents"]:
            raise SettingError(self.flag, f"no document is left to train on: {words}; give other text than held out")
        if used == "files" and not sides["validation"]["documents"]:
            raise SettingError("validation_text", f"no document is left to hold out: {words}; give other text")
        if not left:
            raise SettingError(self.flag, f"no document is left: {words}; give other text")
        if used == "none" or all(side["documents"] for side in sides.values()):
            return
        if left == 1:
            raise SettingError(
                self.flag,
                f"1 document is left, which cannot be on both sides: {words}; give more text that differs, or "
                "--validation_text",
            )
        empty = "train on" if not sides["train"]["documents"] else "hold out"
        raise SettingError(
            self.flag,
            f"--split={used} with --validation_fraction={self.fraction} leaves nothing to {empty}: "
            f"{words}{self.ids}; give more text, another fraction or split, or --validation_text",
        )

    def manifest(self, fingerprint: str, used: str, sides: dict[str, Any]) -> dict[str, Any]:
        described = [
            described_source(source, side)
            for side, sources in (("train", self.training), ("validation", self.held_out))
            for source in sources
        ]
        dropped: collections.Counter[str] = collections.Counter()
        for source in described:
            dropped.update(source["dropped"])
        return {
            "format": FORMAT,
            "fingerprint": fingerprint,
            "made_by": f"tfgpt {tfgpt.__version__}",
            "options": self.options,
            "split": {"used": used, "note": self.note},
            "sources": described,
            "dropped": dict(sorted(dropped.items())),
            "sides": sides,
        }

    def examples(self) -> list[Document]:
        """The first few training documents, for the card."""
        found: list[Document] = []
        with open(self.directory / "train-00000.jsonl", "rb") as file:
            for line in file:
                found.append(json.loads(line))
                if len(found) == 3:
                    break
        return found


def described_source(source: Source, side: str) -> dict[str, Any]:
    """A source's part of the manifest."""
    dropped = {
        **source.dropped,
        "duplicate": source.duplicates,
        "also in --validation_text": source.held_out,
        "that cannot be read": source.odd.num_skipped,
    }
    odd = source.odd.describe(source.spec)
    return {
        "spec": source.spec,
        "of": f"{side}_text",
        "what": source.description,
        "licence": source.licence,
        "fingerprint": source.fingerprint(),
        "documents": source.kept,
        "dropped": {reason: count for reason, count in sorted(dropped.items()) if count},
        "odd": source.odd.first,
        "remarks": [*([odd] if odd else []), *source.remarks],
    }
