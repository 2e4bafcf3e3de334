"""A damaged directory of shards is refused, and the damaged file is named."""

import json
import os
from pathlib import Path

import pytest

from tfgpt.common.atomic_files import sha256_of_json
from tfgpt.pipeline import manifest as manifest_module
from tfgpt.pipeline.chat_shards import ChatShards, write_chat_shards
from tfgpt.pipeline.manifest import DamagedShards
from tfgpt.pipeline.token_shards import TokenShards, write_token_shards
from tfgpt.tokenization.train_tokenizer import byte_tokenizer

CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}], "source": "a"}
FILES = {
    TokenShards: ["tokens-00000.bin", "tokens-00002.bin", "weights-00001.bin"],
    ChatShards: ["tokens.bin", "weights.bin", "parts.jsonl", "index.npy"],
}


def write(kind: type, directory: Path) -> Path:
    if kind is TokenShards:
        write_token_shards([{"text": "the end"}] * 40, byte_tokenizer(), directory, store_weights=True, shard_tokens=99)
    else:
        write_chat_shards([CHAT], byte_tokenizer(), directory, length=64, sources={"a": "a"})
    return directory


@pytest.fixture
def shards(tmp_path) -> Path:
    return write(TokenShards, tmp_path / "shards")


def flip_a_byte(path: Path) -> None:
    status, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    # Small files are hashed even if their time is put back.
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


@pytest.mark.parametrize("damage", [flip_a_byte, Path.unlink, cut_off])
@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in FILES.items() for name in names])
def test_a_damaged_file_is_refused_and_named(tmp_path, kind, name, damage):
    directory = write(kind, tmp_path / "made")
    kind.open(directory)
    damage(directory / name)
    what = {flip_a_byte: "damaged", Path.unlink: "this file is missing", cut_off: "(has|damaged)"}[damage]
    with pytest.raises(DamagedShards, match=rf"made/{name}: {what}.*; delete the directory and prepare"):
        kind.open(directory)


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, r"not a directory of tfgpt .* \(manifest.json is missing\)"),
        ("{", r"manifest\.json: cannot be read as JSON"),
        ("[]", r"manifest\.json: not a manifest of tfgpt"),
        ('{"format": "something else"}', r"manifest\.json: not a manifest of tfgpt"),
    ],
)
def test_a_directory_without_a_manifest_of_its_kind_is_refused(tmp_path, kind, text, problem):
    path = write(kind, tmp_path / "made") / "manifest.json"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(DamagedShards, match=problem):
        kind.open(tmp_path / "made")


@pytest.mark.parametrize(("kind", "reads"), [(TokenShards, 1), (ChatShards, 2)])
def test_shards_of_another_format_version_are_refused(tmp_path, kind, reads):
    path = write(kind, tmp_path / "made") / "manifest.json"
    content = {**json.loads(path.read_text()), "format_version": 3}
    if kind is TokenShards:
        del content["sha256"]
        content["sha256"] = sha256_of_json(content)
    path.write_text(json.dumps(content))
    with pytest.raises(DamagedShards, match=f"format version 3, this program reads {reads}"):
        kind.open(tmp_path / "made")


def test_a_changed_manifest_is_refused(shards):
    path = shards / "manifest.json"
    path.write_text(path.read_text().replace('"documents": 40', '"documents": 41'))
    with pytest.raises(DamagedShards, match=r"manifest\.json: changed since it was written"):
        TokenShards.open(shards)


def test_large_shards_are_hashed_once_and_again_when_they_change(shards, monkeypatch):
    monkeypatch.setattr(manifest_module, "SMALL_FILE_BYTES", 0)
    hashed: list[str] = []
    real = manifest_module.sha256_of_file
    monkeypatch.setattr(manifest_module, "sha256_of_file", lambda path: hashed.append(path.name) or real(path))
    files = len(list(shards.glob("*.bin")))
    TokenShards.open(shards)
    assert len(hashed) == files
    TokenShards.open(shards)
    assert len(hashed) == files
    path = shards / "tokens-00001.bin"
    flip_a_byte(path)
    os.utime(path, ns=(0, 0))
    with pytest.raises(DamagedShards, match=r"tokens-00001\.bin"):
        TokenShards.open(shards)
