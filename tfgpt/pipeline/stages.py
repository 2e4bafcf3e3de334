"""The cached stages of data preparation: documents, tokenizer, token shards, chat shards.

Every stage is kept in the cache under a hash of its inputs: documents under their sources and options, the tokenizer
under the documents and its options, shards under the documents, the side, the tokenizer and its chat template. A
change makes that stage and the following ones again; earlier entries are kept. A damaged entry is named and made again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tfgpt.common.atomic_files import atomic_directory, read_json, sha256_of_json, write_json
from tfgpt.common.errors import UserError
from tfgpt.common.formatting import format_bytes
from tfgpt.corpus.build import build_documents
from tfgpt.corpus.cache import cached_stage, made_or_reused
from tfgpt.corpus.config import CorpusConfig
from tfgpt.corpus.document_shards import DocumentShards, describe_dropped
from tfgpt.corpus.sources import open_sources
from tfgpt.corpus.sources.base import content_texts
from tfgpt.corpus.sources.files import FileSource
from tfgpt.pipeline import chat_shards, token_shards
from tfgpt.pipeline.chat_shards import ChatShards, write_chat_shards
from tfgpt.pipeline.token_shards import TokenShards, write_token_shards
from tfgpt.tokenization.chat_template import get_chat_template
from tfgpt.tokenization.config import TokenizerConfig
from tfgpt.tokenization.load import load_tokenizer
from tfgpt.tokenization.special_tokens import CHAT_TEMPLATE
from tfgpt.tokenization.tokenizer import Tokenizer
from tfgpt.tokenization.train_tokenizer import make_tokenizer

# Part of every tokenizer's key: raise it when the same documents and options train another tokenizer than before.
TOKENIZER_FORMAT = 1

Log = Callable[[str], None]
Shards = TypeVar("Shards", TokenShards, ChatShards)


def prepare_documents(corpus: CorpusConfig, log: Log) -> DocumentShards:
    """Builds the documents, or finds them in the cache."""
    started = time.monotonic()
    folder = corpus.cache_directory / "documents"
    before = set(os.listdir(folder)) if folder.is_dir() else set()
    documents = build_documents(corpus)
    counts = [
        f"{documents.num_documents(side):,} {word} ({format_bytes(documents.num_bytes(side))})"
        for side, word in (("train", "to train on"), ("validation", "held out"))
    ]
    if documents.manifest["dropped"]:
        counts.append(describe_dropped(documents.manifest["dropped"]))
    made = made_or_reused(documents.directory.name not in before, started)
    log(f"documents: {', '.join(counts)}; {made} {documents.directory}")
    return documents


def prepare_tokenizer(config: TokenizerConfig, documents: DocumentShards, cache: Path, log: Log) -> Tokenizer:
    """Loads or trains the tokenizer. A trained one sees the training side only, and is kept in the cache."""
    if config.tokenizer != "bpe":
        tokenizer = make_tokenizer(config, ())
        origin = "the bytes" if config.tokenizer == "bytes" else f"from {config.tokenizer}"
        log(f"tokenizer: {tokenizer.vocabulary_size:,} ids, {origin}")
        return tokenizer
    key = {"format": TOKENIZER_FORMAT, "documents": documents.fingerprint, "settings": config.to_dict()}
    directory = cache / "tokenizers" / sha256_of_json(key)[:32]

    def open_tokenizer() -> Tokenizer:
        tokenizer, manifest = load_tokenizer(directory), read_json(directory / "manifest.json")
        if not isinstance(manifest, dict) or manifest.get("fingerprint") != tokenizer.fingerprint:
            raise UserError(f"{directory}: the tokenizer changed since it was trained")
        return tokenizer

    def train_tokenizer() -> Tokenizer:
        texts = (text for document in documents.documents("train") for text in content_texts(document))
        tokenizer = make_tokenizer(config, texts, total_bytes=documents.num_bytes("train"))
        manifest = {"fingerprint": tokenizer.fingerprint, "settings": config.to_dict()}
        with atomic_directory(directory) as temporary:
            tokenizer.save(temporary)
            write_json(temporary / "manifest.json", manifest)
        return tokenizer

    return cached_stage(
        "tokenizer",
        directory,
        documents.text,
        open_entry=open_tokenizer,
        make_entry=train_tokenizer,
        describe=lambda tokenizer: f"{tokenizer.vocabulary_size:,} ids",
        log=log,
    )


def prepare_token_shards(
    documents: DocumentShards, side: str, tokenizer: Tokenizer, cache: Path, log: Log, sources: Sequence[str] = ()
) -> TokenShards:
    """Encodes the documents of one side, or of some sources of it; finds them in the cache the next time."""
    template = tokenizer.config.get("chat_template")
    key = {
        "format": token_shards.FORMAT_VERSION,
        "documents": documents.fingerprint,
        "side": side,
        "tokenizer": tokenizer.fingerprint,
        "store_weights": False,
        # The default template is not named, so that keys from before templates were named stay valid.
        **({} if template in (None, CHAT_TEMPLATE) else {"template": template}),
        **({"sources": list(sources)} if sources else {}),
    }
    chosen = documents.documents(side)
    if sources:
        names = frozenset(sources)
        chosen = (document for document in chosen if document["source"] in names)
    total = None if sources else documents.num_documents(side)
    stage = f"{side} tokens"
    if sources:
        stage += f" of {', '.join(sources[:3])}{', …' if len(sources) > 3 else ''}"

    def write(directory: Path) -> TokenShards:
        return write_token_shards(chosen, tokenizer, directory, num_documents=total, title=f"encoding {side}")

    shards = cached_shards(stage, documents, cache / "tokens", key, TokenShards, write, log)
    reasons = [f"{count:,} conversation{'s' * (count > 1)} left out: {why}" for why, count in shards.left_out.items()]
    for reason in reasons:
        log(f"{stage}: {reason}")
    if reasons and side == "train" and not shards.num_documents:
        raise UserError(f"--train_text: nothing is left to learn from ({', '.join(reasons)})")
    return shards


def prepare_chat_shards(
    documents: DocumentShards,
    side: str,
    tokenizer: Tokenizer,
    cache: Path,
    log: Log,
    *,
    sources: Mapping[str, str],
    length: int,
    repeat_system: bool,
) -> ChatShards:
    """Encodes the conversations of one side in parts of `length` tokens; finds them in the cache the next time."""
    options: dict[str, Any] = {"length": length, "repeat_system": repeat_system}
    key = {
        "format": chat_shards.FORMAT_VERSION,
        "documents": documents.fingerprint,
        "side": side,
        "tokenizer": tokenizer.fingerprint,
        "templates": [get_chat_template(tokenizer, with_tools).to_dict() for with_tools in (False, True)],
        "sources": sources,
        **options,
    }

    def write(directory: Path) -> ChatShards:
        progress: dict[str, Any] = {"num_documents": documents.num_documents(side), "title": f"encoding {side}"}
        return write_chat_shards(
            documents.documents(side), tokenizer, directory, sources=sources, **options, **progress
        )

    return cached_shards(f"{side} conversations", documents, cache / "conversations", key, ChatShards, write, log)


def cached_shards(
    stage: str,
    documents: DocumentShards,
    folder: Path,
    key: Mapping[str, Any],
    kind: type[Shards],
    write: Callable[[Path], Shards],
    log: Log,
) -> Shards:
    directory = folder / sha256_of_json(key)[:32]
    shards = cached_stage(
        stage,
        directory,
        documents.text,
        open_entry=lambda: kind.open(directory),
        make_entry=lambda: write(directory),
        describe=kind.describe,
        log=log,
    )
    shards.origin = documents.summary()
    return shards


def source_specs(corpus: CorpusConfig, side: str) -> dict[str, str]:
    """Returns for each `source` of documents of a side the source as the user wrote it."""
    specs = corpus.validation_text if side == "validation" and corpus.validation_text else corpus.train_text
    known: dict[str, str] = {}
    for source in open_sources(specs, cache_dir=corpus.cache_directory, tfds_data_dir=corpus.tfds_data_dir):
        names = [str(path) for path in source.paths] if isinstance(source, FileSource) else [source.spec]
        for name in names:
            known.setdefault(name, source.spec)
    return known
