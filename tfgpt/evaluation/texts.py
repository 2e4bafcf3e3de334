"""Texts to evaluate on: those of --text, or the text that the model's run held out."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

from tfgpt.common.atomic_files import read_json
from tfgpt.common.errors import SettingError, UserError
from tfgpt.corpus.build import build_documents
from tfgpt.corpus.config import CorpusConfig
from tfgpt.evaluation.config import EvaluateConfig
from tfgpt.model.checkpoints.huggingface import load_config
from tfgpt.pipeline.batches import BatchReader, TokenReader
from tfgpt.pipeline.chat_batches import ChatReader, pack_conversations
from tfgpt.pipeline.chat_shards import ChatShards, describe_cuts, open_held_out
from tfgpt.pipeline.manifest import DamagedShards
from tfgpt.pipeline.stages import prepare_chat_shards, prepare_token_shards, source_specs
from tfgpt.pipeline.token_shards import TokenShards
from tfgpt.tokenization.load import load_tokenizer

HELD_OUT = "held out by the run"
# Tokens in a row for models without a training length: attention over longer rows needs gigabytes.
MAX_DEFAULT_LENGTH = 1024


@dataclasses.dataclass(frozen=True)
class EvaluationText:
    """An encoded text with its name in the table."""

    name: str
    fingerprint: str
    reader: BatchReader


class TextLoader:
    """Finds and encodes texts for a model directory.

    Attributes:
        length: tokens in a row.
        chat: whether only the assistant's tokens in conversations count.
        packed: whether attention stays within a document or conversation.
    """

    def __init__(self, config: EvaluateConfig, model: Path):
        self.config, self.model, self.tokenizer = config, model, load_tokenizer(model)
        provenance = model / "training.json"
        self.provenance = read_json(provenance) if provenance.is_file() else {}
        self.flags: dict[str, Any] = self.provenance.get("flags", {})
        self.trained_objective = self.flags.get("objective", "pretrain")
        objective = self.trained_objective if config.objective == "auto" else config.objective
        self.chat = objective != "pretrain"
        self.packed = self.chat or bool(self.flags.get("document_masking", False))
        positions = load_config(model).max_sequence_length
        trained_length = self.flags.get("sequence_length")
        self.length = config.sequence_length or trained_length or min(positions, MAX_DEFAULT_LENGTH)
        if self.length > positions:
            raise SettingError("sequence_length", f"{self.length} is longer than the model's {positions} positions")

    def texts(self) -> list[EvaluationText]:
        if not self.config.text:
            return [self.held_out()]
        return [self.encode(text, self.corpus(train_text=(text,)), "train") for text in self.config.text]

    def held_out(self) -> EvaluationText:
        """Returns the text that the model's run held out, from the cache or made again from its sources."""
        data = self.provenance.get("data", {})
        if not data.get("validation"):
            raise UserError(f"--text: is needed, {self.model} does not say what was held out when it was trained")
        if self.trained_objective not in ("pretrain", "chat"):
            objective = f"--objective={self.trained_objective}"
            raise UserError(f"--text: is needed, what {objective} holds out is not a text to predict")
        if found := self.cached(data["validation"]):
            return found
        try:
            return self.encode(HELD_OUT, self.corpus(**data.get("corpus", {})), "validation", data.get("documents", {}))
        except UserError as error:
            problem = f"the text that the run held out cannot be made again: {error}"
            raise UserError(f"--text: is needed, {problem}") from error

    def cached(self, held_out: dict[str, Any]) -> EvaluationText | None:
        """Returns the tokens of the run's own validations, or None if they are gone or were cut differently."""
        try:
            shards = open_held_out(held_out, self.tokenizer)
        except DamagedShards as error:
            log(f"held out: {str(error).split(';')[0]}; making it again from its text")
            return None
        if isinstance(shards, ChatShards):
            usable = self.chat and self.length == self.flags.get("sequence_length")
            return self.from_conversations(HELD_OUT, shards) if usable else None
        return None if shards is None or self.chat else self.from_tokens(HELD_OUT, shards)

    def corpus(self, **options: Any) -> CorpusConfig:
        # Unless the options say otherwise, the whole text is read.
        folders = {name: getattr(self.config, name) for name in ("cache_dir", "tfds_data_dir")}
        settings = {"validation_fraction": 0.0, "deduplicate": False, "strict": self.config.strict, **options}
        return CorpusConfig.from_dict(settings | {name: folder for name, folder in folders.items() if folder})

    def encode(
        self, name: str, corpus: CorpusConfig, side: str, expected: dict[str, Any] | None = None
    ) -> EvaluationText:
        """Returns one side of a corpus, whose documents must have the `expected` fingerprint, if it is given."""
        documents = build_documents(corpus, "text" if self.config.text else "train_text")
        if expected is not None and documents.fingerprint != expected.get("fingerprint"):
            raise UserError("it, or how it is read, has changed since")
        arguments = (documents, side, self.tokenizer, corpus.cache_directory, log)
        if not self.chat:
            return self.from_tokens(name, prepare_token_shards(*arguments))
        shards = prepare_chat_shards(
            *arguments,
            length=self.length,
            repeat_system=self.flags.get("repeat_system", True),
            sources=source_specs(corpus, side),
        )
        return self.from_conversations(name, shards)

    def from_tokens(self, name: str, shards: TokenShards) -> EvaluationText:
        reader = TokenReader(shards, self.length, document_masking=self.packed)
        return EvaluationText(name, shards.fingerprint, reader)

    def from_conversations(self, name: str, shards: ChatShards) -> EvaluationText:
        [packing] = pack_conversations(shards, self.length)
        if not len(packing):
            found = f"{shards.origin}{describe_cuts(shards.manifest['counts'], '; ')}"
            raise UserError(f"--text: {name} has no conversation in which an assistant says something: {found}")
        reader = ChatReader(shards, packing, self.length, self.tokenizer.padding_id)
        return EvaluationText(name, shards.fingerprint, reader)


def log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
