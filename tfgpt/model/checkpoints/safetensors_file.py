"""Reads safetensors files by memory mapping and writes them tensor by tensor.

Format: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from tfgpt.common.atomic_files import atomic_write, read_json, refuse_pointer, sha256_of_file, sha256_of_json
from tfgpt.common.errors import UserError

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
LARGEST_HEADER = 100_000_000
"""Bytes; the limit of the reference implementation."""


def write_safetensors(
    path: Path, tensors: Iterable[tuple[str, tuple[int, ...], np.dtype, Callable[[], np.ndarray]]]
) -> None:
    """Writes a safetensors file atomically, with one tensor at a time in memory.

    Args:
        tensors: for each tensor: name, shape, dtype and a function that returns the array.
    """
    tensors = list(tensors)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers requires it.
    offset = 0
    for name, shape, dtype, _ in tensors:
        size = math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape, dtype, read in tensors:
            array = np.asarray(read(), dtype, order="C")
            if array.shape != shape:
                raise ValueError(f"{name} is {array.shape}, announced as {shape}")
            file.write(array.reshape(-1).view(np.uint8).data)


def open_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a file, memory-mapped."""
    refuse_pointer(path)
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            header_length = int.from_bytes(file.read(8), "little")
            if not 0 < header_length <= min(size - 8, LARGEST_HEADER):
                raise ValueError("its header does not fit in it: truncated, or not a safetensors file")
            header = json.loads(file.read(header_length))
        start, tensors = 8 + header_length, {}
        data = np.memmap(path, np.uint8, "r") if size > start else np.zeros(start, np.uint8)
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            if entry["dtype"] not in DTYPES:
                raise ValueError(f"tensor {name} is of type {entry['dtype']}, which is not supported")
            dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
            first, last = entry["data_offsets"]
            if first < 0 or last - first != math.prod(shape) * dtype.itemsize or start + last > size:
                raise ValueError(f"tensor {name} is not whole: the file is truncated or damaged")
            tensors[name] = np.asarray(data[start + first : start + last]).view(dtype).reshape(shape)
        return tensors
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(f"{path}: cannot be read as safetensors ({reason})") from error


def weights_fingerprint(directory: Path) -> str:
    """Returns the hexadecimal SHA-256 of a model directory's config and weights."""
    files = [directory / "config.json", *sorted(directory.glob("model*.safetensors"))]
    return sha256_of_json([[file.name, sha256_of_file(file)] for file in files])


def open_checkpoint(directory: Path) -> tuple[Mapping[str, np.ndarray], Path]:
    """Opens `model.safetensors`, or the shards that `model.safetensors.index.json` lists.

    Returns:
        The memory-mapped tensors by name, and the file to name in messages.
    """
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.exists() or not index.exists():
        return open_safetensors(single), single
    listed = read_json(index)
    if (
        not isinstance(listed, dict)
        or not isinstance(listed.get("weight_map"), dict)
        or not all(isinstance(shard, str) for shard in listed["weight_map"].values())
    ):
        raise UserError(f"{index}: has no weight_map; it should list the shard of each tensor")
    shards = {shard: open_safetensors(directory / shard) for shard in sorted(set(listed["weight_map"].values()))}
    tensors: dict[str, np.ndarray] = {}
    for name, shard in listed["weight_map"].items():
        if name not in shards[shard]:
            raise UserError(f"{directory / shard}: tensor {name} is missing, though {index.name} lists it here")
        tensors[name] = shards[shard][name]
    return tensors, index
