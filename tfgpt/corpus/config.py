"""Settings of the corpus and its cache."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar

from tfgpt.common.errors import SettingError
from tfgpt.common.settings import Settings, setting
from tfgpt.corpus.cache import cache_directory

SMALLEST_VALIDATION_FRACTION = 0.0001


@dataclasses.dataclass(frozen=True)
class CorpusConfig(Settings):
    """Sources, split and cache of the documents.

    Example:

    >>> CorpusConfig(train_text=("sample:shakespeare",), split="contiguous").validation_fraction
    0.05
    """

    title: ClassVar[str] = "Corpus: the text to learn from"

    train_text: tuple[str, ...] = setting(
        (),
        "Text to train on: a file, a folder, a glob ('my/**/*.txt'), tfds:NAME/CONFIG:SPLIT#FEATURE or sample:NAME. "
        "Files may be plain text, Markdown, JSON Lines or a JSON list of records, each also .gz or .zst.",
    )
    validation_text: tuple[str, ...] = setting(
        (), "Text to hold out, in the form of --train_text; all of it, instead of a share of --train_text."
    )
    validation_fraction: float = setting(
        0.05,
        "Share of --train_text held out for validation; 0 holds out nothing.",
        minimum=0.0,
        maximum=0.9,
    )
    split: str = setting(
        "auto",
        "How the held-out share is chosen: by a hash of each document, or contiguous (the last share of the text). "
        "auto takes the hash where there are enough documents for it and says so where there are not.",
        choices=("auto", "hash", "contiguous"),
    )
    deduplicate: bool = setting(True, "Keep only the first of documents that are exactly the same.")
    strict: bool = setting(
        False, "Stop at the first record that cannot be read, instead of leaving it out and counting it."
    )
    cache_dir: str | None = setting(
        None,
        "Folder that keeps documents, tokenizers and token shards. $TFGPT_CACHE_DIR or the system's cache folder, "
        "such as ~/.cache/tfgpt (python -m tfgpt.cache lists and empties it).",
        path=True,
    )
    tfds_data_dir: str | None = setting(
        None, "Folder of prepared TensorFlow Datasets. $TFDS_DATA_DIR or ~/tensorflow_datasets."
    )

    def check(self) -> None:
        if 0 < self.validation_fraction < SMALLEST_VALIDATION_FRACTION:
            raise SettingError(
                "validation_fraction",
                f"{self.validation_fraction} is too little to measure anything; "
                f"at least {SMALLEST_VALIDATION_FRACTION}, or 0 to hold out nothing",
            )
        for name in ("train_text", "validation_text"):
            if any(not spec.strip() for spec in getattr(self, name)):
                raise SettingError(name, "is empty; give a file, a folder, a glob, tfds:… or sample:…")

    @property
    def cache_directory(self) -> Path:
        """The cache folder (see `tfgpt.corpus.cache.cache_directory`)."""
        return cache_directory(self.cache_dir)


@dataclasses.dataclass(frozen=True)
class CacheConfig(Settings):
    """Entries to remove from the cache.

    Example:

    >>> CacheConfig(unused_days=30).remove
    ()
    """

    title: ClassVar[str] = "Cache"

    cache_dir: str | None = setting(
        None, "The cache's folder. $TFGPT_CACHE_DIR or the system's cache folder, such as ~/.cache/tfgpt.", path=True
    )
    remove: tuple[str, ...] = setting((), "Remove this entry, named as in the list or by the beginning of that name.")
    unused_days: float | None = setting(
        None, "Remove every entry that was not used for this many days; 0 removes all.", minimum=0.0
    )
