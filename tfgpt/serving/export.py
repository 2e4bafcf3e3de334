"""Export of a model directory to a version of a served model: written to a temporary folder, verified, then renamed."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

import tfgpt
from tfgpt.common.atomic_files import atomic_directory, write_json
from tfgpt.common.errors import UserError
from tfgpt.common.model_paths import EXPORT_METADATA
from tfgpt.common.output_directories import working_directory
from tfgpt.generation.config import SamplingConfig
from tfgpt.generation.generator import Generator, transpose_kernels_for_decoding
from tfgpt.model.checkpoints.huggingface import load_decoder, load_stop_ids
from tfgpt.model.decoder import Decoder
from tfgpt.serving.export_config import NOT_IN_EXPORTS, ExportConfig
from tfgpt.serving.export_metadata import FORMAT, check_export_root, is_version
from tfgpt.serving.export_quality import PrecisionReport
from tfgpt.serving.quantization import ServedWeights
from tfgpt.serving.saved_model import ServedModel
from tfgpt.serving.saved_model_session import TEXT_OPERATIONS
from tfgpt.serving.serving_files import check_serving_files, write_serving_files
from tfgpt.serving.signatures import SIGNATURES
from tfgpt.serving.verification import verify
from tfgpt.serving.warmup import write_warmup
from tfgpt.tokenization.chat_template import get_chat_template
from tfgpt.tokenization.sentencepiece_tokenizer import SentencePieceTokenizer
from tfgpt.tokenization.tokenizer import Tokenizer


def export(
    config: ExportConfig, sampling: SamplingConfig, directory: Path, tokenizer: Tokenizer, log: Callable[[str], None]
) -> Path:
    """Writes a version, verifies that it generates what the model generates, and returns its directory.

    `sampling` has the defaults of the sampling inputs; `directory` is the model directory.

    Raises:
        RunError: the version differs from the model; nothing of it remains.
    """
    output = check_export_root(config.output)
    with working_directory(output, "export", "output"):
        version = version_directory(output, config.version)
        if config.serving_files:
            check_serving_files(output, config.overwrite)
        write_version(config, sampling, directory, tokenizer, version, log)
        if config.serving_files:
            folder = write_serving_files(output, version, config.serving_image, config.serving_cores, config.overwrite)
            log(f"Serving files: {folder} (serve.sh, models.config, docker-compose.yaml, kubernetes.yaml, …)")
    return version


def write_version(
    config: ExportConfig,
    sampling: SamplingConfig,
    directory: Path,
    tokenizer: Tokenizer,
    version: Path,
    log: Callable[[str], None],
) -> None:
    quality = PrecisionReport(config, directory, tokenizer)
    if config.precision != "float32" and quality.text is not None:
        reference = load_decoder(directory, dtype="float32")
        weights = ServedWeights(reference, "float32")
        quality.measure("float32", ServedModel(reference, weights, tokenizer, SamplingConfig(), 1))
        del reference, weights
    dtype = "bfloat16" if config.precision == "bfloat16" else "float32"
    decoder = transpose_kernels_for_decoding(load_decoder(directory, dtype=dtype))
    weights = ServedWeights(decoder, config.precision)
    generator = Generator(decoder, tokenizer, load_stop_ids(directory))
    model = ServedModel(decoder, weights, tokenizer, sampling, config.max_new_tokens_limit, generator.stop_tokens)
    quality.measure(config.precision, model)
    log(quality.describe())
    with atomic_directory(version) as temporary:
        # TensorFlow writes SavedModels through its own file system, so into the folder that is renamed at the end.
        tf.saved_model.save(model.module, str(temporary), signatures=model.signatures())
        write_warmup(temporary, tokenizer.end_of_text_id, sampling, get_chat_template(tokenizer))
        write_json(temporary / EXPORT_METADATA, export_metadata(config, sampling, decoder, tokenizer, quality))
        weights.assign_to_decoder()
        verify(temporary, generator, sampling)
        version_directory(version.parent, int(version.name))  # Another process may have written the version.
    equal = decoder.compute_dtype == "float32"
    tokens = "tokens equal those of generate" if equal else "the model confirms the log probabilities of its tokens"
    log(f"Verified: {len(SIGNATURES)} signatures through the session loader; {tokens}")


def version_directory(output: Path, version: int) -> Path:
    """Returns the directory of a version, which must not exist; 0 means one more than the highest version."""
    present = [int(entry.name) for entry in output.iterdir() if is_version(entry)]
    if version in present:
        raise UserError(f"--version: {output / str(version)} exists; a version never changes, give another number")
    return output / str(version or max(present, default=0) + 1)


def export_metadata(
    config: ExportConfig, sampling: SamplingConfig, decoder: Decoder, tokenizer: Tokenizer, quality: PrecisionReport
) -> dict[str, Any]:
    """Returns the content of `assets.extra/tfgpt.json`."""
    is_sentencepiece = isinstance(tokenizer, SentencePieceTokenizer)
    defaults = {name: value for name, value in sampling.to_dict().items() if name not in NOT_IN_EXPORTS}
    return {
        "format": FORMAT,
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "model": config.model,
        "precision": config.precision,
        "operations": TEXT_OPERATIONS if is_sentencepiece else "core TensorFlow only",
        "tokenizer": {
            "kind": "SentencePiece" if is_sentencepiece else "byte-level BPE",
            "fingerprint": tokenizer.fingerprint,
            "vocabulary_size": tokenizer.vocabulary_size,
            "end_of_text_id": tokenizer.end_of_text_id,
            "padding_id": tokenizer.padding_id,
            "start_of_turn_id": tokenizer.start_of_turn_id,
            "end_of_turn_id": tokenizer.end_of_turn_id,
            "start_ids": list(tokenizer.start_ids),
            "stop_ids": list(tokenizer.stop_ids),
        },
        "chat_template": get_chat_template(tokenizer).to_dict(),
        "decoder": decoder.config.to_dict(),
        "defaults": defaults,
        "max_new_tokens_limit": config.max_new_tokens_limit,
        "bits_per_byte": quality.to_dict(),
        "signatures": [entry.name for entry in SIGNATURES],
        "versions": {"tfgpt": tfgpt.__version__, "tensorflow": tf.__version__, "keras": keras.__version__},
    }
