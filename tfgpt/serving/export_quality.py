"""Bits per byte of an export, which show the cost of a precision."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from tfgpt.common.atomic_files import read_json
from tfgpt.common.errors import SettingError, UserError
from tfgpt.corpus.sources.compressed import open_decompressed
from tfgpt.pipeline.chat_shards import ChatShards, open_held_out
from tfgpt.serving.export_config import ExportConfig
from tfgpt.serving.saved_model import ServedModel
from tfgpt.tokenization.tokenizer import Tokenizer

BATCH_TOKENS = 4096


class PrecisionReport:
    """Bits per byte of one export in several precisions, on the text that its flags or its run name."""

    def __init__(self, config: ExportConfig, directory: Path, tokenizer: Tokenizer):
        self.tokenizer, self.values = tokenizer, dict[str, float]()
        self.text = evaluation_ids(directory, config.evaluation_text, tokenizer, config.evaluation_bytes)

    def measure(self, precision: str, model: ServedModel) -> None:
        if self.text is not None:
            self.values[precision] = bits_per_byte(model, self.text[0], self.tokenizer)

    def describe(self) -> str:
        if self.text is None:
            return "Quality: not measured (no held-out text is known; give one with --evaluation_text)"
        ids, name = self.text
        values = "; ".join(f"{value:.4f} bits per byte in {precision}" for precision, value in self.values.items())
        numbers = list(self.values.values())
        change = f", {100 * (numbers[-1] / numbers[0] - 1):+.2f}%" if len(numbers) > 1 else ""
        num_bytes = int(self.tokenizer.byte_lengths()[ids[1:]].sum())
        return f"Quality on {num_bytes:,} bytes of {name}: {values}{change}"

    def to_dict(self) -> dict[str, object] | None:
        return {"text": self.text[1], **self.values} if self.text else None


def evaluation_ids(model: Path, text: str, tokenizer: Tokenizer, byte_limit: int) -> tuple[np.ndarray, str] | None:
    """Returns the ids of the evaluation text, [n] int32, and its name; None without a text.

    Without a file `text`, it is the text or the conversations that the run held out (training.json).
    """
    if byte_limit == 0:
        return None
    if text:
        try:
            with open_decompressed(Path(text).expanduser()) as (file, _):
                content = file.read(byte_limit)
        except UserError as error:
            raise SettingError("evaluation_text", str(error)) from error
        if not content:
            raise UserError(f"--evaluation_text: {text} is empty")
        first = tokenizer.start_ids or (tokenizer.end_of_text_id,)
        return np.concatenate([first, tokenizer.encode(content)]).astype(np.int32), text
    provenance = model / "training.json"
    if not provenance.is_file():
        return None
    held_out = open_held_out(read_json(provenance).get("data", {}).get("validation", {}), tokenizer)
    if held_out is None:
        return None
    tokens = held_out.ids if isinstance(held_out, ChatShards) else held_out.tokens
    ids = np.asarray(tokens[:byte_limit], np.int32)
    ids = ids[np.cumsum(tokenizer.byte_lengths()[ids]) <= byte_limit]
    return (ids, "the held-out text") if len(ids) > 1 else None


def bits_per_byte(model: ServedModel, ids: np.ndarray, tokenizer: Tokenizer) -> float:
    """Returns the bits per byte of a text, ids [n] int32, read in rows of the context length that share one token.

    Special tokens add neither bits nor bytes.
    """
    byte_lengths = tokenizer.byte_lengths()
    context = max(model.decoding.decoder.config.max_sequence_length, 2)
    rows = [ids[start : start + context] for start in range(0, len(ids) - 1, context - 1)]
    batch_size = max(1, BATCH_TOKENS // context)
    nll = 0.0
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        lengths = np.array([len(row) for row in batch], np.int32)
        padded = np.full([len(batch), lengths.max()], tokenizer.padding_id, np.int32)
        padded[np.arange(lengths.max()) < lengths[:, None]] = np.concatenate(batch)
        nll -= model.log_likelihood(padded, lengths, byte_lengths[padded] > 0).numpy().sum(dtype=float)
    return nll / math.log(2) / int(byte_lengths[ids[1:]].sum())
