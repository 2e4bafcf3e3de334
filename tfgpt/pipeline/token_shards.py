"""Token shards: the ids of all documents as raw arrays on disk, with a manifest that says what they are.

A directory of shards holds

- `tokens-00000.bin`, `tokens-00001.bin`, …: ids, little-endian uint16 (uint32 when the vocabulary is larger than
  65,536), nothing else in the file, so that `numpy.memmap` (or nanoGPT) reads them as they are;
- `weights-00000.bin`, … when asked for: uint8, 1 where the token counts as a target and 0 where it does not;
- `manifest.json`: counts, special ids, the tokenizer's fingerprint, dtype, and size and sha256 of every file.

The shards are one stream: end-of-text, then every document followed by end-of-text, cut into files anywhere. Since
the stream begins with end-of-text, each real token has one before it to be predicted from.

What is checked when: the format, the tokenizer and the size of every file, always; the sha256 of a file, always when
it is small (16 MiB or less: some hundredths of a second) and otherwise once for each (size, modification time, inode),
remembered in `verified.json`: hashing a terabyte takes an hour, opening it should take a moment.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from tfgpt.common.atomic_files import atomic_directory, read_json, sha256_of_file, sha256_of_json, write_json
from tfgpt.common.errors import TfgptError, UserError
from tfgpt.common.progress import Progress
from tfgpt.corpus.sources.base import content_texts
from tfgpt.pipeline.memmap_array import MemmapArray

if TYPE_CHECKING:
    from tfgpt.tokenization.tokenizer import Tokenizer

FORMAT = "tfgpt token shards"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
VERIFIED = "verified.json"
# 2 GiB of uint16: 500 files a terabyte.
SHARD_TOKENS = 1 << 30
# Files up to this size are hashed at every opening.
SMALL_FILE_BYTES = 1 << 24
# Documents are encoded in batches of about this many characters: enough to keep all cores busy.
ENCODE_CHARACTERS = 1 << 22


class DamagedShards(UserError):
    """A directory of token shards that is not what its manifest says, or has none."""


class TokenShards:
    """An opened, checked directory of token shards.

    Attributes:
        directory: where they are.
        manifest: the parsed `manifest.json`.
        tokens: the ids, a `MemmapArray` of uint16 or uint32.
        weights: the loss weight of each token as a target, a `MemmapArray` of uint8, or None (all count).
        num_tokens: ids in the stream, the first end-of-text included; `num_tokens - 1` are predicted.
        num_bytes: bytes that the ids stand for; special tokens stand for none. Bits per byte divides by it.
        num_documents: documents in the stream.
        left_out: how many dialogues the chat template refused, by reason.
        end_of_text_id: the id between documents.
        padding_id: the id that fills rows; never in the stream.
        tokenizer_fingerprint: which tokenizer made the ids.
        fingerprint: sha256 of the manifest, and so of all content.
        origin: what they were made from, for error lines; who makes them from documents says it.
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
        self.tokens = mapped_stream(directory, manifest["shards"], manifest["dtype"])
        self.weights = mapped_stream(directory, manifest["weights"], "uint8") if manifest["weights"] else None

    @property
    def files(self) -> list[Path]:
        """The files of tokens and weights."""
        return [self.directory / file["file"] for file in self.manifest["shards"] + self.manifest["weights"]]

    @classmethod
    def open(
        cls, directory: str | os.PathLike, tokenizer_fingerprint: str | None = None, verify: bool = False
    ) -> TokenShards:
        """Opens a directory of shards after checking it (see the module's docstring).

        Args:
            directory: where `manifest.json` is.
            tokenizer_fingerprint: `Tokenizer.fingerprint` of the tokenizer in use; None takes any.
            verify: hash every file again, whatever is remembered.

        Raises:
            DamagedShards: a file is missing, has another size or content, or the manifest is not one.
            UserError: the shards hold the ids of another tokenizer.
        """
        directory = Path(directory)
        manifest = read_manifest(directory)
        if tokenizer_fingerprint not in (None, manifest["tokenizer_fingerprint"]):
            raise UserError(
                f"{directory}: these token shards were made with another tokenizer "
                f"({manifest['tokenizer_fingerprint'][:12]}…, yours is {str(tokenizer_fingerprint)[:12]}…); "
                "use that tokenizer, or run `python -m tfgpt.prepare` with yours"
            )
        check_files(directory, manifest["shards"] + manifest["weights"], verify)
        return cls(directory, manifest)


def mapped_stream(directory: Path, files: list[dict[str, Any]], dtype: str) -> MemmapArray:
    """The stream of a manifest's list of files."""
    item = np.dtype(dtype).itemsize
    return MemmapArray([directory / file["file"] for file in files], [file["bytes"] // item for file in files], dtype)


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest, known to be one that this version of the program reads."""
    path = directory / MANIFEST
    remedy = "delete the directory and run `python -m tfgpt.prepare` again"
    if not path.is_file():
        raise DamagedShards(f"{directory}: no token shards here ({MANIFEST} is missing); run `python -m tfgpt.prepare`")
    try:
        manifest = read_json(path)
    except UserError as error:
        raise DamagedShards(f"{error}; {remedy}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DamagedShards(f'{path}: not a manifest of token shards (no "format": "{FORMAT}"); {remedy}')
    if manifest.get("format_version") != FORMAT_VERSION:
        raise DamagedShards(
            f"{path}: format version {manifest.get('format_version')}, this program reads {FORMAT_VERSION}; {remedy}"
        )
    content = {name: value for name, value in manifest.items() if name != "sha256"}
    if manifest.get("sha256") != sha256_of_json(content):
        raise DamagedShards(f"{path}: changed since it was written (its sha256 differs); {remedy}")
    return manifest


def check_files(directory: Path, files: list[dict[str, Any]], verify: bool) -> None:
    """Compares every file with the manifest, hashing as little as the module's docstring promises."""
    remembered: dict[str, list[int]] = {}
    with contextlib.suppress(UserError):
        remembered = read_json(directory / VERIFIED)
    verified = {}
    for file in files:
        path = directory / file["file"]
        remedy = f"delete {directory} and run `python -m tfgpt.prepare` again"
        try:
            status = path.stat()
        except OSError as error:
            raise DamagedShards(f"{path}: this token shard is missing; {remedy}") from error
        if status.st_size != file["bytes"]:
            raise DamagedShards(
                f"{path}: this token shard has {status.st_size} bytes instead of {file['bytes']}; {remedy}"
            )
        identity = [status.st_size, status.st_mtime_ns, status.st_ino]
        known = isinstance(remembered, dict) and remembered.get(file["file"]) == identity
        small = status.st_size <= SMALL_FILE_BYTES
        if (verify or small or not known) and sha256_of_file(path) != file["sha256"]:
            raise DamagedShards(f"{path}: this token shard is damaged (its sha256 is not the manifest's); {remedy}")
        if not small:
            verified[file["file"]] = identity
    if verified and verified != remembered:
        # Where nothing can be written, the next opening hashes again: slower, not wrong.
        with contextlib.suppress(TfgptError, OSError):
            write_json(directory / VERIFIED, verified)


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
    """Encodes documents in parallel and writes them as token shards; the same input gives the same bytes.

    The directory appears when it is complete, in place of what was there.

    Args:
        documents: `{"text": …}` or `{"messages": […]}`, read once, never all in memory. Dialogues are written in the
            chat template; documents without a token are skipped, and dialogues that the template refuses are counted
            in the manifest's "left_out", by reason.
        tokenizer: encodes; its end-of-text id goes before the first and behind every document.
        directory: the directory to write.
        store_weights: keep loss weights beside the ids: 1 for all of a text, and only for what the assistant says
            in a dialogue. Without it every token counts, as pretraining wants it.
        shard_tokens: ids a file.
        num_documents: how many documents there are, for the progress bar.
        title: heads the progress bar.

    Returns:
        The shards, opened.

    Raises:
        RunError: the disk is full.
        UserError: the directory cannot be written.
    """
    directory = Path(directory)
    dtype = np.dtype("uint16" if tokenizer.vocabulary_size <= 1 << 16 else "uint32")
    byte_lengths = tokenizer.byte_lengths().astype(np.int64)
    counted_bytes = counted_documents = 0
    left_out: collections.Counter[str] = collections.Counter()
    with atomic_directory(directory) as temporary:
        tokens = ArrayWriter(temporary, "tokens", dtype, shard_tokens)
        weights = ArrayWriter(temporary, "weights", np.dtype("uint8"), shard_tokens) if store_weights else None
        with contextlib.ExitStack() as open_files:
            open_files.callback(tokens.close)
            progress = open_files.enter_context(Progress(num_documents, "document", title))
            tokens.write(np.array([tokenizer.end_of_text_id]))
            if weights:
                open_files.callback(weights.close)
                weights.write(np.ones(1))
            for batch in batches_of_documents(documents):
                ids, kept_weights, kept = encoded(batch, tokenizer, left_out)
                tokens.write(ids)
                if weights:
                    weights.write(kept_weights)
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
            "weights": weights.files if weights else [],
        }
        write_json(temporary / MANIFEST, {**content, "sha256": sha256_of_json(content)})
    return TokenShards.open(directory)


def batches_of_documents(documents: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """Lists of documents, about ENCODE_CHARACTERS each."""
    batch: list[Mapping[str, Any]] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += sum(map(len, content_texts(document)))
        if characters >= ENCODE_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def encoded(
    batch: list[Mapping[str, Any]], tokenizer: Tokenizer, left_out: collections.Counter[str]
) -> tuple[np.ndarray, np.ndarray, int]:
    """Ids [n] and weights [n] of a batch of documents, each followed by end-of-text, and how many had a token.

    Dialogues that the chat template refuses are counted in `left_out`.
    """
    from tfgpt.tokenization.chat_template import encode_messages

    texts = iter(tokenizer.encode_batch([document["text"] for document in batch if "text" in document]))
    ids: list[np.ndarray] = []
    weights: list[np.ndarray] = []
    end = np.array([tokenizer.end_of_text_id], np.int32)
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
                # The template writes it, and it is there already: it ends the document before.
                document_ids, document_weights = document_ids[1:], document_weights[1:]
            # What ends an answer is end-of-turn; end-of-text behind a dialogue is nobody's words.
            document_weights = np.append(document_weights, np.float32(0))
        if len(document_ids):
            ids += [document_ids, end]
            weights.append(document_weights)
    return np.concatenate([end[:0], *ids]), np.concatenate([np.empty(0, np.float32), *weights]), len(weights)


class ArrayWriter:
    """Appends numbers to `NAME-00000.bin`, `NAME-00001.bin`, …, each at most `limit` numbers, hashing as it goes."""

    def __init__(self, directory: Path, name: str, dtype: np.dtype, limit: int):
        self.directory, self.name, self.dtype, self.limit = directory, name, dtype.newbyteorder("<"), limit
        self.files: list[dict[str, Any]] = []
        self.total = 0
        self.in_file = limit
        self.opened: BinaryIO | None = None
        self.digest = hashlib.sha256()

    def write(self, numbers: np.ndarray) -> None:
        """Appends numbers [n]."""
        start = 0
        while start < len(numbers):
            if self.in_file == self.limit:
                self.next_file()
            piece = numbers[start : start + self.limit - self.in_file].astype(self.dtype).tobytes()
            assert self.opened is not None
            self.opened.write(piece)
            self.digest.update(piece)
            count = len(piece) // self.dtype.itemsize
            start, self.in_file, self.total = start + count, self.in_file + count, self.total + count

    def next_file(self) -> None:
        """Ends the file and begins another."""
        self.close()
        path = self.directory / f"{self.name}-{len(self.files):05d}.bin"
        self.opened = open(path, "wb")  # noqa: SIM115
        self.digest, self.in_file = hashlib.sha256(), 0

    def close(self) -> None:
        """Ends the file and notes its size and hash."""
        if self.opened is None:
            return
        self.opened.close()
        path = Path(self.opened.name)
        self.files.append(
            {"file": path.name, "bytes": self.in_file * self.dtype.itemsize, "sha256": self.digest.hexdigest()}
        )
        self.opened = None
