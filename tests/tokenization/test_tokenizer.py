"""`Tokenizer`: lossless, equal to `tokenizers`, and a directory that transformers opens."""

import gc
import json
import re
import threading
import time

import numpy as np
import pytest
import tokenizers
import transformers

from tests.tokenization.texts import CHINESE, TRICKY, reference_encoder
from tfgpt.tokenization.encoders import PART_CHARACTERS, ReferenceEncoder, TiktokenEncoder, split_text
from tfgpt.tokenization.load import load_tokenizer
from tfgpt.tokenization.train_tokenizer import byte_tokenizer


def test_ids_equal_those_of_tokenizers(tokenizer, valid_texts):
    reference = reference_encoder(tokenizer)
    for text in valid_texts:
        assert tokenizer.encode(text).tolist() == reference(text), text


def test_text_is_cut_where_tokenizers_cuts_it(uncut, valid_texts):
    assert {b"\na", b"a0", b"! ", b"a!", b"0a"} <= set(uncut.token_bytes())
    assert isinstance(uncut.encoder, TiktokenEncoder)
    reference = reference_encoder(uncut)
    for text in valid_texts:
        assert uncut.encode(text).tolist() == reference(text), text


def test_ids_of_every_code_point_equal_those_of_tokenizers(trained, every_character_ids):
    texts, expected = every_character_ids
    assert [ids.tolist() for ids in trained.encode_batch(texts)] == expected


def test_every_byte_string_comes_back(tokenizer, valid_texts, broken_texts):
    for content in [*broken_texts, *(text.encode() for text in valid_texts[:500])]:
        ids = tokenizer.encode(content)
        assert (ids.dtype, ids.ndim) == (np.int32, 1)
        assert tokenizer.decode_bytes(ids) == content


def test_text_between_broken_bytes_is_encoded_as_if_alone(uncut, broken_texts):
    reference = reference_encoder(uncut)
    for content in broken_texts[:1000]:
        expected = []
        for invalid, text in re.findall(
            "([\udc80-\udcff])|([^\udc80-\udcff]+)", content.decode(errors="surrogateescape")
        ):
            expected += reference(text) if text else [ord(invalid) - 0xDC00]
        assert uncut.encode(content).tolist() == expected


def test_lone_surrogates_are_their_three_bytes(trained):
    assert trained.encode("a\ud800b").tolist() == [ord("a"), 0xED, 0xA0, 0x80, ord("b")]
    assert trained.encode_batch(["x", "\udfff"])[1].tolist() == [0xED, 0xBF, 0xBF]


def test_broken_text_decodes_to_replacement_characters(tokenizer):
    assert tokenizer.decode(tokenizer.encode(b"a\xffb")) == "a\ufffdb"


def test_special_tokens_are_never_parsed_out_of_text(tokenizer):
    for name in tokenizer.special_tokens:
        ids = tokenizer.encode(f"before {name} after {name}")
        assert not set(ids.tolist()) & set(tokenizer.special_tokens.values())
        assert tokenizer.decode(ids) == f"before {name} after {name}"


def test_special_tokens_are_the_last_ids_and_padding_is_not_the_end_of_text(tokenizer):
    size = tokenizer.vocabulary_size
    ids = [tokenizer.end_of_text_id, tokenizer.padding_id, tokenizer.start_of_turn_id, tokenizer.end_of_turn_id]
    assert ids == [size - 4, size - 3, size - 2, size - 1]
    assert tokenizer.decode(ids) == ""
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<|endoftext|><|padding|><|im_start|><|im_end|>"


def test_ids_below_256_are_the_bytes(tokenizer):
    assert tokenizer.token_bytes()[:256] == [bytes([byte]) for byte in range(256)]


def test_byte_lengths_add_up_to_the_text(tokenizer, documents):
    text = "\n\n".join(documents[:300]) + CHINESE
    assert tokenizer.byte_lengths()[tokenizer.encode(text)].sum() == len(text.encode())
    assert tokenizer.byte_lengths().dtype == np.int32
    assert (tokenizer.byte_lengths() == [len(content) for content in tokenizer.token_bytes()]).all()
    assert tokenizer.byte_lengths()[-4:].tolist() == [0, 0, 0, 0]


def test_ids_outside_the_vocabulary_cannot_be_decoded(tokenizer):
    for wrong in (-1, tokenizer.vocabulary_size):
        with pytest.raises(IndexError, match="outside the vocabulary"):
            tokenizer.decode([wrong])


@pytest.mark.parametrize("cpus", [1, 2])
def test_batch_equals_texts_one_by_one(tokenizer, valid_texts, broken_texts, cpus, monkeypatch):
    monkeypatch.setattr("tfgpt.tokenization.tokenizer.available_cpus", lambda: cpus)
    texts = [*broken_texts[:200], *valid_texts[:200], *(text.encode() for text in valid_texts[:200])]
    for mixture in (texts, valid_texts, [], [""], ["", ""], ["one"]):
        batch = tokenizer.encode_batch(mixture)
        assert len(batch) == len(mixture)
        for text, ids in zip(mixture, batch, strict=True):
            assert ids.dtype == np.int32
            assert ids.tolist() == tokenizer.encode(text).tolist()


def test_threads_end_with_the_tokenizer(monkeypatch):
    def threads() -> int:
        return sum(thread.name.startswith("tokenizer") for thread in threading.enumerate())

    monkeypatch.setattr("tfgpt.tokenization.tokenizer.available_cpus", lambda: 2)
    before, tokenizer = threads(), byte_tokenizer()
    tokenizer.encode_batch(["to be or not to be " * PART_CHARACTERS] * 4)
    assert before < threads() <= before + 2
    del tokenizer
    gc.collect()
    deadline = time.monotonic() + 10
    while threads() > before:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_batch_is_not_fooled_by_the_separator_it_uses(trained):
    texts = ["a", f"b{TiktokenEncoder.separator}c", TiktokenEncoder.separator, " ", "d"]
    for text, ids in zip(texts, trained.encode_batch(texts), strict=True):
        assert trained.decode(ids) == text
        assert ids.tolist() == trained.encode(text).tolist()


@pytest.mark.parametrize("kind", ["real", "tricky", "chinese", "one word", "spaces", "bytes"])
def test_long_text_encoded_in_parts_equals_the_whole(trained, documents, kind):
    texts = {"tricky": "".join(TRICKY), "chinese": CHINESE, "one word": "word", "spaces": " \n"}
    text = texts.get(kind, "\n\n".join(documents))
    text = text * (5 * PART_CHARACTERS // len(text) + 1)
    content = text.encode() if kind == "bytes" else text
    parts = list(split_text(content))
    assert "".join(parts) == text
    if kind in ("real", "tricky", "chinese", "bytes"):
        assert len(parts) >= 4
    assert trained.encode_batch([content])[0].tolist() == trained.encode(content).tolist()


def test_saved_and_loaded_it_is_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = load_tokenizer(path)
        assert loaded.fingerprint == tokenizer.fingerprint
        assert loaded.to_json() == tokenizer.to_json()
        assert loaded.special_tokens == tokenizer.special_tokens
        assert loaded.encode(TRICKY[-1]).tolist() == tokenizer.encode(TRICKY[-1]).tolist()


def test_fingerprint_tells_tokenizers_apart(trained):
    assert trained.fingerprint != byte_tokenizer().fingerprint
    assert byte_tokenizer().fingerprint == byte_tokenizer().fingerprint


@pytest.mark.parametrize("model_type", [None, "gpt2", "llama", "mistral", "qwen3"])
def test_transformers_opens_the_directory_and_gives_the_same_ids(tokenizer, tmp_path, model_type):
    tokenizer.save(tmp_path, model_max_length=77)
    if model_type:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TRICKY:
        if "<|" not in text:
            assert theirs(text)["input_ids"] == tokenizer.encode(text).tolist()
            assert theirs.decode(tokenizer.encode(text)) == text
    assert theirs.eos_token_id == theirs.bos_token_id == tokenizer.end_of_text_id
    assert theirs.pad_token_id == tokenizer.padding_id
    assert len(theirs) == tokenizer.vocabulary_size
    assert theirs.model_max_length == 77


def test_foreign_file_gives_the_ids_of_tokenizers(gpt2_file, valid_texts, broken_texts):
    foreign = load_tokenizer(gpt2_file)
    assert isinstance(foreign.encoder, ReferenceEncoder)
    reference = tokenizers.Tokenizer.from_file(str(gpt2_file))
    reference.encode_special_tokens = True
    texts = valid_texts[:600]
    for text, ids in zip(texts, foreign.encode_batch(texts), strict=True):
        assert ids.tolist() == reference.encode(text).ids
    for content in broken_texts[:300]:
        assert foreign.decode_bytes(foreign.encode(content)) == content
    mixture = [*broken_texts[:20], *(text.encode() for text in texts[:20])]
    assert [foreign.decode_bytes(ids) for ids in foreign.encode_batch(mixture)] == mixture


def test_foreign_file_keeps_its_ids_and_gets_the_special_tokens_it_lacks(gpt2_file, tmp_path):
    foreign = load_tokenizer(gpt2_file)
    assert foreign.special_tokens == {"<|endoftext|>": 0, "<|padding|>": 600, "<|im_start|>": 601, "<|im_end|>": 602}
    assert (foreign.end_of_text_id, foreign.padding_id, foreign.vocabulary_size) == (0, 600, 603)
    foreign.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.convert_tokens_to_ids(["<|endoftext|>", "<|padding|>", "<|im_end|>"]) == [0, 600, 602]
    assert theirs("Hello, world! It's 2024.")["input_ids"] == foreign.encode("Hello, world! It's 2024.").tolist()
