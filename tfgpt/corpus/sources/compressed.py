"""Opens plain, gzip and Zstandard files, and detects truncated and damaged ones."""

from __future__ import annotations

import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from backports import zstd

from tfgpt.common.atomic_files import refuse_pointer
from tfgpt.common.did_you_mean import cannot_read
from tfgpt.common.errors import UserError


def format_suffix(path: Path) -> str:
    """Returns the suffix of the format below the compression: `a.jsonl.gz` → ".jsonl"."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in (".gz", ".zst") else suffix


@contextlib.contextmanager
def open_decompressed(path: Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Yields the decompressed stream of a file, and the file below it, whose `tell()` shows the progress.

    Raises:
        UserError: the file cannot be opened, or (from anywhere inside the block) is truncated or damaged.
    """
    suffix = path.suffix.lower()
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "rb"))
        except OSError as error:
            raise UserError(cannot_read(path, error)) from error
        with contextlib.suppress(OSError):  # Reading it reports the problem.
            refuse_pointer(path, file.peek(100)[:100])
        stream: Any = file
        if suffix == ".gz":
            stream = io.BufferedReader(gzip.GzipFile(fileobj=file), 1 << 20)  # type: ignore[arg-type]
        elif suffix == ".zst":
            stream = io.BufferedReader(zstd.ZstdFile(file), 1 << 20)
        try:
            yield stream, file
        except EOFError as error:
            raise UserError(f"{path}: the file ends too early (truncated {suffix}); fetch or make it again") from error
        except (gzip.BadGzipFile, zlib.error, zstd.ZstdError) as error:
            raise UserError(f"{path}: damaged, or not a {suffix} file ({error}); fetch or make it again") from error
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error
