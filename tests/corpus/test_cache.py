"""The cache: where it lies, what it lists and frees, one builder at a time, and read where it cannot be written."""

import os
import pwd
import sys
import time
from pathlib import Path

import platformdirs
import pytest

from tfgpt import cache as command
from tfgpt.common.errors import SettingError
from tfgpt.common.locks import writer_lock
from tfgpt.corpus.build import build_documents
from tfgpt.corpus.cache import cache_directory, cached_entry, list_entries, lock_file
from tfgpt.corpus.config import CorpusConfig


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("".join(f"Line {number} of a text.\n" for number in range(500)))
    return path


@pytest.fixture
def cache(tmp_path, text):
    folder = tmp_path / "cache"
    build_documents(CorpusConfig(train_text=(str(text),), cache_dir=str(folder)))
    return folder


def aged(entry: Path, days: float) -> None:
    then = time.time() - days * 86400
    os.utime(entry, (then, then))


def test_the_cache_is_in_the_systems_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("TFGPT_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory() == Path(platformdirs.user_cache_dir("tfgpt", appauthor=False))
    if sys.platform == "linux":
        assert cache_directory() == tmp_path / "xdg" / "tfgpt"
    monkeypatch.setenv("TFGPT_CACHE_DIR", str(tmp_path / "environment"))
    assert cache_directory() == tmp_path / "environment"
    assert cache_directory(str(tmp_path / "flag")) == tmp_path / "flag"


def test_without_a_home_folder_the_flag_is_named(monkeypatch):
    for name in ("TFGPT_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)

    def unknown(number):
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(SettingError, match=r"--cache_dir: .*no home folder.*TFGPT_CACHE_DIR"):
        cache_directory()


def test_the_list_shows_name_source_size_and_last_use_of_entries(cache, text, capsys):
    (entry,) = (entry for entry in list_entries(cache) if entry.name.startswith("documents/"))
    assert command.main([f"--cache_dir={cache}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = (line for line in lines if line.startswith("documents/"))
    assert line.split()[0] == entry.name[: len("documents/") + 12]
    assert "kB" in line and time.strftime("%Y-%m-%d") in line and line.endswith(str(text))
    assert entry.size == sum(path.stat().st_size for path in entry.path.rglob("*") if path.is_file())
    assert f"entries of {cache}" in lines[-1]


def test_one_entry_is_removed_and_its_size_is_printed(cache, capsys):
    (entry,) = (entry for entry in list_entries(cache) if entry.name.startswith("documents/"))
    assert command.main([f"--cache_dir={cache}", "--remove=documents/"]) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith(f"Removed {entry.name} (")
    assert [path.name for path in (cache / "documents").iterdir()] == []
    assert command.main([f"--cache_dir={cache}", "--remove=documents/"]) == 2
    assert "--remove: no entry documents/" in capsys.readouterr().err


def test_only_what_was_not_used_for_so_long_is_removed(cache, text, capsys):
    for entry in list_entries(cache):
        aged(entry.path, 40)
    # Used again: it counts from now on.
    build_documents(CorpusConfig(train_text=(str(text),), cache_dir=str(cache)))
    left = {entry.name for entry in list_entries(cache)}
    (cache / "tokens" / "0123").mkdir(parents=True)
    aged(cache / "tokens" / "0123", 31)
    assert command.main([f"--cache_dir={cache}", "--unused_days=30"]) == 0
    assert {entry.name for entry in list_entries(cache)} == left
    assert command.main([f"--cache_dir={cache}", "--unused_days=0"]) == 0
    assert list_entries(cache) == [] and "freed" in capsys.readouterr().out


def test_an_entry_that_is_being_made_is_not_removed(cache, capsys):
    (entry,) = (entry for entry in list_entries(cache) if entry.name.startswith("documents/"))
    with writer_lock(lock_file(entry.path), entry.path):
        assert command.main([f"--cache_dir={cache}", "--remove=documents/"]) == 2
    assert f"is being written by process {os.getpid()}" in capsys.readouterr().err
    assert entry.path.is_dir()


def test_a_cache_that_cannot_be_written_is_read(cache, text):
    config = CorpusConfig(train_text=(str(text),), cache_dir=str(cache))
    for path in (cache, *cache.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    # root may write everywhere, so the reader is somebody else then.
    for path in text.parents:
        if "pytest" in str(path) and os.getuid() == 0:
            path.chmod(0o755)
    if os.getuid() == 0:
        os.seteuid(54321)
    try:
        assert build_documents(config).directory.parent == cache / "documents"
    finally:
        os.seteuid(os.getuid())
        for path in (cache, *cache.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)


def test_an_entry_used_through_making_counts_as_used(tmp_path):
    entry = tmp_path / "tokens" / "0123"
    with cached_entry(entry, ["my/*.txt"]):
        entry.mkdir(parents=True)
    aged(entry, 10)
    with cached_entry(entry, ["my/*.txt"]):
        pass
    (found,) = list_entries(tmp_path)
    assert found.text == ("my/*.txt",) and time.time() - found.used < 60
