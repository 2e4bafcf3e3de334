"""Reading foreign tokenizer.json files: what is accepted, and the line for what is not."""

import re

import pytest
import tokenizers

from tests.conftest import refusal
from tfgpt.common.errors import UserError
from tfgpt.tokenization.load import load_tokenizer
from tfgpt.tokenization.tokenizer_json import added_token


def rename(old: str, new: str):
    def change(document):
        for token in document["added_tokens"]:
            if token["content"] == old:
                token["content"] = new
        document["model"]["vocab"][new] = document["model"]["vocab"].pop(old)

    return change


def test_known_other_names_of_special_tokens_are_found(changed_file):
    def change(document):
        rename("<|endoftext|>", "</s>")(document)
        document["added_tokens"] += [added_token(600, "<pad>"), added_token(601, "<|start_header_id|>")]

    tokenizer = load_tokenizer(changed_file(change))
    assert tokenizer.end_of_text_id == 0
    assert tokenizer.padding_id == 600
    assert tokenizer.start_of_turn_id == 602
    assert list(tokenizer.special_tokens) == ["</s>", "<pad>", "<|start_header_id|>", "<|im_start|>", "<|im_end|>"]


def test_special_name_in_the_vocabulary_alone_becomes_a_special_token(changed_file):
    tokenizer = load_tokenizer(changed_file(lambda document: document["added_tokens"].clear()))
    assert tokenizer.end_of_text_id == 0
    assert 0 not in tokenizer.encode("<|endoftext|>")


def test_ordinary_added_tokens_are_still_found_in_text(changed_file):
    def change(document):
        document["added_tokens"].append({**added_token(600, "    "), "special": False})

    tokenizer = load_tokenizer(changed_file(change))
    assert tokenizer.encode("a    b").tolist().count(600) == 1
    assert tokenizer.decode([600]) == "    "
    assert tokenizer.byte_lengths()[600] == 4
    assert "    " not in tokenizer.special_tokens


def test_merges_may_be_written_as_strings(changed_file, gpt2_file):
    def change(document):
        document["model"]["merges"] = [" ".join(pair) for pair in document["model"]["merges"]]

    text = "the merges of this file"
    assert load_tokenizer(changed_file(change)).encode(text).tolist() == load_tokenizer(gpt2_file).encode(text).tolist()


def test_what_other_programs_add_by_default_is_left_out(changed_file):
    def change(document):
        document["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
        document["post_processor"] = {
            "type": "RobertaProcessing",
            "sep": ["<|endoftext|>", 0],
            "cls": ["<|endoftext|>", 0],
            "trim_offsets": True,
            "add_prefix_space": False,
        }

    tokenizer = load_tokenizer(changed_file(change))
    assert len(tokenizer.encode("a b c d e f g h")) == 8
    assert tokenizers.Tokenizer.from_str(tokenizer.to_json()).encode("a b").ids == tokenizer.encode("a b").tolist()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda document: document.update(normalizer={"type": "NFC"}), r"its normalizer \(NFC\) changes text"),
        (lambda document: document["model"].update(type="WordPiece"), "its model is WordPiece, not BPE"),
        (lambda document: document["model"].update(dropout=0.1), "its BPE model uses dropout"),
        (lambda document: document["model"].update(end_of_word_suffix="</w>"), "uses end_of_word_suffix"),
        (lambda document: document["model"]["vocab"].pop("!"), "not byte-level: 1 of the 256 bytes have no token"),
        (rename("the", "▁the"), "the token '▁the' is not written in the byte alphabet"),
        (lambda document: document.update(pre_tokenizer=None), "its pre-tokenizer has no ByteLevel step"),
        (lambda document: document["pre_tokenizer"].update(add_prefix_space=True), "adds a space before every text"),
        (
            lambda document: document.update(
                pre_tokenizer={"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}, document["pre_tokenizer"]]}
            ),
            "its pre-tokenizer step Whitespace loses text",
        ),
        (lambda document: document.update(decoder=None), "its decoder is not ByteLevel"),
        (lambda document: document["added_tokens"].append(added_token(700, "<gap>")), "its ids have gaps .* is 600"),
        (lambda document: document["model"]["merges"].append(["q", "zz"]), "is not a complete tokenizer.json"),
        (lambda document: document["model"]["vocab"].popitem(), "is not a complete tokenizer.json"),
        (lambda document: document.pop("model"), "is not a tokenizer.json"),
        (lambda document: document["model"].pop("merges"), "is not a complete tokenizer.json"),
    ],
)
def test_what_would_lose_text_is_refused_by_one_line_with_path_and_reason(changed_file, change, reason):
    path = changed_file(change)
    line = refusal(load_tokenizer, path)
    assert line.startswith(f"{path}: ") and re.search(reason, line)


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(UserError, match=rf"{tmp_path}/tokenizer.json: no such file"):
        load_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    for content in (b"", b"{", b"\xff\xfe", b"[]", b"{}", b'{"model": {}}', b'{"model": {"vocab": 3, "merges": []}}'):
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"^{path}: "):
            load_tokenizer(path)
