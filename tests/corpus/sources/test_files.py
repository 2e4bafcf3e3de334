"""Documents out of files: what is one document, what is kept, and the one line for each kind of bad file."""

import gzip
import json
import random
import re
import tracemalloc

import pytest
from backports import zstd

from tests.conftest import refusal
from tfgpt.common.errors import UserError
from tfgpt.corpus.sources import base, files, open_sources


def documents(*specs: object, strict: bool = False) -> list[dict]:
    sources = open_sources([str(spec) for spec in specs], strict=strict)
    return [document for source in sources for document in source.documents()]


def texts(*specs: object) -> list[str]:
    return [document["text"] for document in documents(*specs)]


def json_lines(*values: object) -> bytes:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values).encode()


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.csv.txt", "README"])
def test_a_plain_file_is_one_document_kept_byte_for_byte(tmp_path, name):
    content = "One.\r\nTwo\t\0 – 三 🙂\n\n\nno end".encode()
    path = tmp_path / name
    path.write_bytes(content)
    (document,) = documents(path)
    assert (document["text"].encode(), document["source"]) == (content, str(path))


def test_separator_lines_cut_a_file_and_are_taken_out(tmp_path):
    (tmp_path / "stories.txt").write_bytes(b"One day.\n<|endoftext|>\nTwo.\n\n<|endoftext|>\r\n\nThree.\n<|endoftext|>")
    assert texts(tmp_path / "stories.txt") == ["One day.\n", "Two.\n\n", "\nThree.\n"]


def test_a_separator_inside_a_line_is_text(tmp_path):
    content = "We write <|endoftext|>\n<|endoftext|> here\nand there<|endoftext|>"
    (tmp_path / "a.txt").write_text(content)
    assert texts(tmp_path / "a.txt") == [content]


def test_only_a_byte_order_mark_at_the_start_is_left_out(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffa\ufeffb".encode())
    (tmp_path / "b.jsonl").write_bytes(b"\xef\xbb\xbf" + json_lines({"text": "c"}))
    assert texts(tmp_path / "a.txt", tmp_path / "b.jsonl") == ["a\ufeffb", "c"]


def test_pieces_of_any_size_give_the_same_documents(tmp_path, monkeypatch):
    """The expected cut is made by a regular expression over the whole file."""
    generator = random.Random(7)
    for number in range(60):
        parts = [generator.choice(["<|endoftext|>", "<|endoftext|> ", "\n", "é", "word ", "<|end"]) for _ in range(40)]
        content = "x" + "".join(parts) + "y"
        expected = [part for part in re.split(r"(?m)^<\|endoftext\|>[ \t]*(?:\n|\Z)", content) if part.strip()]
        path = tmp_path / f"{number}.txt"
        path.write_text(content, newline="")
        monkeypatch.setattr(files, "BLOCK_BYTES", generator.randrange(20, 60))
        assert texts(path) == expected


def test_json_lines_hold_texts_and_dialogues(tmp_path):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    content = json_lines({"text": "a\nb", "meta": 1}, {"messages": [{**messages[0], "at": "x"}, messages[1]]})
    (tmp_path / "a.jsonl").write_bytes(content.replace(b"\n", b"\r\n\n"))
    first, second = documents(tmp_path / "a.jsonl")
    assert (first["text"], second["messages"]) == ("a\nb", messages)
    assert set(first) == {"text", "source", "id"}


def test_ids_are_taken_from_json_lines_as_tables_write_numbers_and_else_made_of_the_content(tmp_path):
    ids = [7, 7.0, 7.5, "x", float("nan"), None]
    records = [*({"text": f"{number}", "id": one} for number, one in enumerate(ids)), {"text": "c"}]
    (tmp_path / "a.ndjson").write_bytes(json_lines(*records))
    (tmp_path / "c.txt").write_text("c")
    identities = [document["id"] for document in documents(tmp_path / "a.ndjson", tmp_path / "c.txt")]
    assert identities[:4] == ["7", "7", "7.5", "x"]
    assert identities[6] == identities[7] and len({*identities[4:]}) == 3
    assert all(re.fullmatch("[0-9a-f]{32}", identity) for identity in identities[4:])


def test_empty_documents_and_dialogues_without_an_answer_are_counted(tmp_path):
    question = {"messages": [{"role": "user", "content": "Anybody?"}]}
    (tmp_path / "a.jsonl").write_bytes(json_lines({"text": " \n"}, {"text": "a"}, {"messages": []}, question))
    (source,) = open_sources([str(tmp_path / "a.jsonl")])
    assert [document["text"] for document in source.documents()] == ["a"]
    assert source.dropped == {"empty": 2, "without a turn of the assistant": 1}


def compressed_forms(content: bytes) -> dict[str, bytes]:
    half = len(content) // 2
    compress = zstd.compress
    return {
        ".gz": gzip.compress(content),
        ".zst": compress(content),
        ".gz of two members": gzip.compress(content[:half]) + gzip.compress(content[half:]),
        ".zst of two frames": compress(content[:half]) + compress(content[half:]),
    }


@pytest.mark.parametrize("form", [".gz", ".zst", ".gz of two members", ".zst of two frames"])
@pytest.mark.parametrize("inner", [".txt", ".jsonl"])
def test_compressed_files_give_the_same_documents(tmp_path, form, inner):
    content = json_lines(*({"text": f"{number} " * 50} for number in range(2000)))
    suffix, *_ = form.split()
    plain, compressed = tmp_path / f"a{inner}", tmp_path / f"a{inner}{suffix}"
    plain.write_bytes(content)
    compressed.write_bytes(compressed_forms(content)[form])
    assert texts(compressed) == texts(plain)


def test_a_very_long_text_comes_in_parts_that_make_it_whole_again(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "LARGEST_DOCUMENT_BYTES", 1000)
    content = "".join(f"{'wörter ' * 20}\n{chr(10) if number % 3 else ''}" for number in range(40))
    (tmp_path / "a.txt").write_text(content)
    (tmp_path / "b.jsonl").write_bytes(json_lines({"text": content, "id": "long"}))
    for path, group in ((tmp_path / "a.txt", None), (tmp_path / "b.jsonl", "long")):
        parts = documents(path)
        assert len(parts) > 5
        assert "".join(part["text"] for part in parts) == content
        assert all(len(part["text"].encode()) <= 1000 for part in parts)
        assert all(part["text"].endswith("\n\n") for part in parts[:-1])
        groups = {part["id"].split("#")[0] for part in parts}
        assert len(groups) == 1
        assert group in (None, *groups)
        assert len({part["id"] for part in parts}) == len(parts)


def test_a_wrong_byte_in_a_later_part_is_named_by_its_line(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "LARGEST_DOCUMENT_BYTES", 100)
    (tmp_path / "a.txt").write_bytes(b"words\n" * 100 + b"\xff\n")
    with pytest.raises(UserError, match=r"a\.txt: line 101, byte 600: not UTF-8 \(0xff\)"):
        documents(tmp_path / "a.txt")


def test_a_long_line_is_never_cut_inside_a_character(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "LARGEST_DOCUMENT_BYTES", 1000)
    monkeypatch.setattr(files, "BLOCK_BYTES", 64)
    content = "漢🙂" * 1000
    (tmp_path / "a.txt").write_text(content)
    assert "".join(texts(tmp_path / "a.txt")) == content


def test_a_giant_file_is_read_in_little_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "LARGEST_DOCUMENT_BYTES", 2**20)
    (tmp_path / "a.txt").write_bytes(b"one two three four\n" * (2**25 // 19))
    tracemalloc.start()
    count = sum(len(document["text"]) for document in open_sources([str(tmp_path / "a.txt")])[0].documents())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 2**25 // 19 * 19
    assert peak < 16 * 2**20


def test_the_fingerprint_follows_the_content(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    before = open_sources([str(path)])[0].fingerprint()
    assert open_sources([str(path)])[0].fingerprint() == before
    path.write_text("two")
    assert open_sources([str(path)])[0].fingerprint() != before


GOOD = gzip.compress(b"word " * 10_000)
GOOD_ZSTANDARD = zstd.compress(random.Random(0).randbytes(10_000).hex().encode())
ASSISTANT = {"role": "assistant", "content": "a"}

BAD_FILES = {
    "not UTF-8": ("a.txt", b"one\ntw\xfco\n", "a.txt: line 2, byte 6: not UTF-8 (0xfc); convert it"),
    "not UTF-8 after a separator": ("a.txt", b"a\n<|endoftext|>\nb\n\xff", "a.txt: line 4, byte 18: not UTF-8 (0xff)"),
    "not UTF-8 after an empty line": ("a.txt", b"\n\xff", "a.txt: line 2, byte 1: not UTF-8 (0xff)"),
    "ends inside a character": ("a.txt", "né".encode()[:-1], "a.txt: line 1, byte 1: not UTF-8 (0xc3)"),
    "UTF-16": ("a.txt", "one".encode("utf-16"), "looks like UTF-16; convert it with iconv -f UTF-16 -t UTF-8"),
    "binary": ("a.bin", b"\x89PNG\r\n\x1a\n\0\0\0", "a.bin: line 1, byte 0: not UTF-8 (0x89); it looks like a binary"),
    "empty": ("a.txt", b"", "a.txt: the file is empty; leave it out"),
    "blank": ("a.txt", b" \n\n", "a.txt: holds no document (only blank text); leave it out"),
    "empty .gz": ("a.txt.gz", gzip.compress(b""), "a.txt.gz: the file is empty"),
    "no bytes .gz": ("a.txt.gz", b"", "a.txt.gz: the file is empty"),
    "truncated .gz": ("a.txt.gz", GOOD[: len(GOOD) // 2], "a.txt.gz: the file ends too early (truncated .gz)"),
    "no .gz": ("a.txt.gz", b"plain text", "a.txt.gz: damaged, or not a .gz file"),
    "damaged .gz": ("a.txt.gz", GOOD[:30] + b"\0\0\0\0" + GOOD[34:], "a.txt.gz: damaged, or not a .gz file"),
    "truncated .zst": ("a.zst", GOOD_ZSTANDARD[:-9], "a.zst: the file ends too early (truncated .zst)"),
    "no .zst": ("a.zst", b"plain text", "a.zst: damaged, or not a .zst file"),
    "not JSON": ("a.jsonl", b'{"text": "a"}\n{"text": \n', "a.jsonl:2: not JSON (Expecting value at column"),
    "JSON cut short": ("a.jsonl", b'{"text": "a"}\n{"text": "b', "a.jsonl:2: not JSON (Unterminated string"),
    "no object": ("a.jsonl", b'"text"\n', "a.jsonl:1: a string, not an object with 'text' or 'messages'"),
    "no text": ("a.jsonl", json_lines({"title": 1, "body": 2}), "a.jsonl:1: neither 'text' nor 'messages'"),
    "text no string": ("a.jsonl", json_lines({"text": 1}), "a.jsonl:1: 'text' is a number, not a string"),
    "half a surrogate pair": ("a.jsonl", b'{"text": "x\\ud83d"}', "a.jsonl:1: 'text' holds half a surrogate pair"),
    "line not UTF-8": ("a.jsonl", b'{"text": "a"}\n{"text": "\xe9"}', "a.jsonl: line 2, byte 24: not UTF-8 (0xe9)"),
    "deep nesting": ("a.jsonl", b"[" * 200_000, "a.jsonl:1: not JSON"),
    "messages no list": ("a.jsonl", json_lines({"messages": "a"}), "a.jsonl:1: 'messages' is a string, not a list"),
    "message no object": ("a.jsonl", json_lines({"messages": ["a"]}),
        "a.jsonl:1: message 1 is a string, not an object"),
    "unknown role": ("a.jsonl", json_lines({"messages": [{"role": "robot", "content": "a"}]}),
        "a.jsonl:1: message 1 has the role 'robot'; roles are system, user, assistant, tool"),
    "no role": ("a.jsonl", json_lines({"messages": [{"content": "a"}]}), "a.jsonl:1: message 1 has no 'role'"),
    "no content": ("a.jsonl", json_lines({"messages": [{"role": "user"}]}), "a.jsonl:1: message 1 has no 'content'"),
    "content no string": ("a.jsonl", json_lines({"messages": [{"role": "user", "content": None}]}),
        "a.jsonl:1: message 1: 'content' is null, not a string"),
    "id no string": ("a.jsonl", json_lines({"text": "a", "id": []}), "a.jsonl:1: 'id' is a list"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_named_in_one_line(tmp_path, case):
    name, content, expected = BAD_FILES[case]
    (tmp_path / name).write_bytes(content)
    line = refusal(documents, tmp_path / name, strict=True)
    assert line.startswith(f"{tmp_path}/") and expected in line


def test_a_bad_file_among_good_ones_is_named_with_its_place(tmp_path):
    (tmp_path / "a.txt").write_text("good")
    (tmp_path / "b.txt").write_bytes("schön".encode("latin-1"))
    assert refusal(documents, tmp_path) == (
        f"{tmp_path}/b.txt: line 1, byte 3: not UTF-8 (0xf6); convert it, for example with iconv -f WINDOWS-1252 "
        "-t UTF-8 (or its encoding) (file 2 of 2; documents read before it: 1)"
    )


def test_a_file_with_mostly_unusable_records_is_refused_with_numbers(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(json_lines({"text": "a"}, {"body": "b"}, {"body": "c"}))
    with pytest.raises(
        UserError, match="2 of its 3 records cannot be read; the first: .*a.jsonl:2: neither 'text' nor"
    ):
        documents(path)
    path.write_bytes(json_lines(*[{"messages": [{"role": "user", "content": "Hi"}]}] * 5))
    with pytest.raises(UserError, match=r"holds no document that can be used \(5 without a turn of the assistant\)"):
        documents(path)


def test_empty_files_among_others_are_counted(tmp_path):
    for name, content in (("a.py", "print()\n"), ("__init__.py", ""), ("b.txt", " \n")):
        (tmp_path / name).write_text(content)
    (source,) = open_sources([str(tmp_path)])
    assert len(list(source.documents())) == 1
    first = f"{tmp_path}/__init__.py: the file is empty"
    assert source.remarks == [f"{tmp_path}: 2 of 3 files hold nothing to learn from, the first: {first}"]


def test_utf16_without_a_mark_is_refused(tmp_path):
    for order in ("le", "be"):
        (tmp_path / "a.txt").write_bytes("plain words: Ā".encode(f"utf-16-{order}"))
        with pytest.raises(UserError, match=f"iconv -f UTF-16{order.upper()} -t UTF-8"):
            list(open_sources([str(tmp_path / "a.txt")])[0].documents())


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.gz", "a.json.zst"])
def test_a_git_lfs_pointer_is_refused(tmp_path, name):
    # benedekrozemberczki/datasets#10: learned as a text, or called no JSON, no gzip.
    path = tmp_path / name
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    [source] = open_sources([str(path)], "train_text")
    with pytest.raises(UserError, match=f"{name}: is a git-lfs pointer, not the file itself"):
        list(source.documents())
