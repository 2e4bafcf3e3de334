"""An opened source model, and its conversion to a model directory."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import tfgpt
from tfgpt.common.atomic_files import sha256_of_json, write_json
from tfgpt.common.errors import UserError
from tfgpt.model.checkpoints.huggingface import write_checkpoint
from tfgpt.model.checkpoints.lazy_weights import LazyWeights
from tfgpt.tokenization.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Source:
    """An opened and checked source. Its weights are not read yet.

    Attributes:
        description: one line for log messages.
        checkpoint: the model.
        tokenizer: the tokenizer, which also has the tokens that end a text.
        provenance: the source's entry in training.json.
    """

    description: str
    checkpoint: LazyWeights
    tokenizer: Tokenizer
    provenance: dict[str, Any]

    def write(self, name: str, weights: str, directory: Path) -> np.dtype:
        """Writes model, tokenizer and training.json, tensor by tensor; returns the dtype of the written weights."""
        config, tokenizer = self.checkpoint.config, self.tokenizer
        if tokenizer.vocabulary_size > config.vocabulary_size:
            raise UserError(
                f"{name}: the tokenizer has {tokenizer.vocabulary_size} ids, the model {config.vocabulary_size}: they "
                "do not belong together"
            )
        dtype = self.checkpoint.dtype if weights == "as_stored" else np.dtype(getattr(ml_dtypes, weights, weights))
        start = tokenizer.start_ids[0] if tokenizer.start_ids else None
        # config.json takes the last one as the end of a text.
        stops = [end for end in dict.fromkeys(tokenizer.stop_ids) if end != tokenizer.end_of_text_id]
        stops.append(tokenizer.end_of_text_id)
        tokens = {"bos_token_id": start, "eos_token_id": stops, "pad_token_id": tokenizer.padding_id}
        write_checkpoint(self.checkpoint, directory, dtype, tokens)
        tokenizer.save(directory, config.max_sequence_length)
        provenance = {
            "converted": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "source": name,
            "source_fingerprint": sha256_of_json(self.provenance),
            "source_description": self.provenance,
            "weights": dtype.name,
            "decoder": config.to_dict(),
            "versions": {"tfgpt": tfgpt.__version__},
        }
        write_json(directory / "training.json", provenance)
        return dtype
