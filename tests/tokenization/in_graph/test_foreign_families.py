"""Pretrained families' tokenizers: the operations inside the graph cut and merge as `tokenizers` does."""

import itertools
import json
import random

import numpy as np
import pytest
import tensorflow as tf
import tokenizers

from tfgpt.common.errors import UserError
from tfgpt.tokenization.in_graph.byte_level import InGraphTokenizer
from tfgpt.tokenization.in_graph.nfc import NFC
from tfgpt.tokenization.in_graph.pretokenizers import RULES, InGraphPretokenizer
from tfgpt.tokenization.in_graph.text_ops import flags_at, utf8_bytes
from tfgpt.tokenization.pretokenizer import FAMILIES
from tfgpt.tokenization.tokenizer import Tokenizer
from tfgpt.tokenization.tokenizer_json import added_token

PIECES = "' 's 'S 'ſ 'll 'LL 'lL 'l 're 'RE 'r 've 'd 'm 't s l r e d ! !! - _ . a abc é 人 1 12 1234 ½ \u0301".split()
PIECES += [" ", " ", "  ", "   ", "\n", "\r", "\r\n", "\t", "\u00a0", "\u2028", "\x1c", "\x85"]


@pytest.fixture(scope="module")
def mixtures() -> list[str]:
    """Texts of what the expressions tell apart, in any order."""
    generator = random.Random(5)
    return ["".join(generator.choice(PIECES) for _ in range(generator.randrange(1, 14))) for _ in range(3000)]


def starts_by_tokenizers(family: str, texts: list[str]) -> list[list[int]]:
    """Places of the characters that start a pre-token."""
    document = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}
    whole = tokenizers.Tokenizer.from_str(json.dumps({**document, "pre_tokenizer": FAMILIES[family]}))
    return [[start for _, (start, _) in whole.pre_tokenizer.pre_tokenize_str(text)] for text in texts]


def starts_in_graph(family: str, texts: list[str]) -> list[list[int]]:
    contents = [np.frombuffer(text.encode(), np.uint8) for text in texts]
    begins = np.cumsum([0, *map(len, contents)])[:-1]
    every = tf.constant(np.concatenate(contents).astype(np.int32))
    first = flags_at(
        tf.constant([begin for begin, text in zip(begins, texts, strict=True) if text], tf.int32), tf.size(every)
    )
    found = InGraphPretokenizer(RULES[family])(every, first).numpy()
    places = []
    for content, begin in zip(contents, begins, strict=True):
        character_of_byte = np.cumsum((content & 0xC0) != 0x80) - 1
        places.append(character_of_byte[found[begin : begin + len(content)]].tolist())
    return places


@pytest.mark.parametrize("family", FAMILIES)
def test_text_is_cut_where_tokenizers_cuts_it(family, mixtures, valid_texts, every_character):
    # Every code point is next to its neighbours and, in the random texts, to any.
    code_points = [every_character[start : start + 5000] for start in range(0, len(every_character), 5000)]
    for texts in (mixtures, valid_texts, code_points):
        for text, found, expected in zip(
            texts, starts_in_graph(family, texts), starts_by_tokenizers(family, texts), strict=True
        ):
            assert found == expected, text


@pytest.mark.parametrize("letters", ["", "r", "v", "l"])
def test_contractions_without_regard_to_case_are_those_of_tokenizers(letters, every_character):
    # No other character is an s without regard to case, be it written as one letter or several.
    characters = [character for character in every_character if character.isalpha() or not character.isascii()]
    texts = ["x".join(f"'{letters}{character}" for character in characters[start : start + 20_000])
             for start in range(0, 60_000, 20_000)]  # fmt: skip
    assert starts_in_graph("llama3", texts) == starts_by_tokenizers("llama3", texts)


def of_family(uncut: Tokenizer, family: str, **model) -> Tokenizer:
    """The tokenizer whose merges reach across cuts, cutting (and, Qwen2, normalizing) as a family does."""
    document = {**uncut.document, "pre_tokenizer": FAMILIES[family]}
    document["normalizer"] = {"type": "NFC"} if family == "qwen2" else None
    return Tokenizer({**document, "model": {**uncut.document["model"], **model}})


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_equal_those_of_tokenizers(family, uncut, mixtures, broken_texts, reference_encoder):
    tokenizer = of_family(uncut, family)
    graph, reference = InGraphTokenizer(tokenizer), reference_encoder(tokenizer)
    for text, ids in zip(mixtures, graph.encode(mixtures).to_list(), strict=True):
        assert ids == reference(text) == tokenizer.encode(text).tolist(), text
    for content, ids in zip(broken_texts, graph.encode(broken_texts).to_list(), strict=True):
        assert ids == tokenizer.encode(content).tolist(), content


def test_bytes_without_a_token_are_dropped_as_tokenizers_drops_them(uncut, mixtures, reference_encoder):
    missing = ["Ā", "÷", "ÿ", "Ã"]  # the bytes 00, F7, FF and C3; C3 begins é and its relatives
    alphabet = set(missing)
    model = uncut.document["model"]
    merges = [pair for pair in model["merges"] if not alphabet & {*pair[0], *pair[1]}]
    vocabulary = {token: identifier for token, identifier in model["vocab"].items() if not alphabet & {*token}}
    tokenizer = of_family(uncut, "smollm", vocab=vocabulary, merges=merges)
    assert tokenizer.missing_bytes == [0x00, 0xC3, 0xF7, 0xFF]
    texts = [*mixtures[:2000], "é", "\x00", "a\x00b\x00", "été l'été", ""]
    # `tokenizers` gives added tokens ids behind the vocabulary's size, which is smaller now; there are none in texts.
    graph, reference = InGraphTokenizer(tokenizer), reference_encoder(tokenizer)
    for text, ids in zip(texts, graph.encode(texts).to_list(), strict=True):
        assert ids == reference(text) == tokenizer.encode(text).tolist(), text
    assert tokenizer.encode(b"a\xff\xf7b").tolist() == tokenizer.encode("a").tolist() + tokenizer.encode("b").tolist()


def test_a_pre_token_that_is_a_token_needs_no_merges(uncut, reference_encoder):
    model = uncut.document["model"]
    first = max(model["vocab"].values()) + 5
    # As in Llama 3's vocabulary, tokens that no merge makes; one is the beginning of another.
    added = {"Ġstrawberry": first, "straw": first + 1, "strawberry": first + 2, "ä¸ĸçķĮ": first + 3}
    added |= {f"<{number}>": first - 4 + number for number in range(4)}
    tokenizer = of_family(uncut, "llama3", vocab={**model["vocab"], **added}, ignore_merges=True)
    texts = ["strawberry straw", "a strawberry, strawberrys 世界!", "世界 straw" * 3, "", "straw"]
    graph, reference = InGraphTokenizer(tokenizer), reference_encoder(tokenizer)
    found = graph.encode(texts).to_list()
    assert found == [reference(text) for text in texts] == [tokenizer.encode(text).tolist() for text in texts]
    assert found[-1] == [first + 1] and first in found[1] and first + 2 in found[0]
    merging = of_family(uncut, "llama3", vocab={**model["vocab"], **added})
    assert len(merging.encode("straw")) > 1


def normalized_in_graph(texts: list[str]) -> list[str]:
    normalize = NFC()
    points = [ord(character) for text in texts for character in text]
    pieces = [number for number, text in enumerate(texts) for _ in text]
    contents, owners = utf8_bytes(*normalize(tf.constant(points), tf.constant(pieces)))
    owners = owners.numpy()
    whole = contents.numpy().astype(np.uint8).tobytes()
    borders = np.searchsorted(owners, range(len(texts) + 1))
    return [whole[start:end].decode() for start, end in itertools.pairwise(borders)]


def test_normal_form_c_is_that_of_tokenizers(every_character):
    generator = random.Random(7)
    normalize = tokenizers.normalizers.NFC().normalize_str
    marks = [chr(point) for point in range(0x300, 0x370)] + [*"\u0f71\u0f72\u0f74\u093c\u09be\u09d7\u0dca\u0dcf"]
    bases = [*"aAeEoOuUsSyYqd", *"\u1100\u1161\u11a8\uac00\u09c7\u0dd9\u1e63\u01d5\u212b\u1fc1 1人"]
    stacks = [
        "".join(generator.choice(bases) + "".join(generator.choices(marks, k=generator.randrange(5))) for _ in range(6))
        for _ in range(3000)
    ]
    leading = ["".join(generator.choices(marks + bases, k=8)) for _ in range(1000)]
    hangul = ["".join(chr(generator.randrange(0x1100, 0x1200)) for _ in range(20)) for _ in range(300)]
    every = [every_character[start : start + 5000] for start in range(0, len(every_character), 5000)]
    for texts in (stacks, leading, hangul, every):
        for text, found in zip(texts, normalized_in_graph(texts), strict=True):
            assert found == normalize(text), text[:100]


def test_added_tokens_are_found_in_the_text_as_tokenizers_finds_them(uncut, mixtures, reference_encoder):
    first, generator = uncut.vocabulary_size, random.Random(9)
    names = ["<tool_call>", "</tool_call>", "<think>", "<think>>", "人间", "<|fim|>"]
    added = [{**added_token(first + number, name), "special": False} for number, name in enumerate(names)]
    base = of_family(uncut, "qwen2").document
    tokenizer = Tokenizer({**base, "added_tokens": [*base["added_tokens"], *added]})
    parts = [
        *names,
        *names,
        "<think",
        "<",
        "tool_call>",
        " ",
        "e\u0301",
        "\u0301",
        "a",
        "\n",
        "人",
        "<|im_end|>",
        "\uf8fe",
        "\uf8fe2",
    ]
    texts = ["", *mixtures[:500], *("".join(generator.choices(parts, k=generator.randrange(9))) for _ in range(2000))]
    graph, reference = InGraphTokenizer(tokenizer), reference_encoder(tokenizer)
    for text, ids in zip(texts, graph.encode(texts).to_list(), strict=True):
        assert ids == reference(text) == tokenizer.encode(text).tolist(), text
    assert graph.encode(tf.constant([], tf.string)).to_list() == []
    assert graph.encode([b"<think>\xff<think>>"]).to_list()[0][0] == first + 2


def test_added_tokens_that_may_overlap_are_refused_in_graph(uncut):
    base = of_family(uncut, "llama3").document
    added = {**added_token(uncut.vocabulary_size, "    "), "special": False}
    tokenizer = Tokenizer({**base, "added_tokens": [*base["added_tokens"], added]})
    with pytest.raises(UserError, match="it looks for added tokens in the text that may overlap"):
        InGraphTokenizer(tokenizer)
