"""Opens plain, gzip and Zstandard files alike, and tells a damaged one from a whole one."""

from __future__ import annotations

import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tfgpt.common.atomic_files import refuse_pointer
from tfgpt.common.did_you_mean import cannot_read
from tfgpt.common.errors import UserError

# Small, because one byte of Zstandard can stand for thousands.
ZSTANDARD_INPUT_BYTES = 16 * 1024


class DamagedError(Exception):
    """The compressed bytes make no sense."""


def format_suffix(path: Path) -> str:
    """The suffix that says the format: `a.jsonl.gz` → ".jsonl"."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in (".gz", ".zst") else suffix


class ZstandardReader(io.RawIOBase):
    """Decompresses a Zstandard file of one or more frames.

    `zstandard`'s own stream reader ends quietly where a truncated file ends; this raises EOFError.
    """

    def __init__(self, compressed: BinaryIO):
        import zstandard

        self.compressed = compressed
        self.start_frame = zstandard.ZstdDecompressor().decompressobj
        self.error = zstandard.ZstdError
        self.frame: Any = None
        self.pending = b""
        self.output = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.output:
            data = self.pending or self.compressed.read(ZSTANDARD_INPUT_BYTES)
            self.pending = b""
            if not data:
                if self.frame is not None:
                    raise EOFError("the last frame has no end")
                return 0
            if self.frame is None:
                self.frame = self.start_frame()
            try:
                self.output = self.frame.decompress(data)
            except self.error as error:
                raise DamagedError(str(error)) from error
            if self.frame.eof:
                self.pending, self.frame = self.frame.unused_data, None
        count = min(len(buffer), len(self.output))
        buffer[:count] = self.output[:count]
        self.output = self.output[count:]
        return count


def beginning(file: BinaryIO) -> bytes:
    """What a file begins with, left to be read; nothing where it cannot be read, which reading it will say."""
    with contextlib.suppress(OSError):
        return file.peek(100)[:100]  # type: ignore[attr-defined]
    return b""


@contextlib.contextmanager
def open_decompressed(path: Path, name: str) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Opens a file for reading its decompressed bytes.

    Args:
        path: the file; `.gz` and `.zst` are decompressed on the way.
        name: how error lines call it.

    Yields:
        The decompressed stream, and the file underneath, whose `tell()` shows how far reading has come.

    Raises:
        UserError: the file cannot be opened, or (from anywhere inside the block) turns out truncated or damaged.
    """
    suffix = path.suffix.lower()
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "rb"))
        except OSError as error:
            raise UserError(cannot_read(path, error).replace(str(path), name, 1)) from error
        refuse_pointer(name, beginning(file))
        stream: Any = file
        if suffix == ".gz":
            stream = io.BufferedReader(gzip.GzipFile(fileobj=file), 1 << 20)  # type: ignore[arg-type]
        elif suffix == ".zst":
            stream = io.BufferedReader(ZstandardReader(file), 1 << 20)
        try:
            yield stream, file
        except EOFError as error:
            raise UserError(f"{name}: the file ends too early (truncated {suffix}); fetch or make it again") from error
        except (gzip.BadGzipFile, zlib.error, DamagedError) as error:
            raise UserError(f"{name}: damaged, or no {suffix} file ({error}); fetch or make it again") from error
        except OSError as error:
            raise UserError(f"{name}: cannot be read ({error.strerror})") from error
