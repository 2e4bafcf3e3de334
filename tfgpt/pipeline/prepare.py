"""Data preparation: documents, tokenizer and shards of both sides, each made once and then found in the cache."""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

from tfgpt.common.atomic_files import readable_write_errors, sha256_of_json, write_json
from tfgpt.common.errors import SettingError
from tfgpt.common.output_directories import result_directory
from tfgpt.corpus.config import CorpusConfig
from tfgpt.corpus.document_shards import DocumentShards
from tfgpt.corpus.sources.base import content_texts
from tfgpt.pipeline.augmentation import Augmentation, read_paraphrases
from tfgpt.pipeline.chat_shards import ChatShards, describe_cuts
from tfgpt.pipeline.config import AugmentationConfig
from tfgpt.pipeline.manifest import MANIFEST
from tfgpt.pipeline.stages import (
    Shards,
    prepare_chat_shards,
    prepare_documents,
    prepare_token_shards,
    prepare_tokenizer,
    source_specs,
)
from tfgpt.pipeline.token_shards import TokenShards
from tfgpt.tokenization.config import TokenizerConfig
from tfgpt.tokenization.load import load_tokenizer
from tfgpt.tokenization.tokenizer import Tokenizer
from tfgpt.tokenization.vocabulary_report import vocabulary_report

SIDES = ("train", "validation")
# The tokenizer report encodes at most so much text.
REPORT_CHARACTERS = 5_000_000

Side = TypeVar("Side")


@dataclasses.dataclass(frozen=True)
class PreparedData(Generic[Side]):
    """The data of a run.

    Attributes:
        train, validation: both sides: token shards, chat shards, arrays or records, as the objective needs them.
        fingerprint: hexadecimal SHA-256 of all data and the tokenizer; file names and directories do not count.
        manifest: how the data were made: fingerprints of every stage, counts, directories; JSON.
        documents: the `DocumentShards` that both sides were made from; None for records.
        augmentation: changes of user messages in training.
        train_by_source, validation_by_source: the tokens of each source, where they were asked for.

    Example:

    >>> from tfgpt.tokenization.train_tokenizer import byte_tokenizer
    >>> PreparedData(["a", "b"], ["c"], byte_tokenizer(), fingerprint="12ab", manifest={}).train
    ['a', 'b']
    """

    train: Side
    validation: Side
    tokenizer: Tokenizer
    fingerprint: str
    manifest: dict[str, Any]
    documents: Any = None
    augmentation: Augmentation | None = None
    train_by_source: dict[str, TokenShards] = dataclasses.field(default_factory=dict)
    validation_by_source: dict[str, TokenShards] = dataclasses.field(default_factory=dict)


def prepare(
    corpus: CorpusConfig,
    tokenizer_config: TokenizerConfig,
    *,
    by_source: bool = False,
    log: Callable[[str], None] = print,
) -> PreparedData[TokenShards]:
    """Makes the documents, the tokenizer and the token shards of both sides, or finds them in the cache.

    Args:
        corpus: sources, split and cache directory. With --validation_fraction=0 the held-out side is a single
            end-of-text without a target.
        tokenizer_config: tokenizer settings; a trained tokenizer sees the training side only.
        by_source: also makes the token shards of each source.
        log: receives one line a stage.
    """
    prepare_side = functools.partial(prepare_token_shards, cache=corpus.cache_directory, log=log)
    data = prepare_sides(corpus, tokenizer_config, log, prepare_side)
    sources: dict[str, dict[str, TokenShards]] = {side: {} for side in SIDES}
    for side in SIDES if by_source else ():
        names: dict[str, list[str]] = {}
        for name, spec in source_specs(corpus, side).items():
            names.setdefault(spec, []).append(name)
        for spec, names_of_spec in names.items():
            shards = prepare_side(data.documents, side, data.tokenizer, sources=names_of_spec)
            shards.origin = f"{spec}, {data.documents.summary(spec)}"
            sources[side][spec] = shards
    return dataclasses.replace(data, train_by_source=sources["train"], validation_by_source=sources["validation"])


def prepare_chat(
    corpus: CorpusConfig,
    tokenizer_config: TokenizerConfig,
    augmentation: AugmentationConfig,
    *,
    length: int,
    seed: int,
    log: Callable[[str], None] = print,
) -> PreparedData[ChatShards]:
    """Makes the documents, the tokenizer and the chat shards of both sides, or finds them in the cache.

    Arguments are those of `prepare`, with

    Args:
        augmentation: how long conversations are cut, and what changes in training.
        length: T, tokens of a row.
        seed: seed of the augmentation.
    """
    paraphrases = read_paraphrases(augmentation.paraphrases, corpus.tfds_data_dir) if augmentation.paraphrases else {}

    def prepare_side(documents: DocumentShards, side: str, tokenizer: Tokenizer) -> ChatShards:
        specs = source_specs(corpus, side)
        options: dict[str, Any] = {"length": length, "repeat_system": augmentation.repeat_system, "sources": specs}
        return prepare_chat_shards(documents, side, tokenizer, corpus.cache_directory, log, **options)

    data = prepare_sides(corpus, tokenizer_config, log, prepare_side, paraphrases)
    refuse_empty(data.train, "train_text", "to learn from")
    if corpus.validation_text or corpus.validation_fraction:
        flag = "validation_text" if corpus.validation_text else "validation_fraction"
        refuse_empty(data.validation, flag, "held out")
    if paraphrases:
        dialogues = map(data.train.dialogue, range(len(data.train)))
        said = {(message["content"] or "").strip() for part in dialogues for message in part["messages"]}
        found = len(said & paraphrases.keys())
        log(f"paraphrases: {len(paraphrases):,} phrasings, {found:,} of them are said in the training conversations")
    return dataclasses.replace(data, augmentation=Augmentation(augmentation, paraphrases, seed))


def tokenizer_report(data: PreparedData[TokenShards]) -> list[str]:
    """Returns lines on how the vocabulary fits held-out documents, or training documents if none are held out."""
    documents = data.documents
    side, name = ("validation", "held-out") if documents.num_documents("validation") else ("train", "training")

    def texts() -> Iterator[str]:
        left = REPORT_CHARACTERS
        for document in documents.documents(side):
            for text in content_texts(document):
                yield text[:left]
                left -= len(text)
                if left <= 0:
                    return

    lines = vocabulary_report(data.tokenizer, texts())
    return [f"Tokenizer on {name} text:", *(f"  {line}" for line in lines)]


def export_results(data: PreparedData[TokenShards], output_dir: str | os.PathLike, overwrite: bool = False) -> Path:
    """Writes `tokenizer/`, `train/`, `validation/`, `card.md` and `prepared.json` to a directory.

    The files of the shards are hard links to the cache, or copies on another disk. An earlier result is replaced; other
    files only with `overwrite`.
    """
    output = Path(output_dir).expanduser()
    with result_directory(output, "prepared data", "output_dir", overwrite) as temporary:
        data.tokenizer.save(temporary / "tokenizer")
        for side, shards in (("train", data.train), ("validation", data.validation)):
            (temporary / side).mkdir()
            for path in (shards.directory / MANIFEST, *shards.files):
                target = temporary / side / path.name
                try:
                    os.link(path, target)
                except OSError:
                    with readable_write_errors(target):
                        shutil.copyfile(path, target)
        shutil.copyfile(data.documents.card, temporary / "card.md")
        write_json(temporary / "prepared.json", data.manifest)
    return output


def prepare_sides(
    corpus: CorpusConfig,
    tokenizer_config: TokenizerConfig,
    log: Callable[[str], None],
    prepare_side: Callable[[DocumentShards, str, Tokenizer], Shards],
    *more: Any,
) -> PreparedData[Shards]:
    if tokenizer_config.tokenizer not in ("bpe", "bytes"):
        load_tokenizer(tokenizer_config.tokenizer)  # Reports its faults before the text is read.
    documents = prepare_documents(corpus, log)
    tokenizer = prepare_tokenizer(tokenizer_config, documents, corpus.cache_directory, log)
    train, validation = (prepare_side(documents, side, tokenizer) for side in SIDES)
    fingerprint = sha256_of_json([train.fingerprint, validation.fingerprint, *more])
    manifest = {
        "fingerprint": fingerprint,
        "documents": {"fingerprint": documents.fingerprint, "directory": str(documents.directory)},
        "tokenizer": {"fingerprint": tokenizer.fingerprint, "settings": tokenizer_config.to_dict()},
        "corpus": corpus.to_dict(),
        "train": train.summary(),
        "validation": validation.summary(),
    }
    return PreparedData(train, validation, tokenizer, fingerprint, manifest, documents)


def refuse_empty(shards: ChatShards, flag: str, purpose: str) -> None:
    if len(shards):
        return
    counts = shards.manifest["counts"]
    cuts = f" of {shards.manifest['conversations']:,} ({describe_cuts(counts)})" if counts else ""
    longer = f"a longer --sequence_length than {shards.manifest['length']}"
    advice = longer if counts.get("cut") else "more conversations or other ones"
    raise SettingError(flag, f"no conversation is left {purpose}{cuts}: {shards.origin}; give {advice}")
