"""Sources of documents: files, sample corpora and TensorFlow Datasets."""

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
    """Returns the source of each spec; reads no document yet.

    Args:
        specs: paths, folders, globs, `tfds:…` or `sample:…`.
        cache_dir: the folder that keeps hashes of files; None keeps none.
        tfds_data_dir: the folder of prepared TensorFlow Datasets, as `CorpusConfig.tfds_data_dir`.
        strict: refuse a record that cannot be read.
    """
    hashes = FileHashes(cache_dir / "file_hashes" if cache_dir else None)
    sources: list[Source] = []
    for spec in specs:
        if spec.startswith("sample:"):
            sources.append(SampleSource(spec, flag, hashes))
        elif spec.startswith("tfds:"):
            sources.append(TensorFlowDatasetsSource(spec, flag, hashes, tfds_data_dir))
        else:
            notes: list[str] = []
            sources.append(FileSource(spec, find_files(spec, flag, notes), hashes))
            sources[-1].notes = notes
        sources[-1].strict = strict
    return sources
