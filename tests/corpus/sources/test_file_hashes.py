"""Hashes of files, remembered without ever being wrong."""

import hashlib
import os

import pytest

from tfgpt.common.errors import UserError
from tfgpt.corpus.sources import file_hashes
from tfgpt.corpus.sources.file_hashes import FileHashes


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(autouse=True)
def settled_at_once(monkeypatch):
    monkeypatch.setattr(file_hashes, "SETTLED_SECONDS", -60.0)


def test_hashes_are_sha256_in_order(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").write_bytes(b"")
    paths = [tmp_path / "b", tmp_path / "a", tmp_path / "b"]
    expected = [sha256(b""), sha256(b"abc"), sha256(b"")]
    for _ in range(2):
        assert FileHashes(tmp_path / "memory").of(paths) == expected
    # FIPS 180-2, appendix B.1
    assert expected[1] == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"one")
    return path


@pytest.fixture
def hashes(tmp_path, path):
    hashes = FileHashes(tmp_path / "memory")
    hashes.of([path])
    return hashes


def test_a_remembered_hash_is_used_and_a_changed_file_is_read_again(tmp_path, path, hashes):
    (memory,) = (tmp_path / "memory").iterdir()
    memory.write_text(memory.read_text().replace(sha256(b"one"), "remembered"))
    assert hashes.of([path]) == ["remembered"]
    path.write_bytes(b"two")
    assert hashes.of([path]) == [sha256(b"two")]


@pytest.mark.parametrize("replaced", [True, False])
def test_a_file_with_new_content_of_the_same_size_and_time_is_read_again(tmp_path, path, hashes, replaced):
    changed, status = tmp_path / "b" if replaced else path, path.stat()
    changed.write_bytes(b"two")
    os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(changed, path)
    assert hashes.of([path]) == [sha256(b"two")]


def test_a_file_that_just_changed_is_not_remembered(tmp_path, path, monkeypatch):
    monkeypatch.setattr(file_hashes, "SETTLED_SECONDS", 2.0)
    FileHashes(tmp_path / "memory").of([path])
    assert [memory.read_text().strip() for memory in (tmp_path / "memory").iterdir()] == ["{}"]


@pytest.mark.parametrize("damage", ["{", "[]", '{"a": 1}', ""])
def test_a_damaged_memory_is_forgotten(tmp_path, path, hashes, damage):
    (memory,) = (tmp_path / "memory").iterdir()
    memory.write_text(damage)
    assert hashes.of([path]) == [sha256(b"one")]


def test_a_memory_that_cannot_be_written_only_costs_time(tmp_path, path):
    (tmp_path / "memory").write_text("a file in the way")
    assert FileHashes(tmp_path / "memory").of([path]) == [sha256(b"one")]


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"missing: cannot be read \(No such file or directory\)"):
        FileHashes(tmp_path).of([tmp_path / "missing"])
