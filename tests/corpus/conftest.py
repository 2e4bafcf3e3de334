"""Corpora of the tests: records in files, and documents built in a temporary cache."""

import json
from pathlib import Path

import pytest

from tfgpt.corpus.config import CorpusConfig


def write_records(path: Path, *records: object) -> Path:
    """Writes JSON Lines; a string is a line as it stands."""
    path.write_text("".join(f"{record if isinstance(record, str) else json.dumps(record)}\n" for record in records))
    return path


@pytest.fixture
def corpus(tmp_path):
    def make(*train_text: object, **options: object) -> CorpusConfig:
        options.setdefault("cache_dir", str(tmp_path / "cache"))
        return CorpusConfig(train_text=tuple(map(str, train_text)), **options)  # type: ignore[arg-type]

    return make
