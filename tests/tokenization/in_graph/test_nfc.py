"""Unicode normalization form C in the graph is that of `tokenizers`."""

import itertools
import random

import numpy as np
import tensorflow as tf
import tokenizers

from tests.tokenization.texts import EVERY_CHARACTER
from tfgpt.tokenization.in_graph.nfc import NFC
from tfgpt.tokenization.in_graph.text_ops import utf8_bytes


def normalized_in_graph(texts: list[str]) -> list[str]:
    normalize = NFC()
    points = [ord(character) for text in texts for character in text]
    pieces = [number for number, text in enumerate(texts) for _ in text]
    contents, owners = utf8_bytes(*normalize(tf.constant(points), tf.constant(pieces)))
    owners = owners.numpy()
    whole = contents.numpy().astype(np.uint8).tobytes()
    borders = np.searchsorted(owners, range(len(texts) + 1))
    return [whole[start:end].decode() for start, end in itertools.pairwise(borders)]


def test_normal_form_c_is_that_of_tokenizers():
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
    every = [EVERY_CHARACTER[start : start + 5000] for start in range(0, len(EVERY_CHARACTER), 5000)]
    for texts in (stacks, leading, hangul, every):
        for text, found in zip(texts, normalized_in_graph(texts), strict=True):
            assert found == normalize(text), text[:100]
