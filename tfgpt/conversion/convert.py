"""Finds out what a source is, opens it without reading it in full, and writes it as a model directory of ours."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import tfgpt
from tfgpt.common.errors import UserError
from tfgpt.common.files import sha256_of_json, write_json
from tfgpt.common.outputs import check_replaceable, result_directory
from tfgpt.conversion.config import ConvertConfig
from tfgpt.conversion.gguf_source import open_gguf
from tfgpt.conversion.hugging_face_source import HUB_NAME, open_hub, open_hugging_face
from tfgpt.conversion.keras_hub_source import open_preset
from tfgpt.conversion.source import Source
from tfgpt.model.checkpoints.checkpoint import Checkpoint
from tfgpt.model.checkpoints.huggingface import transformers_model_type, write_checkpoint

DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


def convert(config: ConvertConfig, say: Callable[[str], None]) -> Path:
    """Converts.

    Args:
        config: where from, where to.
        say: gets lines on what happens.

    Returns:
        The written directory.

    Raises:
        UserError: the source cannot be read, or has something that we cannot compute, or --output holds other files;
            nothing is written then.
        RunError: the disk is full.
    """
    output = Path(config.output).expanduser()
    check_replaceable(output, "model directory", "output", config.overwrite)
    source = open_source(config.source)
    checkpoint, tokenizer = source.checkpoint, source.tokenizer
    if tokenizer.vocabulary_size > checkpoint.config.vocabulary_size:
        raise UserError(
            f"{config.source}: the tokenizer has {tokenizer.vocabulary_size} ids, the model "
            f"{checkpoint.config.vocabulary_size}: they do not belong together"
        )
    dtype = checkpoint.dtype if config.weights == "as_stored" else DTYPES[config.weights]
    say(f"Source:  {source.kind}")
    say(f"Model:   {in_words(checkpoint)}")
    with result_directory(output, "model directory", "output", config.overwrite) as temporary:
        ends = tokenizer.stop_ids
        start = tokenizer.start_ids[0] if tokenizer.start_ids else None
        # The last one is what config.json says ends a text.
        stops = [*dict.fromkeys(end for end in ends if end != tokenizer.end_of_text_id), tokenizer.end_of_text_id]
        tokens = {"bos_token_id": start, "eos_token_id": stops, "pad_token_id": tokenizer.padding_id}
        write_checkpoint(checkpoint, temporary, dtype, tokens)
        tokenizer.save(temporary, checkpoint.config.max_sequence_length)
        write_json(temporary / "training.json", provenance(config, source, dtype))
    size = sum(path.stat().st_size for path in output.iterdir())
    say(f"Written: {output} ({size / 1e6:.1f} MB, {dtype.name})")
    return output


def open_source(source: str) -> Source:
    """Opens whatever --source names.

    Raises:
        UserError: it is nothing that we can read.
    """
    path = Path(source).expanduser()
    if path.suffix == ".gguf":
        return open_gguf(path)
    if path.is_dir() and (path / "metadata.json").is_file() and (path / "config.json").is_file():
        return open_preset(path)
    if path.is_dir():
        return open_hugging_face(path)
    if not path.exists() and HUB_NAME.fullmatch(source):
        return open_hub(source)
    raise UserError(f"--source: {path} is neither a directory with a model nor a .gguf file")


def in_words(checkpoint: Checkpoint) -> str:
    """The model in a line."""
    config = checkpoint.config
    model_type, _ = transformers_model_type(config)
    return (
        f"{model_type or 'tfgpt'}, {config.num_layers} layers x {config.hidden_dim}, {config.num_query_heads} heads / "
        f"{config.num_key_value_heads} of keys and values, vocabulary {config.vocabulary_size:,}, "
        f"context {config.max_sequence_length:,}"
    )


def provenance(config: ConvertConfig, source: Source, dtype: np.dtype) -> dict[str, Any]:
    """What training.json says of a converted model."""
    return {
        "converted": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "source": config.source,
        "source_fingerprint": sha256_of_json(source.provenance),
        "source_description": source.provenance,
        "weights": dtype.name,
        "decoder": source.checkpoint.config.to_dict(),
        "versions": {"tfgpt": tfgpt.__version__},
    }
