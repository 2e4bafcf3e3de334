"""Readers of the places a document can come from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tfgpt.corpus.sources.base import Document, Source
from tfgpt.corpus.sources.file_hashes import FileHashes
from tfgpt.corpus.sources.files import FileSource
from tfgpt.corpus.sources.find_files import find_files
from tfgpt.corpus.sources.samples import SampleSource
from tfgpt.corpus.sources.tfds import TensorFlowDatasetsSource

__all__ = ["Document", "Source", "open_sources"]


def open_sources(
    specs: Sequence[str],
    flag: str = "train_text",
    *,
    cache_dir: Path | None = None,
    tfds_data_dir: str | None = None,
    strict: bool = False,
) -> list[Source]:
    """Finds what each spec stands for; reads no document yet.

    Args:
        specs: paths, folders, globs, `tfds:…` or `sample:…`.
        flag: the flag to name when a spec stands for nothing.
        cache_dir: where hashes of unchanged files are remembered; None remembers nothing.
        tfds_data_dir: the folder of prepared TensorFlow Datasets, as `CorpusConfig.tfds_data_dir`.
        strict: refuse a record that cannot be read, as `Source.strict`.

    Raises:
        UserError: a spec stands for nothing; the line names flag and spec.
    """
    hashes = FileHashes(cache_dir / "file_hashes" if cache_dir else None)
    sources = [open_source(spec, flag, hashes, tfds_data_dir) for spec in specs]
    for source in sources:
        source.strict = strict
    return sources


def open_source(spec: str, flag: str, hashes: FileHashes, tfds_data_dir: str | None) -> Source:
    """The source of one spec."""
    if spec.startswith("sample:"):
        return SampleSource(spec, flag, hashes)
    if spec.startswith("tfds:"):
        return TensorFlowDatasetsSource(spec, flag, hashes, tfds_data_dir)
    notes: list[str] = []
    source = FileSource(spec, find_files(spec, flag, notes), hashes)
    source.notes = notes
    return source
