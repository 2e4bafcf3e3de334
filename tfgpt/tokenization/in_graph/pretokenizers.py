r"""Where the tokenizers of GPT-2, SmolLM2, Llama 3 and Qwen2 cut text, as TensorFlow operations.

The vectorised form of `foreign_patterns`' expressions. Why it is exact: an expression is tried at the place where the
match before it ended, and each of its parts takes a whole run of one class of characters, so that matches begin where a
run begins, with these exceptions, each of which looks at a few neighbours only:

- a letter's run (GPT-2: a number's as well) takes one character before it: GPT-2 a space, Llama 3 any sign or white
  space that is no line end, where that character has not been taken already, which a sign before another sign is;
- a sign's run takes one space before it, and (Llama 3) the line ends behind it;
- white space: (Llama 3) up to its last line end it is one match; of the rest, the last character stands alone or is
  taken by what follows, and at the end of the text is not;
- a contraction ('s, 't, 're, …) is a match where its apostrophe begins one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tfgpt.tokenization.in_graph.vector_ops import following, position_in_run, preceding
from tfgpt.tokenization.tokenizer_json import family_of

OTHER, LETTER, NUMBER, SPACE, INVALID, NOTHING = range(6)
"""Classes of characters. INVALID is a byte outside any well-formed sequence, NOTHING the end of the text."""


@dataclasses.dataclass(frozen=True)
class PretokenizerRules:
    """What the families differ in.

    Attributes:
        number_run: digits of one pre-token; None: the whole run.
        numbers_apart: each digit stands alone, and what is around it is cut as if the text ended there.
        numbers_take_space: a number takes the space before it.
        any_case: contractions in upper case as well.
        words_take_signs: letters take one sign or white space before them, not only a space.
        line_ends: line ends go with the signs before them, and end a run of white space.
    """

    number_run: int | None = None
    numbers_apart: bool = False
    numbers_take_space: bool = False
    any_case: bool = False
    words_take_signs: bool = False
    line_ends: bool = False


LLAMA3 = PretokenizerRules(number_run=3, any_case=True, words_take_signs=True, line_ends=True)
RULES = {
    "gpt2": PretokenizerRules(numbers_take_space=True),
    "smollm": PretokenizerRules(numbers_apart=True),
    "llama3": LLAMA3,
    "qwen2": dataclasses.replace(LLAMA3, number_run=1),
}
"""By the names of `pretrained_pretokenizers.FAMILIES`."""


def cut_rules(document: Mapping[str, Any]) -> PretokenizerRules | None:
    """The rules of a `tokenizer.json`; None where it is of no known family."""
    family = family_of(document)
    return None if family is None else RULES[family]


def pre_token_starts(code_points: tf.Tensor, kinds: tf.Tensor, first: tf.Tensor, rules: PretokenizerRules) -> tf.Tensor:
    """Which characters start a pre-token.

    Args:
        code_points: [C] int32.
        kinds: [C] int32 classes.
        first: [C] bool, the characters that start a text.
        rules: the family's.

    Returns:
        [C] bool.
    """
    index = tf.range(tf.size(kinds))
    seen = tf.where(kinds == INVALID, NOTHING, kinds)  # as neighbours see each other
    if rules.numbers_apart:
        seen = tf.where(seen == NUMBER, NOTHING, seen)
    last = following(first, True)
    before = tf.where(first, NOTHING, preceding(seen, 1, filler=NOTHING))
    after = tf.where(last, NOTHING, following(seen, NOTHING))
    begins = (seen != before) | (seen == NOTHING)  # a run
    ends = (seen != after) | (seen == NOTHING)
    is_space, is_other, is_letter = (seen == kind for kind in (SPACE, OTHER, LETTER))

    # White space: what goes with the signs before it, what ends with the last line end, and the rest.
    taken, rest = tf.zeros_like(first), is_space
    if rules.line_ends:
        line_end = ((code_points == 10) | (code_points == 13)) & is_space
        goes_on = line_end & preceding(line_end, 1) & ~first
        begin = index - position_in_run(goes_on, counted_from_start=True)
        taken = line_end & (tf.gather(before, begin) == OTHER)
        run = tf.cumsum(tf.cast(begins, tf.int32)) - 1
        last_line_end = tf.math.segment_max(tf.where(line_end & ~taken, index, -1), run)
        rest = is_space & ~taken & (index > tf.gather(last_line_end, run))
    continues = ~begins & ~preceding(taken, 1)  # white space that follows white space which is not taken
    space_starts = ~taken & (~continues | (rest & ~preceding(rest, 1)) | (rest & ends & (after != NOTHING)))

    # What takes the character before it.
    behind_rest = ~first & preceding(rest, 1)
    behind_blank = behind_rest & (preceding(code_points, 1) == 0x20)
    other_starts = is_other & begins & ~behind_blank
    if rules.words_take_signs:
        lone_sign = other_starts & ends
        letter_taken = behind_rest | (preceding(lone_sign, 1) & ~first)
    else:
        letter_taken = behind_blank
    letter_starts = is_letter & begins & ~letter_taken
    number_starts = numbers(kinds, begins, first, behind_blank, rules)
    starts = (is_space & space_starts) | other_starts | letter_starts | number_starts | (kinds == INVALID)
    return with_contractions(starts, code_points, other_starts, is_letter, first, rules.any_case)


def numbers(
    kinds: tf.Tensor, begins: tf.Tensor, first: tf.Tensor, behind_blank: tf.Tensor, rules: PretokenizerRules
) -> Any:
    """[C] bool: the digits that start a pre-token."""
    is_number = kinds == NUMBER
    if rules.numbers_apart:
        return is_number
    if rules.numbers_take_space:
        return is_number & begins & ~behind_blank
    place = position_in_run(is_number & preceding(is_number, 1) & ~first, counted_from_start=True)
    return is_number & (place % rules.number_run == 0) if rules.number_run else is_number & begins


def with_contractions(
    starts: tf.Tensor,
    code_points: tf.Tensor,
    other_starts: tf.Tensor,
    is_letter: tf.Tensor,
    first: tf.Tensor,
    any_case: bool,
) -> tf.Tensor:
    """[C] bool: the starts, where 's, 't, 'm, 'd, 're, 've and 'll are pre-tokens."""

    def one_of(letters: str) -> tf.Tensor:
        # Without regard to case, the long s is an s.
        characters = {*letters, *letters.upper(), *("ſ" if "s" in letters else "")} if any_case else set(letters)
        found = tf.zeros_like(starts)
        for character in sorted(characters):
            found |= code_points == ord(character)
        return found & ~first  # a letter in the text of the character before it

    following_letter = [following(one_of(letters), False) for letters in ("stmd", "rv", "l")]
    second = [following(following(one_of(letters), False), False) for letters in ("e", "l")]
    apostrophe = other_starts & (code_points == ord("'"))
    short = apostrophe & following_letter[0]
    long = apostrophe & ((following_letter[1] & second[0]) | (following_letter[2] & second[1]))
    inside = preceding(short, 1) | preceding(long, 1) | preceding(long, 2)
    behind = (preceding(short, 2) | preceding(long, 3)) & is_letter & ~first
    return (starts & ~inside) | behind
