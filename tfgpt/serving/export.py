"""Model directory → a version of a served model: written beside, verified, then renamed."""

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
from tfgpt.generation.generator import Generator
from tfgpt.generation.kernel_layout import transpose_kernels_for_decoding
from tfgpt.model.checkpoints.huggingface import load_decoder, load_stop_ids
from tfgpt.model.decoder import Decoder
from tfgpt.serving.export_config import NOT_IN_EXPORTS, ExportConfig
from tfgpt.serving.export_metadata import FORMAT, check_export_root, is_version
from tfgpt.serving.export_quality import bits_per_byte, quality_ids
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
    config: ExportConfig, sampling: SamplingConfig, directory: Path, tokenizer: Tokenizer, say: Callable[[str], None]
) -> Path:
    """Writes a version and proves that it answers as the model does.

    Args:
        config: what to write where.
        sampling: the defaults of the sampling inputs.
        directory: the model directory.
        tokenizer: the model's.
        say: gets lines on what happens.

    Returns:
        The version's directory.

    Raises:
        UserError: the model cannot be exported, the version is there already, the folder holds something else or is
            being written by another process.
        RunError: the written version does not answer as the model does; nothing is left of it.
    """
    output = check_export_root(config.output)
    with working_directory(output, "export", "output"):
        return write_version(config, sampling, directory, tokenizer, version_directory(output, config.version), say)


def write_version(
    config: ExportConfig,
    sampling: SamplingConfig,
    directory: Path,
    tokenizer: Tokenizer,
    version: Path,
    say: Callable[[str], None],
) -> Path:
    """As `export`, for a version whose place is known and kept."""
    if config.serving_files:
        check_serving_files(version.parent, config.overwrite)
    measured = PrecisionReport(config, directory, tokenizer)
    if config.precision != "float32":
        measured.add("float32", load_decoder(directory, dtype="float32"), "float32")
    decoder = load_decoder(directory, dtype="bfloat16" if config.precision == "bfloat16" else "float32")
    transpose_kernels_for_decoding(decoder)
    weights = ServedWeights(decoder, config.precision)
    generator = Generator(decoder, tokenizer, load_stop_ids(directory))
    stops = generator.stop_tokens
    model = ServedModel(decoder, weights, tokenizer, sampling, config.max_new_tokens_limit, stops)
    measured.add_model(config.precision, model)
    say(measured.line())
    with atomic_directory(version) as temporary:
        # SavedModels are written through TensorFlow's own file system, into the folder that is renamed at the end.
        tf.saved_model.save(model, str(temporary), signatures=model.signature_functions())
        write_warmup(temporary, tokenizer.end_of_text_id, sampling, get_chat_template(tokenizer))
        write_json(temporary / EXPORT_METADATA, metadata(config, sampling, decoder, tokenizer, measured))
        weights.assign_to_decoder()
        verify(temporary, generator, sampling)
        version_directory(version.parent, int(version.name))  # Nobody else has put one there meanwhile.
    equal = "tokens equal those of generate" if decoder.compute_dtype == "float32" else "tokens as probable as it says"
    say(f"Verified: {len(SIGNATURES)} signatures through the session loader; {equal}")
    if config.serving_files:
        settings = config.serving_image, config.serving_cores, config.overwrite
        folder = write_serving_files(version.parent, version, *settings)
        say(f"Serving files: {folder} (serve.sh, models.config, docker-compose.yaml, kubernetes.yaml, ROLLOUT.md, …)")
    return version


def version_directory(output: Path, version: int) -> Path:
    """Where the version goes.

    Raises:
        UserError: there is such a version.
    """
    present = [int(entry.name) for entry in output.iterdir() if is_version(entry)]
    if version in present:
        raise UserError(
            f"--version: {output / str(version)} is there already; a version is never changed, take another"
        )
    return output / str(version or max(present, default=0) + 1)


class PrecisionReport:
    """Bits per byte of the precisions of one export.

    Args:
        config: which text.
        directory: the model directory.
        tokenizer: the model's.
    """

    def __init__(self, config: ExportConfig, directory: Path, tokenizer: Tokenizer):
        self.tokenizer, self.values = tokenizer, dict[str, float]()
        self.text = quality_ids(directory, config.evaluation_text, tokenizer, config.evaluation_bytes)

    def add(self, name: str, decoder: Decoder, precision: str) -> None:
        """Measures a decoder."""
        if self.text is not None:
            weights = ServedWeights(decoder, precision)
            self.add_model(name, ServedModel(decoder, weights, self.tokenizer, SamplingConfig(), 1))

    def add_model(self, name: str, model: ServedModel) -> None:
        """Measures a model."""
        if self.text is not None:
            context = model.functions.decoding.decoder.config.max_sequence_length
            measured = bits_per_byte(model.functions.log_likelihood, self.text[0], self.tokenizer, context)
            self.values[name] = measured

    def line(self) -> str:
        """What was measured, for the person at the keyboard."""
        if self.text is None:
            return "Quality: not measured (no held-out text is known; give one with --evaluation_text)"
        parts = [f"{value:.4f} bits per byte in {name}" for name, value in self.values.items()]
        loss = ""
        if len(self.values) > 1:
            before, after = self.values.values()
            loss = f", {100 * (after / before - 1):+.2f}%"
        count = int(self.tokenizer.byte_lengths()[self.text[0][1:]].sum())
        return f"Quality on {count:,} bytes of {self.text[1]}: {'; '.join(parts)}{loss}"


def operations(tokenizer: Tokenizer) -> str:
    """What a server must have registered."""
    return TEXT_OPERATIONS if isinstance(tokenizer, SentencePieceTokenizer) else "core TensorFlow only"


def metadata(
    config: ExportConfig, sampling: SamplingConfig, decoder: Decoder, tokenizer: Tokenizer, measured: PrecisionReport
) -> dict[str, Any]:
    """What `assets.extra/tfgpt.json` says of a version."""
    defaults = {name: value for name, value in sampling.to_dict().items() if name not in NOT_IN_EXPORTS}
    return {
        "format": FORMAT,
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "model": config.model,
        "precision": config.precision,
        "operations": operations(tokenizer),
        "tokenizer": {
            "kind": "SentencePiece" if isinstance(tokenizer, SentencePieceTokenizer) else "byte-level BPE",
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
        "bits_per_byte": {"text": measured.text[1], **measured.values} if measured.text else None,
        "signatures": [entry.name for entry in SIGNATURES],
        "versions": {"tfgpt": tfgpt.__version__, "tensorflow": tf.__version__, "keras": keras.__version__},
    }
