"""The text to evaluate on, as token shards: given as `--text`, or what the model's run held out. No TensorFlow."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tfgpt.common.errors import UserError
from tfgpt.common.files import read_json
from tfgpt.corpus.build import build_documents
from tfgpt.corpus.config import CorpusConfig
from tfgpt.evaluation.config import EvaluateConfig
from tfgpt.pipeline.prepare import prepared_shards
from tfgpt.pipeline.shards import TokenShards
from tfgpt.tokenization.tokenizer import Tokenizer

HELD_OUT = "held out by the run"


@dataclasses.dataclass(frozen=True)
class Text:
    """One text, ready to be predicted.

    Attributes:
        name: what the table calls it.
        shards: its tokens.
    """

    name: str
    shards: TokenShards


def say(line: str) -> None:
    """A line for the person watching; the table alone goes to standard output."""
    print(line, file=sys.stderr, flush=True)


def provenance(model: Path) -> dict[str, Any]:
    """What training.json says of the model's run; {} for a model that was not trained here."""
    path = model / "training.json"
    return read_json(path) if path.is_file() else {}


def texts_of(config: EvaluateConfig, model: Path, tokenizer: Tokenizer) -> list[Text]:
    """The texts of the settings, encoded unless they are in the cache.

    Args:
        config: which, and where the cache is.
        model: the model directory.
        tokenizer: the model's.

    Raises:
        UserError: a text is at fault, or the model has no held-out text any more; the line says what to do.
    """
    if not config.text:
        return [Text(HELD_OUT, held_out(config, model, tokenizer))]
    return [Text(text, encoded(corpus_of(config, train_text=(text,)), tokenizer, "train")) for text in config.text]


def corpus_of(config: EvaluateConfig, **options: Any) -> CorpusConfig:
    """All of a text as it is: nothing held out, repeated documents kept."""
    return CorpusConfig(
        cache_dir=config.cache_dir,
        tfds_data_dir=config.tfds_data_dir,
        **{"validation_fraction": 0.0, "deduplicate": False, **options},
    )


def encoded(corpus: CorpusConfig, tokenizer: Tokenizer, side: str, report: Callable[[str], None] = say) -> TokenShards:
    """The token shards of one side of a corpus; the cache's when they are there."""
    return prepared_shards(build_documents(corpus), side, tokenizer, corpus.cache_directory, False, report)


def held_out(config: EvaluateConfig, model: Path, tokenizer: Tokenizer) -> TokenShards:
    """The held-out text of the model's run: the very shards where they still are, else made again from its sources.

    Raises:
        UserError: the model has no run, or its text is gone or has changed.
    """
    data = provenance(model).get("data", {})
    wanted = data.get("validation", {})
    if not wanted:
        raise UserError(f"--text: is needed, {model} does not say what was held out when it was trained")
    directory = Path(wanted.get("directory", ""))
    if (directory / "manifest.json").is_file():
        shards = TokenShards.open(directory, tokenizer.fingerprint)
        if shards.fingerprint == wanted.get("fingerprint"):
            return shards
    try:
        kept = CorpusConfig.from_dict(data.get("corpus", {})).to_dict()
        places = {name: getattr(config, name) for name in ("cache_dir", "tfds_data_dir") if getattr(config, name)}
        shards = encoded(CorpusConfig.from_dict({**kept, **places}), tokenizer, "validation")
    except UserError as error:
        raise UserError(f"--text: is needed, the text that the run held out cannot be made again ({error})") from error
    if shards.fingerprint != wanted.get("fingerprint"):
        raise UserError("--text: is needed, the text of the run has changed since, and so has what it would hold out")
    return shards
