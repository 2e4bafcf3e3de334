"""Token shards: the ids of all documents as raw arrays on disk, with a manifest.

A directory of shards holds

- `tokens-00000.bin`, `tokens-00001.bin`, …: ids, little-endian uint16 (uint32 if the vocabulary is larger than
  65,536), nothing else in the file, so that `numpy.memmap` (or nanoGPT) reads them as they are;
- `weights-00000.bin`, … when asked for: uint8, 1 where the token counts as a target and 0 where it does not;
- `manifest.json`: counts, special ids, the tokenizer's fingerprint, dtype, and size and sha256 of every file.

The shards are one stream: end-of-text, then every document followed by end-of-text, cut into files anywhere. Since
the stream begins with end-of-text, every token of a document is predicted from the one before it.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tfgpt.common.atomic_files import atomic_directory, sha256_of_json, write_json
from tfgpt.common.errors import UserError
from tfgpt.common.progress import Progress
from tfgpt.corpus.sources.base import content_texts
from tfgpt.pipeline.manifest import MANIFEST, check_files, read_manifest
from tfgpt.pipeline.memmap_array import MemmapArray
from tfgpt.tokenization.chat_template import encode_messages
from tfgpt.tokenization.encoders import batches_by_size
from tfgpt.tokenization.tokenizer import Tokenizer

FORMAT = "tfgpt token shards"
FORMAT_VERSION = 1
# 2 GiB of uint16: 500 files a terabyte.
SHARD_TOKENS = 1 << 30
# Documents are encoded in batches of about this many characters: enough to keep all cores busy.
ENCODE_CHARACTERS = 1 << 22


class TokenShards:
    """An opened, checked directory of token shards.

    Attributes:
        tokens: the ids, a `MemmapArray` of uint16 or uint32.
        weights: the loss weight of each token as a target, a `MemmapArray` of uint8, or None (all count).
        num_tokens: ids in the stream, the first end-of-text included; `num_tokens - 1` are predicted.
        num_bytes: bytes that the ids stand for; special tokens stand for none. Bits per byte divides by it.
        left_out: how many dialogues the chat template refused, by reason.
        fingerprint: sha256 of the manifest, and so of all content.
        origin: description of the sources, for error messages.

    Example:

    >>> import tempfile
    >>> from tfgpt.tokenization.train_tokenizer import byte_tokenizer
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     shards = write_token_shards([{"text": "ab"}], byte_tokenizer(), f"{folder}/shards")
    ...     shards.num_tokens, shards.tokens[1:3].tolist()
    (4, [97, 98])
    """

    def __init__(self, directory: Path, manifest: Mapping[str, Any]):
        self.directory, self.manifest = directory, manifest
        self.num_tokens: int = manifest["tokens"]
        self.num_bytes: int = manifest["bytes"]
        self.num_documents: int = manifest["documents"]
        self.left_out: dict[str, int] = manifest.get("left_out", {})
        self.end_of_text_id: int = manifest["end_of_text_id"]
        self.padding_id: int = manifest["padding_id"]
        self.vocabulary_size: int = manifest["vocabulary_size"]
        self.tokenizer_fingerprint: str = manifest["tokenizer_fingerprint"]
        self.fingerprint = sha256_of_json(manifest)
        self.origin = str(directory)
        self.tokens = self.array("shards", manifest["dtype"])
        self.weights = self.array("weights", "uint8") if manifest["weights"] else None

    def array(self, name: str, dtype: str) -> MemmapArray:
        files, item = self.manifest[name], np.dtype(dtype).itemsize
        return MemmapArray(
            [self.directory / file["file"] for file in files], [file["bytes"] // item for file in files], dtype
        )

    @property
    def files(self) -> list[Path]:
        """The files of tokens and weights."""
        return [self.directory / file["file"] for file in self.manifest["shards"] + self.manifest["weights"]]

    def describe(self) -> str:
        rate = f" ({self.num_bytes / (self.num_tokens - 1):.2f} bytes a token)" if self.num_tokens > 1 else ""
        return f"{self.num_tokens:,}{rate}"

    def summary(self) -> dict[str, Any]:
        """Returns the part of a run's provenance about these shards."""
        counts = {name: self.manifest[name] for name in ("tokens", "bytes", "documents")}
        return {"fingerprint": self.fingerprint, "directory": str(self.directory), **counts}

    @classmethod
    def open(cls, directory: str | os.PathLike, tokenizer_fingerprint: str | None = None) -> TokenShards:
        """Opens a directory of shards of a tokenizer, or of any, after checking it; see `tfgpt.pipeline.manifest`."""
        directory = Path(directory)
        manifest = read_manifest(directory, FORMAT, FORMAT_VERSION)
        if tokenizer_fingerprint not in (None, manifest["tokenizer_fingerprint"]):
            raise UserError(
                f"{directory}: these token shards were made with another tokenizer "
                f"({manifest['tokenizer_fingerprint'][:12]}…, yours is {str(tokenizer_fingerprint)[:12]}…); "
                "use that tokenizer, or run `python -m tfgpt.prepare` with yours"
            )
        check_files(directory, manifest["shards"] + manifest["weights"])
        return cls(directory, manifest)


def write_token_shards(
    documents: Iterable[Mapping[str, Any]],
    tokenizer: Tokenizer,
    directory: str | os.PathLike,
    *,
    store_weights: bool = False,
    shard_tokens: int = SHARD_TOKENS,
    num_documents: int | None = None,
    title: str = "encode",
) -> TokenShards:
    """Encodes documents in parallel, writes them as token shards and opens these.

    The same input gives the same bytes. The directory appears when it is complete and replaces an earlier one.

    Args:
        documents: `{"text": …}` or `{"messages": […]}`, read once. Dialogues are written in the chat template; those
            that it refuses are counted in the manifest's "left_out", by reason. Documents without a token are skipped.
        tokenizer: encodes; its end-of-text id goes before the first and after every document.
        store_weights: writes loss weights: 1 for all of a text, and only for the assistant's words in a dialogue.
        shard_tokens: ids a file.
        num_documents, title: total and title of the progress bar.
    """
    dtype = token_dtype(tokenizer)
    byte_lengths = tokenizer.byte_lengths().astype(np.int64)
    counted_bytes = counted_documents = 0
    left_out: collections.Counter[str] = collections.Counter()
    with atomic_directory(directory) as temporary:
        with (
            contextlib.closing(ArrayWriter(temporary, "tokens", dtype, shard_tokens)) as tokens,
            contextlib.closing(ArrayWriter(temporary, "weights", np.dtype("uint8"), shard_tokens)) as weights,
            Progress(num_documents, "document", title) as progress,
        ):
            tokens.write(np.array([tokenizer.end_of_text_id]))
            weights.write(np.ones(int(store_weights)))
            for batch in batches_by_size(
                documents, ENCODE_CHARACTERS, lambda document: sum(map(len, content_texts(document)))
            ):
                ids, batch_weights, kept = encode_documents(batch, tokenizer, left_out)
                tokens.write(ids)
                weights.write(batch_weights[: len(ids) if store_weights else 0])
                counted_bytes += int(byte_lengths[ids].sum())
                counted_documents += kept
                progress.advance(len(batch))
        content = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "dtype": dtype.name,
            "tokens": tokens.total,
            "bytes": counted_bytes,
            "documents": counted_documents,
            **({"left_out": dict(left_out)} if left_out else {}),
            "vocabulary_size": tokenizer.vocabulary_size,
            "end_of_text_id": tokenizer.end_of_text_id,
            "padding_id": tokenizer.padding_id,
            "special_tokens": tokenizer.special_tokens,
            "tokenizer_fingerprint": tokenizer.fingerprint,
            "shards": tokens.files,
            "weights": weights.files,
        }
        write_json(temporary / MANIFEST, {**content, "sha256": sha256_of_json(content)})
    return TokenShards.open(directory)


def token_dtype(tokenizer: Tokenizer) -> np.dtype:
    """Returns the smallest unsigned type of at least 16 bits that holds every id."""
    return np.dtype("uint16" if tokenizer.vocabulary_size <= 1 << 16 else "uint32")


def encode_documents(
    batch: list[Mapping[str, Any]], tokenizer: Tokenizer, left_out: collections.Counter[str]
) -> tuple[np.ndarray, np.ndarray, int]:
    """Returns ids [n] and weights [n] of documents, each followed by end-of-text, and how many had a token."""
    texts = iter(tokenizer.encode_batch([document["text"] for document in batch if "text" in document]))
    end = np.array([tokenizer.end_of_text_id], np.int32)
    ids, weights = [end[:0]], [np.empty(0, np.float32)]
    for document in batch:
        if "text" in document:
            document_ids = next(texts)
            document_weights = np.ones(len(document_ids) + 1, np.float32)
        else:
            try:
                document_ids, document_weights = encode_messages(
                    tokenizer, document["messages"], tools=document.get("tools")
                )
            except UserError as error:
                left_out[str(error)] += 1
                continue
            if len(document_ids) and document_ids[0] == tokenizer.end_of_text_id:
                # The end-of-text of the document before is this one.
                document_ids, document_weights = document_ids[1:], document_weights[1:]
            # The end-of-text token after a dialogue is not a target.
            document_weights = np.append(document_weights, np.float32(0))
        if len(document_ids):
            ids += [document_ids, end]
            weights.append(document_weights)
    return np.concatenate(ids), np.concatenate(weights), len(weights) - 1


class ArrayWriter:
    """Appends numbers to `NAME-00000.bin`, `NAME-00001.bin`, …, each at most `limit` numbers, and hashes them."""

    def __init__(self, directory: Path, name: str, dtype: np.dtype, limit: int):
        self.directory, self.name, self.dtype, self.limit = directory, name, dtype.newbyteorder("<"), limit
        self.files: list[dict[str, Any]] = []
        self.total = self.count = 0
        self.file: BinaryIO | None = None

    def write(self, numbers: np.ndarray) -> None:
        while len(numbers):
            if self.file is None:
                self.file = open(self.directory / f"{self.name}-{len(self.files):05d}.bin", "wb")  # noqa: SIM115
                self.digest, self.count = hashlib.sha256(), 0
            piece = numbers[: self.limit - self.count].astype(self.dtype)
            self.file.write(piece.tobytes())
            self.digest.update(piece.tobytes())
            self.count, self.total = self.count + len(piece), self.total + len(piece)
            numbers = numbers[len(piece) :]
            if self.count == self.limit:
                self.close()

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
            size, name = self.count * self.dtype.itemsize, Path(self.file.name).name
            self.files.append({"file": name, "bytes": size, "sha256": self.digest.hexdigest()})
            self.file = None
