"""Conversion of a source model to a model directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tfgpt.common.model_paths import find_model
from tfgpt.common.output_directories import check_replaceable, result_directory
from tfgpt.conversion.cached_conversion import model_directory
from tfgpt.conversion.config import ConvertConfig
from tfgpt.conversion.open_source import open_source
from tfgpt.model.checkpoints.huggingface_config import transformers_model_type


def convert(config: ConvertConfig, log: Callable[[str], None]) -> Path:
    """Converts a model and returns the written directory; writes nothing where the source is not supported."""
    output = Path(config.output).expanduser()
    check_replaceable(output, "model directory", "output", config.overwrite)
    source = open_source(find_model(config.source, "source"), "source", model_directory)
    decoder = source.checkpoint.config
    model_type, _ = transformers_model_type(decoder)
    log(f"Source:  {source.description}")
    log(
        f"Model:   {model_type or 'tfgpt'}, {decoder.num_layers} layers x {decoder.hidden_dim}, "
        f"{decoder.num_query_heads} heads / {decoder.num_key_value_heads} of keys and values, "
        f"vocabulary {decoder.vocabulary_size:,}, context {decoder.max_sequence_length:,}"
    )
    with result_directory(output, "model directory", "output", config.overwrite) as temporary:
        dtype = source.write(config.source, config.weights, temporary)
    size = sum(path.stat().st_size for path in output.iterdir())
    log(f"Written: {output} ({size / 1e6:.1f} MB, {dtype.name})")
    return output
