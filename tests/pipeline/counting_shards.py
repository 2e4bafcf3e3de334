"""Token shards for tests in which the token at position p is p, so that a batch says where it was read."""

from pathlib import Path

import numpy as np

from tfgpt.common.atomic_files import sha256_of_file, sha256_of_json, write_json
from tfgpt.pipeline.token_shards import TokenShards


def write_raw_shards(
    directory: Path,
    tokens: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    file_tokens: int = 1 << 30,
    padding_id: int | None = None,
) -> TokenShards:
    """Opens shards of these ids, written by hand as the format says: end-of-text is 0, padding the id len(tokens)."""
    padding_id = len(tokens) if padding_id is None else padding_id
    directory.mkdir(parents=True)

    def written(name: str, numbers: np.ndarray) -> list[dict]:
        files = []
        for start in range(0, len(numbers), file_tokens):
            path = directory / f"{name}-{start // file_tokens:05d}.bin"
            numbers[start : start + file_tokens].tofile(path)
            files.append({"file": path.name, "bytes": path.stat().st_size, "sha256": sha256_of_file(path)})
        return files

    manifest = {
        "format": "tfgpt token shards",
        "format_version": 1,
        "dtype": "uint32",
        "tokens": len(tokens),
        "bytes": len(tokens) - 1,
        "documents": 1,
        "vocabulary_size": len(tokens) + 1,
        "end_of_text_id": 0,
        "padding_id": padding_id,
        "special_tokens": {"<|endoftext|>": 0, "<|padding|>": padding_id},
        "tokenizer_fingerprint": "none",
        "shards": written("tokens", tokens.astype("<u4")),
        "weights": [] if weights is None else written("weights", weights.astype(np.uint8)),
    }
    write_json(directory / "manifest.json", {**manifest, "sha256": sha256_of_json(manifest)})
    return TokenShards.open(directory)


def counting_shards(directory: Path, targets: int, **options) -> TokenShards:
    """0, 1, 2, …, targets-1, 0: end-of-text at both ends, every other id once."""
    return write_raw_shards(directory, np.append(np.arange(targets), 0), **options)
