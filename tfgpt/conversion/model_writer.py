"""Writes an opened source as a model directory of ours, tensor by tensor."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import tfgpt
from tfgpt.common.atomic_files import sha256_of_json, write_json
from tfgpt.common.errors import UserError
from tfgpt.conversion.source import Source
from tfgpt.model.checkpoints.huggingface import write_checkpoint

DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


def write_model_directory(source: Source, name: str, weights: str, directory: Path) -> np.dtype:
    """Writes a source as a model directory, and what it was made from into training.json.

    Args:
        source: the opened source.
        name: what a person calls it.
        weights: as --weights.
        directory: a folder that is there.

    Returns:
        The type of the written weights.

    Raises:
        UserError: model and tokenizer do not belong together.
        RunError: the disk is full.
    """
    checkpoint, tokenizer = source.checkpoint, source.tokenizer
    if tokenizer.vocabulary_size > checkpoint.config.vocabulary_size:
        raise UserError(
            f"{name}: the tokenizer has {tokenizer.vocabulary_size} ids, the model "
            f"{checkpoint.config.vocabulary_size}: they do not belong together"
        )
    dtype = checkpoint.dtype if weights == "as_stored" else DTYPES[weights]
    start = tokenizer.start_ids[0] if tokenizer.start_ids else None
    # The last one is what config.json says ends a text.
    stops = [end for end in dict.fromkeys(tokenizer.stop_ids) if end != tokenizer.end_of_text_id]
    stops.append(tokenizer.end_of_text_id)
    tokens = {"bos_token_id": start, "eos_token_id": stops, "pad_token_id": tokenizer.padding_id}
    write_checkpoint(checkpoint, directory, dtype, tokens)
    tokenizer.save(directory, checkpoint.config.max_sequence_length)
    write_json(directory / "training.json", provenance(name, source, dtype))
    return dtype


def provenance(name: str, source: Source, dtype: np.dtype) -> dict[str, Any]:
    """What training.json says of a converted model."""
    return {
        "converted": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "source": name,
        "source_fingerprint": sha256_of_json(source.provenance),
        "source_description": source.provenance,
        "weights": dtype.name,
        "decoder": source.checkpoint.config.to_dict(),
        "versions": {"tfgpt": tfgpt.__version__},
    }
