"""Sides: a hash that depends on the document alone, a contiguous cut equal to nanoGPT's."""

import pytest

from tfgpt.corpus import split


def text(content: str, identity: str = "x") -> dict:
    return {"text": content, "source": "test", "id": identity}


def held_out(fraction: float, count: int = 20_000) -> set[int]:
    return {number for number in range(count) if split.hash_side(text("", f"{number}"), fraction) == "validation"}


def test_the_hash_split_holds_out_the_share_asked_for():
    # A binomial count of 20,000 at 5% has a standard deviation of 31: 1,000 ± 4 of those.
    assert 875 < len(held_out(0.05)) < 1125


def test_a_larger_share_holds_out_all_that_a_smaller_one_does():
    assert held_out(0.02) < held_out(0.05) < held_out(0.5)


def test_the_hash_split_is_the_same_on_every_machine():
    """`printf 'tfgpt split\\0a' | sha256sum`, b, c, …: the first digits, of which those below 8 are below one half."""
    first_digits = {"a": "1", "b": "9", "c": "4", "d": "d", "e": "3", "f": "a"}
    for identity, digit in first_digits.items():
        expected = "validation" if int(digit, 16) < 8 else "train"
        assert split.hash_side(text("", identity), 0.5) == expected


def test_parts_and_chapters_stay_together():
    for group in range(200):
        sides = {split.hash_side(text("", f"{group}#{part}"), 0.3) for part in range(20)}
        assert len(sides) == 1


@pytest.mark.parametrize("content", ["abcdefghijk" * 97, "天地玄黄，宇宙洪荒。🙂" * 31])
@pytest.mark.parametrize(("fraction", "kept"), [(0.1, 0.9), (0.05, 0.95), (0.25, 0.75)])
def test_a_text_is_cut_where_nanogpt_cuts_a_string(content, fraction, kept):
    cut = split.contiguous_cut(len(content), fraction)
    (train_side, train), (validation_side, validation) = split.contiguous_sides(text(content), 0, cut)
    assert (train_side, validation_side) == ("train", "validation")
    assert train["text"] == content[: int(len(content) * kept)]
    assert train["text"] + validation["text"] == content
    assert train["id"] != validation["id"]


def test_a_dialogue_is_never_cut():
    dialogue = {"messages": [{"role": "user", "content": "12345"}, {"role": "assistant", "content": "67890"}]}
    dialogue |= {"source": "test", "id": "x"}
    assert list(split.contiguous_sides(dialogue, 0, 10)) == [("train", dialogue)]
    assert list(split.contiguous_sides(dialogue, 0, 9)) == [("validation", dialogue)]


def sides(train: tuple[int, int], validation: tuple[int, int]) -> dict:
    return {
        name: {"documents": documents, "characters": characters}
        for name, (documents, characters) in (("train", train), ("validation", validation))
    }


def test_few_documents_are_not_split_by_hash():
    assert split.hash_split_problem(sides((37, 950), (2, 50)), 0.05) == "39 documents are too few to split by hash"
    assert split.hash_split_problem(sides((1, 9), (0, 0)), 0.05) == "1 document is too few to split by hash"
    assert split.hash_split_problem(sides((38, 950), (2, 50)), 0.05) is None


def test_a_lopsided_hash_split_is_seen():
    assert "validation side would be empty" in str(split.hash_split_problem(sides((100, 950), (0, 0)), 0.05))
    assert "by hash 50.0% of the text" in str(split.hash_split_problem(sides((99, 500), (1, 500)), 0.05))
    assert "by hash 0.1% of the text" in str(split.hash_split_problem(sides((99, 999), (1, 1)), 0.05))
