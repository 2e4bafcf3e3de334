"""Text from token bytes: whole characters, and cuts before stop strings that do not depend on token boundaries."""

import random

import pytest

from tfgpt.generation.detokenizer import StreamingDetokenizer, detokenize

TEXTS = ["plain text", "naïve café – “quotes”", "汉字和标点。", "👩‍👩‍👧 family 🏳️‍🌈", "\x00\x07\r\n\t", ""]


def split_at_random(data: bytes, generator: random.Random) -> list[bytes]:
    pieces = []
    while data:
        length = generator.randint(1, 4)
        pieces.append(data[:length])
        data = data[length:]
    return pieces


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_joined_are_the_text_whatever_the_token_boundaries(text):
    generator = random.Random(0)
    for _ in range(20):
        assert detokenize(split_at_random(text.encode(), generator)) == text


def test_a_character_is_never_given_out_by_halves():
    stream = StreamingDetokenizer()
    assert [stream.add(bytes([byte])) for byte in "é汉🙂".encode()] == ["", "é", "", "", "汉", "", "", "", "🙂"]
    assert stream.end() == ""


def test_invalid_bytes_become_what_python_makes_of_them_as_a_whole():
    generator = random.Random(1)
    for _ in range(300):
        data = bytes(generator.choices([0x41, 0x80, 0xC3, 0xE2, 0x82, 0xF0, 0x9F, 0xFF, 0xED, 0xA0], k=12))
        assert detokenize(split_at_random(data, generator)) == data.decode("utf-8", "replace")


def test_an_unfinished_character_at_the_end_is_one_replacement_character():
    assert detokenize([b"ab", b"\xe6\xb1"]) == "ab\ufffd"


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (["ghi"], "abcdef"),
        (["zzz"], "abcdefghijkl"),
        (["abc"], ""),
        (["kl", "def"], "abc"),
        (["cdefg", "de"], "abc"),  # "de" is complete first, at its e
        (["e", "cde"], "ab"),  # both are complete at the same letter: the longer one
        (["l"], "abcdefghijk"),
    ],
)
def test_text_is_cut_before_the_stop_string_completed_first_wherever_tokens_end(stop, expected):
    generator = random.Random(2)
    for _ in range(30):
        assert detokenize(split_at_random(b"abcdefghijkl", generator), stop) == expected


def test_a_repeating_stop_string_is_found_after_a_false_start():
    assert detokenize([b"a", b"a", b"a", b"b", b"c"], ["aab"]) == "a"


def test_the_start_of_a_stop_string_is_held_back_until_it_cannot_be_one():
    stream = StreamingDetokenizer(["\n\nUser"])
    expected = {b"Hi": "Hi", b"\n": "", b"\nU": "", b"p": "\n\nUp", b"\n\nUs": "", b"er:": ""}
    assert {token: stream.add(token) for token in expected} == expected
    assert stream.stopped
    assert stream.add(b"more") + stream.end() == ""


def test_a_held_back_start_of_a_stop_string_is_given_out_at_the_end():
    stream = StreamingDetokenizer(["END"])
    assert stream.add(b"text EN") == "text "
    assert stream.end() == "EN"


def test_a_stop_string_of_several_bytes_a_character_is_found():
    assert detokenize(["问：你好。答".encode()[:7], "问：你好。答".encode()[7:]], ["。"]) == "问：你好"
