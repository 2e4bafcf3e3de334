"""The operations inside the graph cut texts where `tokenizers` cuts them."""

import json

import numpy as np
import pytest
import tensorflow as tf
import tokenizers

from tests.tokenization.texts import EVERY_CHARACTER
from tfgpt.tokenization.in_graph import pretokenizers
from tfgpt.tokenization.in_graph.pretokenizers import RULES, InGraphPretokenizer
from tfgpt.tokenization.in_graph.text_ops import flags_at
from tfgpt.tokenization.pretokenizer import FAMILIES


def starts_by_tokenizers(family: str, texts: list[str]) -> list[list[int]]:
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
def test_text_is_cut_where_tokenizers_cuts_it(family, mixtures, valid_texts):
    # Every code point is next to its neighbours and, in the random texts, to any.
    code_points = [EVERY_CHARACTER[start : start + 5000] for start in range(0, len(EVERY_CHARACTER), 5000)]
    for texts in (mixtures, valid_texts, code_points):
        for text, found, expected in zip(
            texts, starts_in_graph(family, texts), starts_by_tokenizers(family, texts), strict=True
        ):
            assert found == expected, text


@pytest.mark.parametrize("letters", ["", "r", "v", "l"])
def test_contractions_without_regard_to_case_are_those_of_tokenizers(letters):
    # No other character is an s without regard to case, be it written as one letter or several.
    characters = [character for character in EVERY_CHARACTER if character.isalpha() or not character.isascii()]
    texts = ["x".join(f"'{letters}{character}" for character in characters[start : start + 20_000])
             for start in range(0, 60_000, 20_000)]  # fmt: skip
    assert starts_in_graph("llama3", texts) == starts_by_tokenizers("llama3", texts)


def test_class_pages_are_the_classes_of_tokenizers():
    pages, page_of = pretokenizers.class_pages()
    classes = pages.reshape(-1, 256)[page_of].reshape(-1)
    expected = np.full(0x110000, pretokenizers.OTHER)
    code_points = np.array([ord(character) for character in EVERY_CHARACTER])
    for kind, expression in (
        (pretokenizers.LETTER, r"\p{L}+"),
        (pretokenizers.NUMBER, r"\p{N}+"),
        (pretokenizers.SPACE, r"\s+"),
    ):
        outside = np.zeros(len(code_points), bool)
        cutter = tokenizers.pre_tokenizers.Split(tokenizers.Regex(expression), "removed")
        for _, (start, end) in cutter.pre_tokenize_str(EVERY_CHARACTER):
            outside[start:end] = True
        expected[code_points[~outside]] = kind
    np.testing.assert_array_equal(classes, expected)
