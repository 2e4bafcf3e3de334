"""From dialogues to what chat tuning reads: documents, a tokenizer, conversations as ids, each kept in the cache.

The same stages as `tfgpt.pipeline.prepare`, with conversations in the place of token shards. They depend on the length
of a row (that is where long ones are cut) and on the chat template.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tfgpt.common.atomic_files import sha256_of_json
from tfgpt.common.errors import SettingError
from tfgpt.corpus.cache import cached_stage
from tfgpt.corpus.config import CorpusConfig
from tfgpt.corpus.document_shards import DocumentShards
from tfgpt.pipeline.augmentation import Augmentation, read_paraphrases
from tfgpt.pipeline.chat_shards import FORMAT_VERSION, ChatShards, write_conversations
from tfgpt.pipeline.config import AugmentationConfig
from tfgpt.pipeline.prepare import prepared_documents, prepared_tokenizer, spec_of_source
from tfgpt.tokenization.chat_template import get_chat_template
from tfgpt.tokenization.config import TokenizerConfig
from tfgpt.tokenization.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class PreparedChat:
    """What chat tuning reads.

    Attributes:
        train: the conversations to learn from.
        validation: those held out.
        tokenizer: made the ids.
        documents: what they were made from.
        augmentation: changes of what users say in training.
        fingerprint: hexadecimal SHA-256 of all ids, the tokenizer and the paraphrases.
        manifest: how it was made.
    """

    train: ChatShards
    validation: ChatShards
    tokenizer: Tokenizer
    documents: DocumentShards
    augmentation: Augmentation
    fingerprint: str
    manifest: dict[str, Any]


def prepare_chat(
    corpus: CorpusConfig,
    tokenizer: TokenizerConfig,
    augmentation: AugmentationConfig,
    *,
    length: int,
    seed: int,
    say: Callable[[str], None] = print,
) -> PreparedChat:
    """Makes, or finds in the cache, the documents, the tokenizer and the conversations of both sides.

    Args:
        corpus: which dialogues, how split, and the cache directory.
        tokenizer: which tokenizer, with its chat template.
        augmentation: how long conversations are cut, and what is changed in training.
        length: T, tokens of a row.
        seed: of the changes.
        say: told one line a stage.

    Raises:
        UserError: the text or a flag is at fault; the line names it.
        RunError: the disk is full, or documents in the cache are damaged.
    """
    cache = corpus.cache_directory
    paraphrases = read_paraphrases(augmentation.paraphrases, corpus.tfds_data_dir) if augmentation.paraphrases else {}
    documents = prepared_documents(corpus, cache, say)
    made_tokenizer = prepared_tokenizer(tokenizer, documents, cache, say)
    options = {"length": length, "repeat_system": augmentation.repeat_system}
    sides = {
        "train": spec_of_source(corpus, corpus.train_text),
        "validation": spec_of_source(corpus, corpus.validation_text or corpus.train_text),
    }
    train, validation = (
        prepared_side(documents, side, made_tokenizer, cache, sources, options, say) for side, sources in sides.items()
    )
    refuse_nothing(train, "train_text", "to learn from", documents)
    if corpus.validation_text or corpus.validation_fraction:
        flag = "validation_text" if corpus.validation_text else "validation_fraction"
        refuse_nothing(validation, flag, "held out", documents)
    if paraphrases:
        said = {(message["content"] or "").strip() for part in train.dialogues() for message in part["messages"]}
        found = len(said & paraphrases.keys())
        say(f"paraphrases: {len(paraphrases):,} phrasings, {found:,} of them are said in the training conversations")
    fingerprint = sha256_of_json([train.fingerprint, validation.fingerprint, paraphrases])
    manifest = {
        "fingerprint": fingerprint,
        "documents": {"fingerprint": documents.fingerprint, "directory": str(documents.directory)},
        "tokenizer": {"fingerprint": made_tokenizer.fingerprint, "settings": tokenizer.to_dict()},
        "corpus": corpus.to_dict(),
        "train": summary(train),
        "validation": summary(validation),
    }
    changes = Augmentation(augmentation, paraphrases, seed)
    return PreparedChat(train, validation, made_tokenizer, documents, changes, fingerprint, manifest)


def prepared_side(
    documents: DocumentShards,
    side: str,
    tokenizer: Tokenizer,
    cache: Path,
    sources: Mapping[str, str],
    options: Mapping[str, Any],
    say: Callable[[str], None],
) -> ChatShards:
    """The conversations of one side, with their line."""
    key = {
        "format": FORMAT_VERSION,
        "documents": documents.fingerprint,
        "side": side,
        "tokenizer": tokenizer.fingerprint,
        "templates": [get_chat_template(tokenizer, with_tools).to_dict() for with_tools in (False, True)],
        "sources": sources,
        **options,
    }
    directory = cache / "conversations" / sha256_of_json(key)[:32]

    def describe(made: ChatShards) -> str:
        counts = made.manifest
        return (
            f"{counts['conversations']:,} in {len(made):,} parts, {counts['tokens']:,} tokens, "
            f"{counts['learned']:,} of them the assistant's{in_words(counts['counts'], '; ')}"
        )

    conversations = cached_stage(
        f"{side} conversations",
        directory,
        documents.text,
        open_entry=lambda: ChatShards.open(directory),
        make_entry=lambda: write_conversations(
            documents.documents(side),
            tokenizer,
            directory,
            **options,
            sources=sources,
            num_documents=documents.num_documents(side),
            title=f"encoding {side}",
        ),
        describe=describe,
        log=say,
    )
    conversations.origin = documents.summary()
    return conversations


def refuse_nothing(conversations: ChatShards, flag: str, what: str, documents: DocumentShards) -> None:
    """Refuses a side of which no conversation is left, and says what became of those that were read.

    Raises:
        SettingError: naming the flag.
    """
    if len(conversations):
        return
    read, counts = conversations.manifest["conversations"], conversations.manifest["counts"]
    became = f" of {read:,} ({in_words(counts)})" if counts else ""
    length = conversations.manifest["length"]
    advice = f"a longer --sequence_length than {length}" if counts.get("cut") else "more conversations or other ones"
    raise SettingError(flag, f"no conversation is left {what}{became}: {documents.summary()}; give {advice}")


def in_words(counts: Mapping[str, int], before: str = "") -> str:
    """What happened to conversations that did not fit or were of no use."""
    words = []
    if counts.get("cut"):
        words.append(f"{counts['cut']:,} longer than a row were cut at turns")
    if counts.get("shortened"):
        words.append(f"{counts['shortened']:,} single exchanges lost their end")
    words += [f"{count:,} {reason}" for reason, count in counts.items() if reason.startswith("dropped: ")]
    return before + ", ".join(words) if words else ""


def summary(conversations: ChatShards) -> dict[str, Any]:
    """What a run's provenance says of one side."""
    names = ("conversations", "parts", "tokens", "learned", "counts")
    return {
        "fingerprint": conversations.fingerprint,
        "directory": str(conversations.directory),
        **{name: conversations.manifest[name] for name in names},
    }
