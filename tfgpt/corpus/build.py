"""Builds the documents of a corpus: reads the sources, drops duplicates, splits, and keeps the result in the cache."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import json
import sys
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import tfgpt
from tfgpt.common.atomic_files import atomic_directory, read_json, sha256_of_json, write_json, write_text
from tfgpt.common.errors import RunError, SettingError, UserError
from tfgpt.common.progress import Progress
from tfgpt.corpus.cache import cached_entry
from tfgpt.corpus.config import CorpusConfig
from tfgpt.corpus.document_shards import CARD, FORMAT, MANIFEST, SIDES, DocumentShards, ShardWriter, summarize_sources
from tfgpt.corpus.sources import Document, Source, open_sources
from tfgpt.corpus.sources.base import content_digest, message_text
from tfgpt.corpus.split import (
    FEWEST_DOCUMENTS,
    contiguous_cut,
    contiguous_sides,
    hash_side,
    hash_split_problem,
    num_characters,
    split_group,
)

Sides = dict[str, dict[str, Any]]
EXAMPLE_CHARACTERS = 300
SidedDocuments = Generator[tuple[str, Document], None, None]


def build_documents(config: CorpusConfig, flag: str = "train_text") -> DocumentShards:
    """Returns the documents of a configuration, from the cache where they are already there.

    They are kept in `cache_dir/documents/HASH/`, where the hash is of the sources' contents and the options. A second
    call with unchanged files only looks at their sizes and times.

    Deduplication is exact, by 16 bytes of SHA-256 per document (about 100 bytes of memory each). Documents of
    `validation_text` that also occur in `train_text` are always left out of training.
    """
    if not config.train_text:
        raise SettingError(flag, "nothing to learn from; give a file, a folder, a glob, tfds:… or sample:…")
    cache = config.cache_directory
    training, held_out = (
        open_sources(specs, name, cache_dir=cache, tfds_data_dir=config.tfds_data_dir, strict=config.strict)
        for specs, name in ((config.train_text, flag), (config.validation_text, "validation_text"))
    )
    options = {
        "split": config.split if config.validation_fraction else "none",
        "validation_fraction": config.validation_fraction,
        "deduplicate": config.deduplicate,
    }
    if config.validation_text:
        options |= {"split": "files", "validation_fraction": None}
    read = [[source.spec, source.fingerprint()] for source in (*training, *held_out)]
    train, validation = read[: len(training)], read[len(training) :]
    fingerprint = sha256_of_json({"format": FORMAT, "options": options, "train": train, "validation": validation})
    directory = cache / "documents" / fingerprint[:32]
    with cached_entry(directory, dict.fromkeys(spec for spec, _ in read)):
        documents = None
        with contextlib.suppress(UserError):  # The entry is missing or damaged.
            documents = DocumentShards.open(directory)
        if documents is None:
            with atomic_directory(directory) as temporary:
                DocumentBuilder(options, training, held_out, temporary, flag).run(fingerprint)
                # The documents of a source that has changed since would be kept under a wrong hash.
                for (spec, before), source in zip(read, read_json(temporary / MANIFEST)["sources"], strict=True):
                    if source["fingerprint"] != before:
                        raise RunError(f"{spec}: changed while it was read; run again when it does not change any more")
            documents = DocumentShards.open(directory)
    described = documents.manifest["sources"]
    errors = [error for source in described for error in source["odd"]]
    if config.strict and errors:
        raise UserError(errors[0])
    notes = [note for source in (*training, *held_out) for note in source.notes]
    notes += [remark for source in described for remark in source["remarks"]]
    for line in filter(None, [*notes, documents.manifest["split"]["note"]]):
        print(line, file=sys.stderr)
    return documents


@dataclasses.dataclass
class DocumentBuilder:
    """Reads the sources of --train_text and --validation_text, and writes document shards to an empty directory."""

    options: dict[str, Any]
    training: Sequence[Source]
    held_out: Sequence[Source]
    directory: Path
    flag: str
    note: str | None = None
    id_problem: str = ""

    @property
    def fraction(self) -> float:
        return self.options["validation_fraction"] or 0.0

    def run(self, fingerprint: str) -> None:
        used = self.options["split"]
        if used == "files":
            sides = self.write(self.split_by_files())
        elif used == "none":
            sides = self.write(("train", document) for document in self.documents(self.training))
        elif used == "contiguous":
            total = sum(num_characters(document) for document in self.documents(self.training, title="counting"))
            sides = self.write(self.split_contiguously(total))
        else:
            sides, used = self.write_hash_split()
        sources = [
            source_manifest(source, f"{side}_text")
            for side, group in (("train", self.training), ("validation", self.held_out))
            for source in group
        ]
        self.refuse_empty(sides, used, summarize_sources(sources, sides, used))
        dropped: collections.Counter[str] = collections.Counter()
        for source in sources:
            dropped.update(source["dropped"])
        manifest = {
            "format": FORMAT,
            "fingerprint": fingerprint,
            "made_by": f"tfgpt {tfgpt.__version__}",
            "options": self.options,
            "split": {"used": used, "note": self.note},
            "sources": sources,
            "dropped": dict(sorted(dropped.items())),
            "sides": sides,
        }
        with open(self.directory / "train-00000.jsonl", "rb") as file:
            examples = [json.loads(line) for line in itertools.islice(file, 3)]
        write_text(self.directory / CARD, data_card(manifest, examples))
        # Last: a directory is complete when it has a manifest.
        write_json(self.directory / MANIFEST, manifest)

    def split_by_files(self) -> SidedDocuments:
        digests: set[bytes] = set()
        for document in self.documents(self.held_out):
            digests.add(content_digest(document))
            yield "validation", document
        for document in self.documents(self.training, digests):
            yield "train", document

    def split_contiguously(self, total: int) -> SidedDocuments:
        cut, start = contiguous_cut(total, self.fraction), 0
        for document in self.documents(self.training):
            yield from contiguous_sides(document, start, cut)
            start += num_characters(document)
        if start != total:
            raise RunError("the text changed while it was read; run again")

    def write_hash_split(self) -> tuple[Sides, str]:
        """Writes the documents split by hash, or contiguously where `auto` prefers that; returns the split's name."""
        groups: set[str] = set()

        def sided() -> SidedDocuments:
            for document in self.documents(self.training):
                if len(groups) < FEWEST_DOCUMENTS:
                    groups.add(split_group(document))
                yield hash_side(document, self.fraction), document

        sides = self.write(sided())
        count = sum(side["documents"] for side in sides.values())
        if len(groups) < min(count, FEWEST_DOCUMENTS):
            ids = "one id" if len(groups) == 1 else f"only {len(groups)} different ids"
            together = f"the {count:,} documents have {ids} up to the first #, and documents with one id stay together"
            self.id_problem = f" ({together})"
        problem = hash_split_problem(sides, self.fraction) if self.options["split"] == "auto" else None
        if problem is None:
            return sides, "hash"
        for shard in (shard for side in sides.values() for shard in side["shards"]):
            (self.directory / shard["name"]).unlink()
        instead = f"the last {self.fraction:.3g} of the text is held out instead (--split=contiguous)"
        self.note = f"split: {problem}{self.id_problem}; {instead}"
        return self.write(self.split_contiguously(sum(side["characters"] for side in sides.values()))), "contiguous"

    def write(self, documents: SidedDocuments) -> Sides:
        """Writes the shards of both sides; returns their parts of the manifest."""
        writers = {side: ShardWriter(self.directory, side) for side in SIDES}
        # Closed at once when a write fails, so that the progress bar ends before the error is printed.
        with contextlib.closing(documents):
            try:
                for side, document in documents:
                    writers[side].write(document)
            finally:
                sides = {side: writer.close() for side, writer in writers.items()}
        return sides

    def documents(
        self, sources: Sequence[Source], held_out: set[bytes] | None = None, title: str = "reading"
    ) -> Iterator[Document]:
        """Yields the documents of the sources without duplicates, with a progress bar; counts what is left out."""
        seen: set[bytes] = set()
        sizes = [source.size for source in sources]
        total = None if None in sizes else sum(size for size in sizes if size)
        with Progress(total, "byte", title) as progress:
            for source in sources:
                position = 0
                for document in source.documents():
                    progress.advance(source.position - position)
                    position = source.position
                    digest = content_digest(document)
                    if held_out and digest in held_out:
                        source.left_out["also in --validation_text"] += 1
                    elif self.options["deduplicate"] and digest in seen:
                        source.left_out["duplicate"] += 1
                    else:
                        seen.add(digest)
                        source.kept += 1
                        yield document

    def refuse_empty(self, sides: Sides, used: str, summary: str) -> None:
        train, validation = (sides[side]["documents"] for side in SIDES)
        if train and (validation or used == "none"):
            return
        purpose = "hold out" if train else "train on"
        flag, advice = self.flag, "give other text"
        if used == "files":
            flag, advice = ("validation_text", advice) if train else (flag, f"{advice} than held out")
            problem = f"no document is left to {purpose}"
        elif not validation + train:
            problem = "no document is left"
        elif validation + train == 1:
            problem = "1 document is left, which cannot be on both sides"
            advice = "give more text that differs, or --validation_text"
        else:
            problem = f"--split={used} with --validation_fraction={self.fraction} leaves nothing to {purpose}"
            summary += self.id_problem
            advice = "give more text, another fraction or split, or --validation_text"
        raise SettingError(flag, f"{problem}: {summary}; {advice}")


def source_manifest(source: Source, flag: str) -> dict[str, Any]:
    skipped = source.skipped.describe(source.spec)
    dropped = {**source.dropped, **source.left_out, "that cannot be read": source.skipped.num_skipped}
    return {
        "spec": source.spec,
        "of": flag,
        "what": source.description,
        "licence": source.licence,
        "fingerprint": source.fingerprint(),
        "documents": source.kept,
        "dropped": {reason: count for reason, count in sorted(dropped.items()) if count},
        "odd": source.skipped.first,
        "remarks": [*([skipped] if skipped else []), *source.remarks],
    }


def data_card(manifest: dict[str, Any], examples: Sequence[Document]) -> str:
    """Returns the text of `card.md` from the manifest; shows the beginnings of a few training documents."""
    fraction = manifest["options"]["validation_fraction"]
    split = {
        "hash": f"By a hash of each document (or of its group); share asked for: {fraction}.",
        "contiguous": f"The last {fraction} of the text, in order, is the validation side.",
        "files": "The validation side is all of --validation_text.",
        "none": "Nothing is held out.",
    }[manifest["split"]["used"]]
    note = manifest["split"]["note"]
    lines = ["# Data card", "", "## Sources", "", "| source | used for | what | documents | licence |"]
    lines.append("| --- | --- | --- | ---: | --- |")
    for source in manifest["sources"]:
        cells = [f"`{source['spec']}`", source["of"], source["what"], f"{source['documents']:,}", source["licence"]]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    lines += ["", "## Sizes", "", "| side | documents | characters | bytes |", "| --- | ---: | ---: | ---: |"]
    for name, side in manifest["sides"].items():
        lines.append(f"| {name} | {side['documents']:,} | {side['characters']:,} | {side['bytes']:,} |")
    lines += ["", "## Split", "", f"{split} ({note})" if note else split, "", "## Left out", ""]
    lines += [f"- {reason}: {count:,}" for reason, count in manifest["dropped"].items()] or ["Nothing."]
    if not manifest["options"]["deduplicate"]:
        lines.append("Duplicates were not looked for.")
    lines += ["", "## Examples (cut short)", ""]
    for document in examples:
        messages = document.get("messages", ())
        dialogue = "\n".join(f"{message['role']}: {message_text(message)}" for message in messages)
        text = document.get("text", dialogue).strip().replace("~~~~", "~~~ ")
        lines += ["~~~~text", text if len(text) <= EXAMPLE_CHARACTERS else text[:EXAMPLE_CHARACTERS] + "…", "~~~~", ""]
    return "\n".join(lines)
