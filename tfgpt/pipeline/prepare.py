"""From text to what training reads: documents, a tokenizer, token shards, each made once and then found in the cache.

Every stage is kept under a hash of what it is made from: documents under their sources and options, the tokenizer
under the documents and its options, token shards under the documents, the side and the tokenizer. A change anywhere
makes that stage and those behind it anew and leaves the old ones for whoever still wants them; nothing is half-made in
place, since each appears by a rename.

What is damaged in the cache is named and made again, because it can be: the rebuilt shards are the same bytes. Shards
that someone opens from elsewhere are only refused (`TokenShards.open`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tfgpt.common.atomic_files import (
    atomic_directory,
    read_json,
    readable_write_errors,
    sha256_of_json,
    write_json,
)
from tfgpt.common.errors import UserError
from tfgpt.common.output_directories import result_directory
from tfgpt.common.progress import format_bytes
from tfgpt.corpus.build import build_documents
from tfgpt.corpus.cache import cached_stage, made_or_reused
from tfgpt.corpus.config import CorpusConfig
from tfgpt.corpus.document_shards import DocumentShards, describe_dropped
from tfgpt.corpus.sources import open_sources
from tfgpt.corpus.sources.base import content_texts
from tfgpt.corpus.sources.files import FileSource
from tfgpt.pipeline.token_shards import FORMAT_VERSION, DamagedShards, TokenShards, write_token_shards
from tfgpt.tokenization.config import TokenizerConfig
from tfgpt.tokenization.load import load_tokenizer
from tfgpt.tokenization.special_tokens import CHAT_TEMPLATE
from tfgpt.tokenization.tokenizer import Tokenizer
from tfgpt.tokenization.train_tokenizer import make_tokenizer

# Part of every tokenizer's key: raise it when the same documents and options train another tokenizer than before.
TOKENIZER_FORMAT = 1
PREPARED = "prepared.json"


@dataclasses.dataclass(frozen=True)
class PreparedData:
    """What training reads.

    Attributes:
        train: the tokens to learn from.
        validation: the tokens held out; with --validation_fraction=0 a single end-of-text and no target.
        tokenizer: made the tokens.
        documents: what the tokens were made from.
        fingerprint: hexadecimal SHA-256 of all tokens and the tokenizer; file names and places do not count.
        manifest: how it was made: the fingerprints of every stage, counts, and where things are.
        train_by_source, validation_by_source: what of each side is from which source, where that was asked for.
    """

    train: TokenShards
    validation: TokenShards
    tokenizer: Tokenizer
    documents: DocumentShards
    fingerprint: str
    manifest: dict[str, Any]
    train_by_source: dict[str, TokenShards] = dataclasses.field(default_factory=dict)
    validation_by_source: dict[str, TokenShards] = dataclasses.field(default_factory=dict)


def prepare(
    corpus: CorpusConfig,
    tokenizer: TokenizerConfig,
    *,
    store_weights: bool = False,
    by_source: bool = False,
    say: Callable[[str], None] = print,
) -> PreparedData:
    """Makes, or finds in the cache, the documents, the tokenizer and the token shards of both sides.

    Args:
        corpus: which text, how split, and the cache directory.
        tokenizer: which tokenizer; a trained one sees the training side only.
        store_weights: keep loss weights beside the tokens (see `write_token_shards`).
        by_source: also keep the tokens of each source by themselves.
        say: told one line a stage: what was made or reused, and where it is.

    Raises:
        UserError: the text or a flag is at fault; the line names it.
        RunError: the disk is full, or documents in the cache are damaged.
    """
    cache = corpus.cache_directory
    if tokenizer.tokenizer not in ("bpe", "bytes"):
        load_tokenizer(tokenizer.tokenizer)  # What is wrong with it is said before the text is read.
    documents = prepared_documents(corpus, cache, say)
    made_tokenizer = prepared_tokenizer(tokenizer, documents, cache, say)
    train, validation = (
        prepared_shards(documents, side, made_tokenizer, cache, store_weights, say) for side in ("train", "validation")
    )
    fingerprint = sha256_of_json([train.fingerprint, validation.fingerprint])
    manifest = {
        "fingerprint": fingerprint,
        "documents": {"fingerprint": documents.fingerprint, "directory": str(documents.directory)},
        "tokenizer": {"fingerprint": made_tokenizer.fingerprint, "settings": tokenizer.to_dict()},
        "corpus": corpus.to_dict(),
        "train": summary(train),
        "validation": summary(validation),
    }
    apart: dict[str, dict[str, TokenShards]] = {}
    for side, specs in (("train", corpus.train_text), ("validation", corpus.validation_text or corpus.train_text)):
        names: dict[str, list[str]] = {}
        for name, spec in (spec_of_source(corpus, specs) if by_source else {}).items():
            names.setdefault(spec, []).append(name)
        apart[side] = {}
        for spec, of_spec in names.items():
            shards = prepared_shards(documents, side, made_tokenizer, cache, store_weights, say, of_spec)
            shards.origin = documents.summary(spec)
            apart[side][spec] = shards
    return PreparedData(
        train, validation, made_tokenizer, documents, fingerprint, manifest, apart["train"], apart["validation"]
    )


def spec_of_source(corpus: CorpusConfig, specs: tuple[str, ...]) -> dict[str, str]:
    """A document's `source` → what the user wrote."""
    known: dict[str, str] = {}
    for source in open_sources(specs, cache_dir=corpus.cache_directory, tfds_data_dir=corpus.tfds_data_dir):
        names = [str(path) for path in source.paths] if isinstance(source, FileSource) else [source.spec]
        for name in names:
            known.setdefault(name, source.spec)
    return known


def summary(shards: TokenShards) -> dict[str, Any]:
    """What a run's provenance says of one side."""
    return {
        "fingerprint": shards.fingerprint,
        "directory": str(shards.directory),
        "tokens": shards.num_tokens,
        "bytes": shards.num_bytes,
        "documents": shards.num_documents,
    }


def prepared_documents(corpus: CorpusConfig, cache: Path, say: Callable[[str], None]) -> DocumentShards:
    """The documents, with their line."""
    started = time.monotonic()
    folder = cache / "documents"
    before = set(os.listdir(folder)) if folder.is_dir() else set()
    documents = build_documents(corpus)
    counts = [
        f"{documents.num_documents(side):,} {word} ({format_bytes(documents.num_bytes(side))})"
        for side, word in (("train", "to train on"), ("validation", "held out"))
    ]
    dropped = documents.manifest["dropped"]
    counts += [describe_dropped(dropped)] if dropped else []
    made = made_or_reused(documents.directory.name not in before, started)
    say(f"documents: {', '.join(counts)}; {made} {documents.directory}")
    return documents


def prepared_tokenizer(
    config: TokenizerConfig, documents: DocumentShards, cache: Path, say: Callable[[str], None]
) -> Tokenizer:
    """The tokenizer, with its line; only a trained one is kept in the cache."""
    if config.tokenizer != "bpe":
        made = make_tokenizer(config, ())
        origin = "the bytes" if config.tokenizer == "bytes" else f"from {config.tokenizer}"
        say(f"tokenizer: {made.vocabulary_size:,} ids, {origin}")
        return made
    key = {"format": TOKENIZER_FORMAT, "documents": documents.fingerprint, "settings": config.to_dict()}
    directory = cache / "tokenizers" / sha256_of_json(key)[:32]

    def open_tokenizer() -> Tokenizer:
        tokenizer, manifest = load_tokenizer(directory), read_json(directory / "manifest.json")
        if not isinstance(manifest, dict) or manifest.get("fingerprint") != tokenizer.fingerprint:
            raise UserError(f"{directory}: the tokenizer changed since it was trained")
        return tokenizer

    return cached_stage(
        "tokenizer",
        directory,
        documents.text,
        open_entry=open_tokenizer,
        make_entry=lambda: trained_tokenizer(config, documents, directory),
        describe=lambda tokenizer: f"{tokenizer.vocabulary_size:,} ids",
        log=say,
    )


def trained_tokenizer(config: TokenizerConfig, documents: DocumentShards, directory: Path) -> Tokenizer:
    """Trains a tokenizer on the training side and keeps it."""
    texts = (text for document in documents.documents("train") for text in content_texts(document))
    tokenizer = make_tokenizer(config, texts, total_bytes=documents.num_bytes("train"))
    with atomic_directory(directory) as temporary:
        tokenizer.save(temporary)
        write_json(temporary / "manifest.json", {"fingerprint": tokenizer.fingerprint, "settings": config.to_dict()})
    return tokenizer


def prepared_shards(
    documents: DocumentShards,
    side: str,
    tokenizer: Tokenizer,
    cache: Path,
    store_weights: bool,
    say: Callable[[str], None],
    sources: Sequence[str] = (),
) -> TokenShards:
    """The token shards of one side, or of some sources of it, with their line."""
    template = tokenizer.config.get("chat_template")
    key = {
        "format": FORMAT_VERSION,
        "documents": documents.fingerprint,
        "side": side,
        "tokenizer": tokenizer.fingerprint,
        "store_weights": store_weights,
        # Dialogues are written in it. Ours is not named, so that texts are found again under the keys that they had.
        **({} if template in (None, CHAT_TEMPLATE) else {"template": template}),
        **({"sources": list(sources)} if sources else {}),
    }
    chosen = documents.documents(side)
    if sources:
        among = frozenset(sources)
        chosen = (document for document in chosen if document["source"] in among)
    directory = cache / "tokens" / sha256_of_json(key)[:32]
    of = f" of {', '.join(sources[:3])}{', …' if len(sources) > 3 else ''}" if sources else ""

    def describe(shards: TokenShards) -> str:
        rate = f" ({shards.num_bytes / (shards.num_tokens - 1):.2f} bytes a token)" if shards.num_tokens > 1 else ""
        return f"{shards.num_tokens:,}{rate}"

    shards = cached_stage(
        f"{side} tokens{of}",
        directory,
        documents.text,
        open_entry=lambda: TokenShards.open(directory, tokenizer.fingerprint),
        make_entry=lambda: write_token_shards(
            chosen,
            tokenizer,
            directory,
            store_weights=store_weights,
            num_documents=None if sources else documents.num_documents(side),
            title=f"encoding {side}",
        ),
        describe=describe,
        log=say,
    )
    shards.origin = documents.summary()
    reasons = [f"{count:,} conversation{'s' * (count > 1)} left out: {why}" for why, count in shards.left_out.items()]
    for reason in reasons:
        say(f"{side} tokens{of}: {reason}")
    if reasons and side == "train" and not shards.num_documents:
        raise UserError(f"--train_text: nothing is left to learn from ({', '.join(reasons)})")
    return shards


def put_results(data: PreparedData, output_dir: str | os.PathLike, overwrite: bool = False) -> Path:
    """Hard links (copies, on another disk) of tokenizer, shards and card in a directory of the user's choice.

    The directory then holds `tokenizer/`, `train/`, `validation/`, `card.md` and `prepared.json`; an earlier result of
    this function is replaced when it is another one.

    Raises:
        UserError: the directory holds something else, which `overwrite` allows to replace; nothing of it is touched.
    """
    output = Path(output_dir).expanduser()
    earlier = output / PREPARED
    if earlier.is_file() and read_json(earlier).get("fingerprint") == data.fingerprint:
        with contextlib.suppress(UserError):
            fingerprint = load_tokenizer(output / "tokenizer").fingerprint
            for side, shards in (("train", data.train), ("validation", data.validation)):
                if TokenShards.open(output / side, fingerprint).fingerprint != shards.fingerprint:
                    raise DamagedShards(f"{output / side}: another side's shards")
            return output
    with result_directory(output, "prepared data", "output_dir", overwrite) as temporary:
        data.tokenizer.save(temporary / "tokenizer")
        for side, shards in (("train", data.train), ("validation", data.validation)):
            (temporary / side).mkdir()
            for file in ("manifest.json", *(path.name for path in shards.files)):
                link_or_copy(shards.directory / file, temporary / side / file)
        shutil.copyfile(data.documents.card, temporary / "card.md")
        write_json(temporary / PREPARED, data.manifest)
    return output


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link where the file system allows it."""
    try:
        os.link(source, target)
    except OSError:
        with readable_write_errors(target):
            shutil.copyfile(source, target)
