"""From sources to documents on disk: splits, duplicates, the cache, and what happens when things go wrong."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, refusal
from tests.corpus.conftest import write_records
from tfgpt.common.errors import RunError, UserError
from tfgpt.corpus.build import DocumentBuilder, build_documents
from tfgpt.corpus.cache import LEFTOVER_SECONDS
from tfgpt.corpus.config import CorpusConfig
from tfgpt.corpus.document_shards import DocumentShards
from tfgpt.corpus.sources import file_hashes


def numbered(path: Path, count: int = 1000) -> Path:
    return write_records(path, *[{"text": f"document number {number}"} for number in range(count)])


def texts(documents: DocumentShards, side: str) -> list[str]:
    return [document["text"] for document in documents.documents(side)]


def test_every_document_is_on_one_side(tmp_path, corpus):
    made = build_documents(corpus(numbered(tmp_path / "a.jsonl")))
    train, validation = texts(made, "train"), texts(made, "validation")
    assert sorted(train + validation) == sorted(f"document number {number}" for number in range(1000))
    assert 20 < len(validation) < 90
    assert made.manifest["split"]["used"] == "hash"


def test_sides_do_not_depend_on_order_or_company(tmp_path, corpus):
    values = [{"text": f"document number {number}"} for number in range(1000)]
    first = build_documents(corpus(write_records(tmp_path / "a.jsonl", *values), split="hash"))
    second = build_documents(corpus(write_records(tmp_path / "b.jsonl", *values[::-1][:700]), split="hash"))
    common = {value["text"] for value in values[300:]}
    assert set(texts(second, "validation")) == set(texts(first, "validation")) & common


def test_a_single_file_is_cut_where_nanogpt_cuts_it(tmp_path, corpus):
    """nanoGPT, data/shakespeare_char/prepare.py: `data[:int(n*0.9)]`, `data[int(n*0.9):]`."""
    content = "".join(f"Zeile {number}: süß.\r\n" for number in range(999))
    (tmp_path / "a.txt").write_text(content, newline="")
    made = build_documents(corpus(tmp_path / "a.txt", split="contiguous", validation_fraction=0.1))
    cut = int(len(content) * 0.9)
    assert (texts(made, "train"), texts(made, "validation")) == ([content[:cut]], [content[cut:]])
    assert made.manifest["sides"]["train"]["characters"] == cut
    assert made.num_bytes("validation") == len(content[cut:].encode())


def test_a_contiguous_split_of_files_cuts_one_of_them(tmp_path, corpus):
    for name, letter in (("a", "a"), ("b", "b"), ("c", "c")):
        (tmp_path / f"{name}.txt").write_text(letter * 100)
    made = build_documents(corpus(tmp_path / "*.txt", split="contiguous", validation_fraction=0.5))
    assert texts(made, "train") == ["a" * 100, "b" * 50]
    assert texts(made, "validation") == ["b" * 50, "c" * 100]


def test_auto_reports_why_it_does_not_split_by_hash(tmp_path, corpus, capfd):
    (tmp_path / "a.txt").write_text("word " * 1000)
    config = corpus(tmp_path / "a.txt")
    expected = (
        "split: 1 document is too few to split by hash; the last 0.05 of the text is held out instead "
        "(--split=contiguous)"
    )
    for _ in range(2):  # the second time from the cache
        made = build_documents(config)
        assert expected in capfd.readouterr().err.splitlines()
    assert made.manifest["split"]["used"] == "contiguous"
    assert (made.num_bytes("train"), made.num_bytes("validation")) == (4750, 250)


@pytest.mark.parametrize("growing", ["auto", "contiguous"])
def test_a_file_that_grows_while_it_is_read_is_not_kept_under_the_hash_it_had(tmp_path, corpus, monkeypatch, growing):
    # axolotl-ai-cloud/axolotl#1136: a download still running. Later the shorter file gave the longer one's documents.
    path = numbered(tmp_path / "a.jsonl", 100)
    before, run = path.read_bytes(), DocumentBuilder.run

    def grows_first(self, fingerprint: str) -> None:
        numbered(path, 150)
        run(self, fingerprint)

    with monkeypatch.context() as patched:
        patched.setattr(DocumentBuilder, "run", grows_first)
        with pytest.raises(RunError, match="a.jsonl: changed while it was read"):
            build_documents(corpus(path, split=growing))
    path.write_bytes(before)
    made = build_documents(corpus(path, split=growing))
    assert len(texts(made, "train") + texts(made, "validation")) == 100


def test_ids_that_begin_with_the_number_sign_are_not_all_one_group(tmp_path, corpus):
    path = write_records(tmp_path / "a.jsonl", *({"id": f"#{n}", "text": f"number {n}"} for n in range(1000)))
    assert 20 < len(texts(build_documents(corpus(path, split="hash")), "validation")) < 90


def test_ids_that_are_all_alike_are_blamed_where_the_hash_cannot_split(tmp_path, corpus, capfd):
    # ageron/handson-ml#340: ids that are none.
    path = write_records(tmp_path / "a.jsonl", *[{"id": 0, "text": f"number {n}"} for n in range(100)])
    words = "(the 100 documents have one id up to the first #, and documents with one id stay together)"
    build_documents(corpus(path))
    assert f"split: by hash the validation side would be empty {words}; the last" in capfd.readouterr().err
    assert words in refusal(build_documents, corpus(path, split="hash"))


def test_separators_inside_lines_are_reported(tmp_path, corpus, capfd):
    # nshepperd/gpt-2#33, minimaxir/gpt-2-simple#33.
    (tmp_path / "a.txt").write_text("one<|endoftext|>two<|endoftext|>three\n<|endoftext|>\nfour\n" * 30)
    build_documents(corpus(tmp_path / "a.txt"))
    assert "<|endoftext|> occurs 60 times inside a line, where it is learned as letters" in capfd.readouterr().err
    (tmp_path / "b.txt").write_text("one\n<|endoftext|>\ntwo\n" * 30)
    build_documents(corpus(tmp_path / "b.txt"))
    assert "letters" not in capfd.readouterr().err


def test_exact_duplicates_are_left_out_and_counted(tmp_path, corpus):
    dialogue = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    values = [*({"text": f"{number % 60}", "id": number} for number in range(100)), dialogue, {**dialogue, "id": 1}]
    path = write_records(tmp_path / "a.jsonl", *values)
    once = build_documents(corpus(path))
    assert once.num_documents("train") + once.num_documents("validation") == 61
    assert once.manifest["dropped"] == {"duplicate": 41}
    all_of_them = build_documents(corpus(path, deduplicate=False))
    assert all_of_them.num_documents("train") + all_of_them.num_documents("validation") == 102


def test_all_of_the_validation_files_is_held_out_of_training(tmp_path, corpus):
    write_records(tmp_path / "train.jsonl", *[{"text": letter} for letter in "abcdb"])
    write_records(tmp_path / "validation.jsonl", *[{"text": letter} for letter in "xby"])
    held_out = (str(tmp_path / "validation.jsonl"),)
    made = build_documents(corpus(tmp_path / "train.jsonl", validation_text=held_out, deduplicate=False))
    assert texts(made, "train") == ["a", "c", "d"]
    assert texts(made, "validation") == ["x", "b", "y"]
    assert made.manifest["sources"][0]["dropped"] == {"also in --validation_text": 2}


def test_dialogues_keep_roles_and_contents(tmp_path, corpus):
    messages = [{"role": "system", "content": "Sei kurz."}, {"role": "user", "content": "?\n\u2028"}]
    messages.append({"role": "assistant", "content": "<|im_end|>"})
    made = build_documents(
        corpus(write_records(tmp_path / "a.jsonl", *[{"messages": messages}]), validation_fraction=0.0)
    )
    assert [document["messages"] for document in made.documents("train")] == [messages]


def test_the_manifest_describes_the_shards(tmp_path, corpus, monkeypatch):
    monkeypatch.setattr("tfgpt.corpus.document_shards.SHARD_BYTES", 10_000)
    made = build_documents(corpus(numbered(tmp_path / "a.jsonl")))
    assert len(made.manifest["sides"]["train"]["shards"]) > 5
    for name, side in made.manifest["sides"].items():
        lines = []
        for number, shard in enumerate(side["shards"]):
            assert shard["name"] == f"{name}-{number:05d}.jsonl"
            content = (made.directory / shard["name"]).read_bytes()
            assert hashlib.sha256(content).hexdigest() == shard["sha256"]
            assert (len(content), content.count(b"\n")) == (shard["file_bytes"], shard["documents"])
            lines += content.splitlines()
        written = [json.loads(line)["text"] for line in lines]
        assert written == texts(made, name)
        assert side["bytes"] == sum(len(text.encode()) for text in written)


def test_the_card_shows_sources_sizes_and_examples(tmp_path, corpus):
    path = numbered(tmp_path / "a.jsonl")
    card = build_documents(corpus(path)).card.read_text()
    assert f"| `{path}` | train_text | 1 file | 1,000 | not recorded" in card
    assert "document number 0" in card


def test_a_second_run_does_not_open_the_text(tmp_path, corpus, monkeypatch):
    monkeypatch.setattr(file_hashes, "SETTLED_SECONDS", -60.0)
    path = numbered(tmp_path / "a.jsonl")
    first = build_documents(corpus(path))
    opened: list[str] = []
    recording = True
    sys.addaudithook(
        lambda event, arguments: opened.append(str(arguments[0])) if recording and event == "open" else None
    )
    second = build_documents(corpus(path))
    recording = False
    assert second.directory == first.directory
    assert str(path) not in opened
    assert any(name.endswith("manifest.json") for name in opened)


def test_other_options_give_other_documents(tmp_path, corpus):
    path = numbered(tmp_path / "a.jsonl")
    options = [{}, {"split": "hash"}, {"validation_fraction": 0.1}, {"deduplicate": False}, {"split": "contiguous"}]
    assert len({build_documents(corpus(path, **option)).directory for option in options}) == len(options)


def test_the_same_text_gives_the_same_bytes(tmp_path, corpus):
    path = numbered(tmp_path / "a.jsonl")
    first, second = (build_documents(corpus(path, cache_dir=str(tmp_path / name))) for name in ("x", "y"))
    names = sorted(file.name for file in first.directory.iterdir() if file.name != "tfgpt.json")
    assert names == ["card.md", "manifest.json", "train-00000.jsonl", "validation-00000.jsonl"]
    for name in names:
        assert (first.directory / name).read_bytes() == (second.directory / name).read_bytes()


def test_a_damaged_shard_is_refused_by_name(tmp_path, corpus):
    made = build_documents(corpus(numbered(tmp_path / "a.jsonl")))
    shard = made.directory / "train-00000.jsonl"
    content = bytearray(shard.read_bytes())
    content[content.index(b"number")] = ord("N")
    shard.write_bytes(content)
    with pytest.raises(RunError, match=r"train-00000\.jsonl: damaged \(differs from its manifest\); delete"):
        list(build_documents(corpus(tmp_path / "a.jsonl")).documents("train"))


@pytest.mark.parametrize("damage", ["truncated", "missing", "no manifest"])
def test_an_incomplete_cache_entry_is_made_again(tmp_path, corpus, damage):
    config = corpus(numbered(tmp_path / "a.jsonl"))
    made = build_documents(config)
    expected = texts(made, "train")
    shard = made.directory / "train-00000.jsonl"
    if damage == "truncated":
        os.truncate(shard, 100)
    else:
        (shard if damage == "missing" else made.directory / "manifest.json").unlink()
    with pytest.raises(UserError, match="delete|manifest"):
        DocumentShards.open(made.directory)
    assert texts(build_documents(config), "train") == expected


BUILD = """
import sys
from tfgpt.common.command_line import Command
from tfgpt.corpus.config import CorpusConfig

def build(corpus):
    from tfgpt.corpus.build import build_documents
    if limit:
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    print(build_documents(corpus).directory)

limit = int(sys.argv[1])
sys.exit(Command("build", "Builds documents.", [CorpusConfig], build).run(sys.argv[2:]))
"""


def start_build(config: CorpusConfig, limit: int = 0) -> subprocess.Popen:
    flags = [f"--train_text={config.train_text[0]}", f"--cache_dir={config.cache_dir}", f"--split={config.split}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", BUILD, str(limit), *flags], env=environment, **pipes)


def test_a_killed_build_leaves_nothing_that_counts(tmp_path, corpus):
    (tmp_path / "a.txt").write_text("".join(f"Line {number}.\n<|endoftext|>\n" for number in range(80_000)))
    config = corpus(tmp_path / "a.txt", split="hash")
    folder = tmp_path / "cache" / "documents"
    process = start_build(config)
    while not list(folder.glob(".*.tmp/train-00000.jsonl")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert all(path.name.startswith(".") for path in folder.iterdir())
    made = build_documents(config)
    assert made.num_documents("train") + made.num_documents("validation") == 80_000


def test_leftovers_of_killed_builds_go_after_a_day(tmp_path, corpus):
    folder = tmp_path / "cache" / "documents"
    for name, age in (("old", LEFTOVER_SECONDS + 60), ("young", 60)):
        leftover = folder / f".{name}.00000000.tmp"
        leftover.mkdir(parents=True)
        (leftover / "train-00000.jsonl").write_text("")
        for path in (leftover / "train-00000.jsonl", leftover):
            os.utime(path, (time.time() - age,) * 2)
    build_documents(corpus(numbered(tmp_path / "a.jsonl")))
    assert [path.name for path in folder.glob(".*.tmp")] == [".young.00000000.tmp"]


def test_builders_at_the_same_time_give_one_result(tmp_path, corpus):
    (tmp_path / "a.txt").write_text("".join(f"Line {number}.\n<|endoftext|>\n" for number in range(20_000)))
    config = corpus(tmp_path / "a.txt")
    processes = [start_build(config) for _ in range(2)]
    results = [(process.communicate()[0], process.returncode) for process in processes]
    assert len(set(results)) == 1
    assert results[0][1] == 0
    made = DocumentShards.open(results[0][0].strip())
    assert made.num_documents("train") + made.num_documents("validation") == 20_000
    assert [path for path in made.directory.parent.iterdir() if not path.name.startswith(".")] == [made.directory]


def test_a_full_disk_is_one_line(tmp_path, corpus):
    """A limit on the size of a file stands for the full disk: the system refuses the write in the same place."""
    (tmp_path / "a.txt").write_text("word " * 100_000)
    process = start_build(corpus(tmp_path / "a.txt"), limit=100_000)
    _, errors = process.communicate()
    assert process.returncode == 1
    assert "the disk is full" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    assert all(path.name.startswith(".") for path in (tmp_path / "cache" / "documents").iterdir())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"validation_fraction": 0.00001}, "--validation_fraction: 1e-05 is too little to measure anything"),
        ({"validation_fraction": 0.95}, "--validation_fraction: 0.95 is above the largest allowed, 0.9"),
        ({"split": "random"}, "--split: 'random' is not one of auto, hash, contiguous"),
        ({"train_text": ("",)}, "--train_text: is empty"),
    ],
)
def test_settings_that_cannot_work_are_refused(options, expected):
    assert refusal(CorpusConfig, **options).startswith(expected)
