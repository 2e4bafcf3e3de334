"""The text to evaluate on: given as `--text`, or what the model's run held out; as documents or as conversations."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf

from tfgpt.common.atomic_files import read_json
from tfgpt.common.errors import UserError
from tfgpt.corpus.build import build_documents
from tfgpt.corpus.config import CorpusConfig
from tfgpt.corpus.document_shards import DocumentShards
from tfgpt.evaluation.config import EvaluateConfig
from tfgpt.pipeline.batches import BatchReader, TokenReader, validation_batches, validation_steps
from tfgpt.pipeline.chat_batches import ChatReader, pack_conversations
from tfgpt.pipeline.chat_shards import ChatShards, describe_cuts, open_held_out
from tfgpt.pipeline.manifest import DamagedShards
from tfgpt.pipeline.stages import prepare_chat_shards, prepare_token_shards, source_specs
from tfgpt.pipeline.token_shards import TokenShards
from tfgpt.tokenization.tokenizer import Tokenizer

HELD_OUT = "held out by the run"


@dataclasses.dataclass(frozen=True)
class EvaluationText:
    """One text, ready to be predicted.

    Attributes:
        name: what the table calls it.
        fingerprint: of its tokens.
        batches: makes the finite dataset from `batch_size` and a host's share, as `batches.validation_batches` does.
        steps: rows of a global batch → global batches.
    """

    name: str
    fingerprint: str
    batches: Callable[..., tf.data.Dataset]
    steps: Callable[[int], int]


def say(line: str) -> None:
    """A line for the person watching; the table alone goes to standard output."""
    print(line, file=sys.stderr, flush=True)


def provenance(model: Path) -> dict[str, Any]:
    """What training.json says of the model's run; {} for a model that was not trained here."""
    path = model / "training.json"
    return read_json(path) if path.is_file() else {}


class Reader:
    """Finds and encodes texts.

    Args:
        config: which, and where the cache is.
        model: the model directory.
        tokenizer: the model's.
        length: T, tokens of a row.

    Attributes:
        trained: the objective of the model's run.
        chat: whether only what an assistant says in conversations counts.
        packed: whether attention stays within a document or conversation.
    """

    def __init__(self, config: EvaluateConfig, model: Path, tokenizer: Tokenizer, length: int):
        self.config, self.model, self.tokenizer, self.length = config, model, tokenizer, length
        self.provenance = provenance(model)
        self.flags: dict[str, Any] = self.provenance.get("flags", {})
        self.trained = self.flags.get("objective", "pretrain")
        self.chat = config.objective == "chat" or (config.objective == "auto" and self.trained != "pretrain")
        self.packed = self.chat or bool(self.flags.get("document_masking", False))

    def texts(self) -> list[EvaluationText]:
        """The texts of the settings, encoded unless they are in the cache.

        Raises:
            UserError: a text is at fault, or the model has no held-out text any more; the line says what to do.
        """
        if not self.config.text:
            return [self.held_out()]
        return [self.encoded(text, self.corpus(train_text=(text,)), "train") for text in self.config.text]

    def corpus(self, **options: Any) -> CorpusConfig:
        """All of a text as it is, nothing held out and repeated documents kept, unless the options say otherwise."""
        places = {name: getattr(self.config, name) for name in ("cache_dir", "tfds_data_dir")}
        given = {name: place for name, place in places.items() if place}
        settings = {"validation_fraction": 0.0, "deduplicate": False, "strict": self.config.strict}
        return CorpusConfig.from_dict({**settings, **options, **given})

    def encoded(
        self,
        name: str,
        corpus: CorpusConfig,
        side: str,
        check: Callable[[DocumentShards], None] = lambda documents: None,
    ) -> EvaluationText:
        """One side of a corpus; the cache's when it is there."""
        documents = build_documents(corpus, "text" if self.config.text else "train_text")
        check(documents)
        cache = corpus.cache_directory
        if not self.chat:
            return self.of_shards(name, prepare_token_shards(documents, side, self.tokenizer, cache, say))
        options: dict[str, Any] = {"length": self.length, "repeat_system": self.flags.get("repeat_system", True)}
        options["sources"] = source_specs(corpus, side)
        shards = prepare_chat_shards(documents, side, self.tokenizer, cache, say, **options)
        return self.of_conversations(name, shards)

    def held_out(self) -> EvaluationText:
        """What the model's run held out: the very tokens where they still are, else made again from their sources.

        Raises:
            UserError: the model has no run, or its text is gone or has changed.
        """
        data = self.provenance.get("data", {})
        wanted = data.get("validation", {})
        if not wanted:
            raise UserError(f"--text: is needed, {self.model} does not say what was held out when it was trained")
        if self.trained not in ("pretrain", "chat"):
            raise UserError(f"--text: is needed, what --objective={self.trained} holds out is no text to predict")
        found = self.in_the_cache(wanted)
        if found is not None:
            return found

        def check(documents: DocumentShards) -> None:
            if documents.fingerprint != data.get("documents", {}).get("fingerprint"):
                raise UserError("it, or how it is read, has changed since")

        try:
            return self.encoded(HELD_OUT, self.corpus(**data.get("corpus", {})), "validation", check)
        except UserError as error:
            raise UserError(
                f"--text: is needed, the text that the run held out cannot be made again: {error}"
            ) from error

    def in_the_cache(self, wanted: dict[str, Any]) -> EvaluationText | None:
        """The tokens that the run itself was judged by, if they are where they were."""
        try:
            opened = open_held_out(wanted, self.tokenizer)
        except DamagedShards as error:
            say(f"held out: {str(error).split(';')[0]}; making it again from its text")
            return None
        if isinstance(opened, ChatShards):
            as_wanted = self.chat and self.length == self.flags.get("sequence_length")
            return self.of_conversations(HELD_OUT, opened) if as_wanted else None
        return None if opened is None or self.chat else self.of_shards(HELD_OUT, opened)

    def of_shards(self, name: str, shards: TokenShards) -> EvaluationText:
        """Documents, one behind the other."""
        return self.of_rows(name, shards.fingerprint, TokenReader(shards, self.length, document_masking=self.packed))

    def of_conversations(self, name: str, conversations: ChatShards) -> EvaluationText:
        """Conversations, packed in rows."""
        [packing] = pack_conversations(conversations, self.length)
        if not len(packing):
            counts = describe_cuts(conversations.manifest["counts"], "; ")
            words = f"{conversations.origin}{counts}"
            raise UserError(f"--text: {name} has no conversation in which an assistant says something: {words}")
        reader = ChatReader(conversations, packing, self.length, self.tokenizer.padding_id)
        return self.of_rows(name, conversations.fingerprint, reader)

    def of_rows(self, name: str, fingerprint: str, reader: BatchReader) -> EvaluationText:
        """The rows of a reader."""
        make, steps = (functools.partial(function, reader) for function in (validation_batches, validation_steps))
        return EvaluationText(name, fingerprint, make, steps)
