"""Preparing is done once, survives being killed, and makes again what is damaged."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.pipeline.test_manifest import flip_a_byte
from tfgpt.common.errors import UserError
from tfgpt.corpus.config import CorpusConfig
from tfgpt.pipeline.batches import TokenReader
from tfgpt.pipeline.prepare import PreparedData, export_results, prepare
from tfgpt.pipeline.token_shards import TokenShards
from tfgpt.tokenization.config import TokenizerConfig
from tfgpt.tokenization.load import load_tokenizer
from tfgpt.tokenization.train_tokenizer import byte_tokenizer

BPE = TokenizerConfig(vocabulary_size=300)


def quiet(corpus: CorpusConfig, config: TokenizerConfig = BPE, **options) -> PreparedData:
    return prepare(corpus, config, log=lambda line: None, **options)


def logged(corpus: CorpusConfig, config: TokenizerConfig = BPE) -> tuple[PreparedData, list[str]]:
    lines: list[str] = []
    return prepare(corpus, config, log=lines.append), lines


@pytest.fixture
def corpus_of(tmp_path):
    return lambda *paths, **options: CorpusConfig(
        train_text=tuple(map(str, paths)), cache_dir=str(tmp_path / "cache"), **options
    )


@pytest.fixture
def corpus(corpus_of, text_file) -> CorpusConfig:
    return corpus_of(text_file, validation_fraction=0.1)


def files_of(data: PreparedData) -> dict[Path, bytes]:
    return {path: path.read_bytes() for side in (data.train, data.validation) for path in side.files}


def test_the_tokens_of_both_sides_are_the_text(corpus, text_file):
    data = quiet(corpus)
    text = "".join(data.tokenizer.decode(side.tokens[:]) for side in (data.train, data.validation))
    assert text == text_file.read_text(encoding="utf-8")
    assert data.train.num_bytes + data.validation.num_bytes == text_file.stat().st_size
    assert data.validation.num_bytes / text_file.stat().st_size == pytest.approx(0.1, abs=0.01)
    assert data.tokenizer.vocabulary_size == data.train.vocabulary_size == 300


def test_a_second_run_reuses_everything_and_takes_no_time(corpus):
    first, lines = logged(corpus)
    assert len(lines) == 4 and all("made in" in line for line in lines)
    started = time.process_time()
    second, lines = logged(corpus)
    assert time.process_time() - started < 0.5
    assert len(lines) == 4 and all("reused" in line for line in lines)
    assert second.fingerprint == first.fingerprint and second.train.directory == first.train.directory


def test_only_what_depends_on_a_change_is_made_again(corpus):
    quiet(corpus)
    _, lines = logged(corpus, TokenizerConfig(vocabulary_size=310))
    made = {line.split(":")[0]: "made in" in line for line in lines}
    assert made == {"documents": False, "tokenizer": True, "train tokens": True, "validation tokens": True}


def test_the_same_text_elsewhere_gives_the_same_fingerprint(tmp_path, corpus, text_file):
    moved = tmp_path / "moved" / "other name.txt"
    moved.parent.mkdir()
    moved.write_bytes(text_file.read_bytes())
    first = quiet(corpus)
    options = {**corpus.to_dict(), "train_text": [str(moved)], "cache_dir": str(tmp_path / "other cache")}
    second = quiet(CorpusConfig.from_dict(options), BPE)
    assert second.fingerprint == first.fingerprint
    moved.write_text(moved.read_text(encoding="utf-8").replace("fox", "cat"), encoding="utf-8")
    assert quiet(CorpusConfig.from_dict(options), BPE).fingerprint != first.fingerprint


def test_the_tokenizer_sees_the_training_side_only(tmp_path, corpus_of, text_file):
    fingerprints = set()
    for name, text in (("a", "zyzzyva " * 1000), ("b", "qwertz " * 1000)):
        held_out = tmp_path / f"{name}.txt"
        held_out.write_text(text)
        fingerprints.add(quiet(corpus_of(text_file, validation_text=(str(held_out),))).tokenizer.fingerprint)
    assert len(fingerprints) == 1


def test_the_bytes_and_a_given_tokenizer_are_used_as_they_are(tmp_path, corpus, text_file):
    in_bytes = quiet(corpus, TokenizerConfig(tokenizer="bytes"))
    length = text_file.stat().st_size
    # A document a side: an end-of-text before and one behind it.
    assert in_bytes.train.num_tokens + in_bytes.validation.num_tokens == length + 4
    trained = quiet(corpus)
    trained.tokenizer.save(tmp_path / "mine")
    for path in (tmp_path / "mine", tmp_path / "mine" / "tokenizer.json"):
        given, lines = logged(corpus, TokenizerConfig(tokenizer=str(path)))
        assert given.fingerprint == trained.fingerprint
        assert "reused" in lines[2] and lines[2].startswith("train tokens: ")


def test_the_tokens_of_each_source_are_those_of_its_documents(tmp_path, corpus_of):
    for name in "ab":
        text = "\n<|endoftext|>\n".join(f"text {name} {number}" for number in range(50))
        (tmp_path / f"{name}.txt").write_text(text)
    specs = (str(tmp_path / "a.txt"), str(tmp_path / "b.txt"))
    data = quiet(corpus_of(*specs, validation_fraction=0.2), TokenizerConfig(tokenizer="bytes"), by_source=True)
    assert list(data.train_by_source) == list(data.validation_by_source) == list(specs)
    for name, shards in zip("ab", data.train_by_source.values(), strict=True):
        text = data.tokenizer.decode(shards.tokens[:])
        assert f"text {name}" in text and f"text {'b' if name == 'a' else 'a'}" not in text
    assert sum(shards.num_documents for shards in data.train_by_source.values()) == data.train.num_documents
    too_short = r"fewer than one row of --sequence_length=9999 .*b\.txt, 50 documents read"
    with pytest.raises(UserError, match=too_short):
        TokenReader(data.train_by_source[specs[1]], 9999, seed=0)


def test_dialogues_in_another_chat_template_are_other_tokens(tmp_path, corpus_of):
    path = tmp_path / "chat.jsonl"
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there"}]
    path.write_text(json.dumps({"messages": messages}) + "\n")
    corpus = corpus_of(path, validation_fraction=0.0)
    texts = []
    for template in ("{{ messages[0].content }}", "{{ messages[1].content }}"):
        tokenizer = byte_tokenizer()
        tokenizer.config["chat_template"] = template
        tokenizer.save(tmp_path / template[12])
        data = quiet(corpus, TokenizerConfig(tokenizer=str(tmp_path / template[12])))
        texts.append(data.tokenizer.decode(data.train.tokens[1:-1]))
    assert texts == ["Hi", "Hello there"]


def test_dialogues_that_the_template_refuses_are_said_and_nothing_to_learn_from_is_refused(tmp_path, corpus_of):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    dialogue = {"messages": messages, "tools": [{"type": "function", "function": {"name": "f"}}]}
    (tmp_path / "chat.jsonl").write_text(json.dumps(dialogue) + "\n")
    (tmp_path / "text.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    both = corpus_of(tmp_path / "chat.jsonl", tmp_path / "text.jsonl", validation_fraction=0.0)
    _, lines = logged(both, TokenizerConfig(tokenizer="bytes"))
    assert any(line.startswith("train tokens: 1 conversation left out: the chat template") for line in lines)
    with pytest.raises(UserError, match=r"--train_text: nothing is left to learn from \(1 conversation left out"):
        quiet(corpus_of(tmp_path / "chat.jsonl", validation_fraction=0.0), TokenizerConfig(tokenizer="bytes"))


def test_what_was_left_out_is_said_with_the_documents(tmp_path, corpus_of):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {number % 50}"}) + "\n" for number in range(60)))
    _, lines = logged(corpus_of(path), TokenizerConfig(tokenizer="bytes"))
    assert ", 10 left out (10 duplicate); made in" in lines[0]


def test_nothing_held_out_is_a_side_without_targets(corpus_of, text_file):
    data = quiet(corpus_of(text_file, validation_fraction=0.0))
    assert data.train.num_bytes == text_file.stat().st_size
    assert data.validation.num_tokens == 1
    with pytest.raises(UserError, match="--validation_fraction: no token is held out: 1 document read"):
        TokenReader(data.validation, 8)


@pytest.mark.parametrize("name", ["tokens-00000.bin", "manifest.json"])
@pytest.mark.parametrize("damage", [flip_a_byte, Path.unlink])
def test_damaged_shards_in_the_cache_are_named_and_made_again(corpus, name, damage):
    data = quiet(corpus)
    before = files_of(data)
    damage(data.train.directory / name)
    again, lines = logged(corpus)
    [line] = [line for line in lines if line.endswith("; making it again")]
    assert line.startswith(f"train tokens: {data.train.directory}")
    assert files_of(again) == before and again.fingerprint == data.fingerprint


@pytest.mark.parametrize("damage", ["", '{"version": "1.0"}', "other"])
def test_a_damaged_tokenizer_in_the_cache_is_named_and_trained_again(corpus, damage):
    data = quiet(corpus)
    (path,) = Path(corpus.cache_dir).glob("tokenizers/*/tokenizer.json")
    # "other" is a good tokenizer file, but not the one that was trained here.
    path.write_text(byte_tokenizer().to_json() if damage == "other" else damage)
    again, lines = logged(corpus)
    assert again.fingerprint == data.fingerprint
    assert any(str(path.parent) in line and "making it again" in line for line in lines)
    assert load_tokenizer(path).fingerprint == data.tokenizer.fingerprint


PREPARE = """
import sys
from tfgpt.corpus.config import CorpusConfig
from tfgpt.pipeline.prepare import prepare
from tfgpt.tokenization.config import TokenizerConfig
print("ready", flush=True)
sys.stdin.readline()
data = prepare(CorpusConfig(train_text=(sys.argv[1],), cache_dir=sys.argv[2]), TokenizerConfig(vocabulary_size=2000))
print(data.fingerprint)
"""


def started_prepare(text: Path, cache: Path) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", PREPARE, str(text), str(cache)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.fixture(scope="module")
def larger_text(tmp_path_factory) -> Path:
    words = np.random.default_rng(0).integers(0, 3000, 200_000)
    path = tmp_path_factory.mktemp("text") / "larger.txt"
    path.write_text("\n".join(" ".join(f"w{word}" for word in words[i : i + 20]) for i in range(0, len(words), 20)))
    return path


def test_killed_at_any_moment_nothing_half_made_is_taken_for_whole(tmp_path, larger_text):
    process = started_prepare(larger_text, tmp_path / "undisturbed")
    started = time.monotonic()
    output = process.communicate("go\n")[0]
    whole_run = time.monotonic() - started
    cache = tmp_path / "cache"
    for share in (0.3, 0.7):
        process = started_prepare(larger_text, cache)
        process.stdin.write("go\n")
        process.stdin.flush()
        time.sleep(share * whole_run)
        process.send_signal(signal.SIGKILL)
        process.wait()
        for directory in cache.glob("tokens/[!.]*"):
            TokenShards.open(directory)
        for directory in cache.glob("tokenizers/[!.]*"):
            load_tokenizer(directory)
    assert started_prepare(larger_text, cache).communicate("go\n")[0].splitlines()[-1] == output.splitlines()[-1]


def test_two_processes_at_once_prepare_the_same(tmp_path, larger_text):
    processes = [started_prepare(larger_text, tmp_path / "cache") for _ in range(2)]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate()[0].splitlines() for process in processes]
    assert outputs[0][-1] == outputs[1][-1]
    # Tokenizer and tokens were made by one of them and found by the other.
    for stage in list(zip(*outputs, strict=False))[1:4]:
        assert sum("made in" in line for line in stage) == 1
    assert len(list((tmp_path / "cache" / "tokens").glob("[!.]*"))) == 2
    assert not list((tmp_path / "cache").rglob("*.tmp"))


def test_results_go_where_the_user_wants_them(tmp_path, corpus):
    data = quiet(corpus)
    output = export_results(data, tmp_path / "out")
    assert sorted(os.listdir(output)) == ["card.md", "prepared.json", "tfgpt.json", "tokenizer", "train", "validation"]
    copied = TokenShards.open(output / "train", load_tokenizer(output / "tokenizer").fingerprint)
    np.testing.assert_array_equal(copied.tokens[:], data.train.tokens[:])
    # Again, after a file was damaged, and after the results changed: the directory is ours to replace.
    path = output / "train" / "tokens-00000.bin"
    content = path.read_bytes()
    path.unlink()  # The cache has the same file.
    path.write_bytes(content[:-2] + b"xx")
    assert export_results(data, output) == output and path.read_bytes() == content
    other = quiet(corpus, TokenizerConfig(tokenizer="bytes"))
    export_results(other, output)
    assert TokenShards.open(output / "train").tokenizer_fingerprint == other.tokenizer.fingerprint
