"""Training, the byte tokenizer, and the vocabulary report."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tfgpt.common.errors import SettingError, UserError
from tfgpt.tokenization.config import TokenizerConfig
from tfgpt.tokenization.train_tokenizer import TrainingSample, byte_tokenizer, make_tokenizer, train_bpe


def test_merges_follow_the_counts():
    # The dictionary of Sennrich et al. 2016, section 3.2, with our space in front instead of their end-of-word mark.
    # By hand: "er" occurs 9 times, then each pair inside " low" 7 times, then those of " new" 6 times.
    words = " low" * 5 + " lowest" * 2 + " newer" * 6 + " wider" * 3
    contents = train_bpe([words], 264).token_bytes()
    assert contents[256] == b"er"
    assert contents[259] == b" low"


def test_same_text_gives_the_same_tokenizer_in_another_process(documents, tmp_path):
    path = tmp_path / "documents.json"
    path.write_text(json.dumps(documents[:400]))
    code = (
        "import json, sys; from tfgpt.tokenization.train_tokenizer import train_bpe;"
        "print(train_bpe(json.load(open(sys.argv[1])), 700).fingerprint)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONHASHSEED": "7"}
    other = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=True, env=environment
    ).stdout.strip()
    assert train_bpe(documents[:400], 700).fingerprint == other


def test_small_corpus_gives_a_smaller_vocabulary_and_says_so_in_one_line():
    notes: list[str] = []
    tokenizer = train_bpe(["ab ab"], 4096, log=notes.append)
    assert tokenizer.vocabulary_size == 261
    assert notes == ["tokenizer: 5 bytes of text give a vocabulary of 261, not 4,096: no further pair occurs twice"]


def test_no_text_is_refused():
    for texts in ([], [""], ["\ud800"]):
        with pytest.raises(UserError, match="no text to train the tokenizer on"):
            train_bpe(texts, 512)


def test_too_small_a_vocabulary_names_the_flag():
    with pytest.raises(SettingError, match="--vocabulary_size: 259 is below 260"):
        train_bpe(["text"], 259)


def test_smallest_vocabulary_is_the_byte_tokenizer():
    assert train_bpe(["some text"], 260).fingerprint == byte_tokenizer().fingerprint


def test_training_reads_an_iterator_and_stops_at_the_sample():
    read = []

    def texts():
        for number in range(1000):
            read.append(number)
            yield f"text number {number:4d}\n"

    sample = TrainingSample(texts(), sample_bytes=170, total_bytes=None)
    assert "".join(sample) == "".join(f"text number {number:4d}\n" for number in range(10))
    assert sample.bytes_used == 170
    assert len(read) == 10


@pytest.mark.parametrize("whole", [True, False], ids=["one text", "many texts"])
def test_sample_of_a_known_total_is_spread_over_it(whole):
    lines = [f"line number {number:6d} of the text\n" for number in range(10_000)]
    total = sum(map(len, lines))
    texts = ["".join(lines)] if whole else lines
    sample = "".join(TrainingSample(texts, sample_bytes=total // 10, total_bytes=total))
    assert total // 10 * 0.8 <= len(sample) <= total // 10
    numbers = [
        int(line.split()[2]) for line in sample.split("\n") if line.startswith("line number ") and len(line) > 20
    ]
    for tenth in range(9):
        assert any(tenth * 1000 <= number < (tenth + 1) * 1000 for number in numbers)
    assert sample == "".join(TrainingSample(texts, sample_bytes=total // 10, total_bytes=total))


def test_settings_choose_the_tokenizer(tmp_path, trained):
    trained.save(tmp_path)
    assert make_tokenizer(TokenizerConfig(tokenizer="bytes"), []).fingerprint == byte_tokenizer().fingerprint
    assert make_tokenizer(TokenizerConfig(tokenizer=str(tmp_path)), []).fingerprint == trained.fingerprint
    made = make_tokenizer(TokenizerConfig(vocabulary_size=264), ["the cat and the dog and the cow"] * 10)
    assert made.vocabulary_size == 264


def test_byte_tokenizer_is_the_bytes():
    assert byte_tokenizer().vocabulary_size == 260
    assert byte_tokenizer().encode("hé人").tolist() == list("hé人".encode())
    assert byte_tokenizer().encode(bytes(range(256))).tolist() == list(range(256))
