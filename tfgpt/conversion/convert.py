"""Converts a source of any kind to a model directory of ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tfgpt.common.model_paths import find_model
from tfgpt.common.output_directories import check_replaceable, result_directory
from tfgpt.conversion.cached_conversion import model_directory
from tfgpt.conversion.config import ConvertConfig
from tfgpt.conversion.model_writer import write_model_directory
from tfgpt.conversion.sources import open_source
from tfgpt.model.checkpoints.huggingface import transformers_model_type
from tfgpt.model.checkpoints.lazy_weights import LazyWeights


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
    source = open_source(find_model(config.source, "source"), "source", model_directory)
    say(f"Source:  {source.kind}")
    say(f"Model:   {in_words(source.checkpoint)}")
    with result_directory(output, "model directory", "output", config.overwrite) as temporary:
        dtype = write_model_directory(source, config.source, config.weights, temporary)
    size = sum(path.stat().st_size for path in output.iterdir())
    say(f"Written: {output} ({size / 1e6:.1f} MB, {dtype.name})")
    return output


def in_words(checkpoint: LazyWeights) -> str:
    """The model in a line."""
    config = checkpoint.config
    model_type, _ = transformers_model_type(config)
    return (
        f"{model_type or 'tfgpt'}, {config.num_layers} layers x {config.hidden_dim}, {config.num_query_heads} heads / "
        f"{config.num_key_value_heads} of keys and values, vocabulary {config.vocabulary_size:,}, "
        f"context {config.max_sequence_length:,}"
    )
