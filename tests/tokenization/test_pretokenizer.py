"""The pre-token expression and the byte alphabet."""

import pytest
import tokenizers
from tokenizers.pre_tokenizers import ByteLevel, Split

from tfgpt.tokenization.pretokenizer import BYTE_OF_CHARACTER, MAXIMUM_RUN, PATTERN, byte_alphabet


def pre_tokens(text: str) -> list[str]:
    return [piece for piece, _ in Split(tokenizers.Regex(PATTERN), "isolated").pre_tokenize_str(text)]


def test_byte_alphabet_is_that_of_tokenizers():
    assert sorted(byte_alphabet()) == sorted(ByteLevel.alphabet())
    for byte, character in enumerate(byte_alphabet()):
        text = chr(byte) if byte < 128 else chr(byte).encode("latin-1").decode("utf-8", "surrogateescape")
        if byte < 128:
            cutter = ByteLevel(add_prefix_space=False, use_regex=False)
            assert cutter.pre_tokenize_str(text)[0][0] == character
        assert BYTE_OF_CHARACTER[character] == byte


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, my  world!", ["Hello", ",", " my", " ", " world", "!"]),
        ("don't", ["don", "'", "t"]),
        (" 12345 6", [" 123", "45", " 6"]),
        ("a\n\n b  ", ["a", "\n\n", " b", "  "]),
        ("人工，智能", ["人工", "，", "智能"]),
    ],
)
def test_text_is_cut_as_said(text, expected):
    assert pre_tokens(text) == expected


@pytest.mark.parametrize("run", ["a", "人", "!", " ", "\n", "\u3000"])
def test_no_pre_token_is_longer_than_the_bound(run):
    pieces = pre_tokens("x " + run * 1000 + "y ")
    assert max(map(len, pieces)) <= MAXIMUM_RUN + 1
    assert "".join(pieces) == "x " + run * 1000 + "y "
