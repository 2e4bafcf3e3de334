r"""Pre-tokenizers as TensorFlow operations: exact vectorized forms of the regular expressions in `pretokenizer`.

Ours cuts between classes of characters, except that a letter, number or other sign takes one U+0020 before it. A run
of one class is cut every `LARGEST_RUN` characters from its own start (the space that it takes does not count). A run of
white space is also cut before its last character, except at the end of the text: `\s{1,32}(?!\S)` steps back by one
exactly if it would reach the end of the run.

The pretrained ones take a whole run of one class with each match, so matches begin where runs begin, except that

- a run of letters (GPT-2: also of numbers) takes one character before it that is not taken yet: GPT-2 a space, Llama 3
  any sign or white space except line ends;
- a run of signs takes one space before it and (Llama 3) the line ends after it;
- white space up to its last line end is one match (Llama 3); of the rest, the last character stands alone or is taken
  by what follows, except at the end of the text;
- a contraction ('s, 't, 're, …) is a match if its apostrophe begins one.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import tensorflow as tf
import tiktoken
import tokenizers

from tfgpt.tokenization.in_graph.text_ops import characters, flags_at, following, position_in_run, preceding
from tfgpt.tokenization.pretokenizer import MAXIMUM_RUN

OTHER, LETTER, NUMBER, SPACE, INVALID, NOTHING = range(6)
"""Classes of characters. INVALID is a byte outside any well-formed sequence, NOTHING the end of the text."""

LARGEST_RUN = {OTHER: MAXIMUM_RUN, LETTER: MAXIMUM_RUN, NUMBER: 3, SPACE: MAXIMUM_RUN, INVALID: 1, NOTHING: 1}
"""Largest number of characters of a class in one of our pre-tokens."""


@dataclasses.dataclass(frozen=True)
class PretokenizerRules:
    """Differences between the pretrained families.

    Attributes:
        number_run: largest number of digits in a pre-token; None for no limit.
        numbers_apart: each digit stands alone, and the text on both sides is cut as if it ended there.
        numbers_take_space: a number takes the space before it.
        any_case: contractions may be in upper case.
        words_take_signs: letters take one sign or white space before them, not only a space.
        line_ends: line ends belong to the signs before them, and end a run of white space.
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
"""Rules of each family in `pretokenizer.FAMILIES`."""


class InGraphPretokenizer(tf.Module):
    """Cuts the bytes of a batch of texts into pre-tokens, with the rules of a pretrained family or our own."""

    def __init__(self, rules: PretokenizerRules | None = None) -> None:
        super().__init__()
        self._rules = rules
        pages, page_of = class_pages(rules is not None and rules.numbers_apart)
        with tf.device("CPU:0"):
            self._pages = tf.constant(pages)
            self._page_of = tf.constant(page_of)
            self._largest_run = tf.constant([LARGEST_RUN[kind] for kind in range(6)])

    def __call__(self, contents: tf.Tensor, first: tf.Tensor) -> tf.Tensor:
        """Returns [T] bool, the starts of pre-tokens in [T] int32 bytes; `first` [T] bool are the starts of texts."""
        code_points, valid, where = characters(contents, first)  # from here (C): one entry for each character
        first = tf.gather(first, where)
        page = tf.gather(self._page_of, code_points // 256)
        kinds = tf.cast(tf.gather(self._pages, page * 256 + code_points % 256), tf.int32)
        kinds = tf.where(valid, kinds, INVALID)
        if self._rules is None:
            starts = _our_starts(code_points, kinds, first, self._largest_run)
        else:
            starts = _pretrained_starts(code_points, kinds, first, self._rules)
        return flags_at(tf.boolean_mask(where, starts), tf.size(contents))


def _our_starts(code_points: tf.Tensor, kinds: tf.Tensor, first: tf.Tensor, largest_run: tf.Tensor) -> tf.Tensor:
    # All tensors are (C), largest_run is (6) by class.
    before = tf.where(first, NOTHING, preceding(kinds, 1, filler=NOTHING))
    after = tf.where(following(first, True), NOTHING, following(kinds, NOTHING))
    position = position_in_run((kinds == before) & ~first, counted_from_start=True)
    cut = position % tf.gather(largest_run, kinds) == 0
    takes_space = (position == 0) & (preceding(code_points, 1) == 0x20) & (before == SPACE)
    last_space = (after != SPACE) & (after != NOTHING) & (after != INVALID)
    return tf.where(kinds == SPACE, cut | last_space, cut & ((kinds == INVALID) | ~takes_space))


def _pretrained_starts(
    code_points: tf.Tensor, kinds: tf.Tensor, first: tf.Tensor, rules: PretokenizerRules
) -> tf.Tensor:
    index = tf.range(tf.size(kinds))
    seen = tf.where(kinds == INVALID, NOTHING, kinds)  # the class that neighbors see
    if rules.numbers_apart:
        seen = tf.where(seen == NUMBER, NOTHING, seen)
    last = following(first, True)
    before = tf.where(first, NOTHING, preceding(seen, 1, filler=NOTHING))
    after = tf.where(last, NOTHING, following(seen, NOTHING))
    begins = (seen != before) | (seen == NOTHING)  # a run
    ends = (seen != after) | (seen == NOTHING)
    is_space, is_other, is_letter = (seen == kind for kind in (SPACE, OTHER, LETTER))

    # White space is taken by the signs before it, or ends with the last line end, or is the rest.
    taken, rest = tf.zeros_like(first), is_space
    if rules.line_ends:
        line_end = ((code_points == 10) | (code_points == 13)) & is_space
        continues = line_end & preceding(line_end, 1) & ~first
        begin = index - position_in_run(continues, counted_from_start=True)
        taken = line_end & (tf.gather(before, begin) == OTHER)
        run = tf.cumsum(tf.cast(begins, tf.int32)) - 1
        last_line_end = tf.math.segment_max(tf.where(line_end & ~taken, index, -1), run)
        rest = is_space & ~taken & (index > tf.gather(last_line_end, run))
    continues = ~begins & ~preceding(taken, 1)  # white space that follows white space which is not taken
    space_starts = ~taken & (~continues | (rest & ~preceding(rest, 1)) | (rest & ends & (after != NOTHING)))

    # Runs that take the character before them.
    after_rest = ~first & preceding(rest, 1)
    after_blank = after_rest & (preceding(code_points, 1) == 0x20)
    other_starts = is_other & begins & ~after_blank
    letter_taken = after_blank
    if rules.words_take_signs:
        lone_sign = other_starts & ends
        letter_taken = after_rest | (preceding(lone_sign, 1) & ~first)
    letter_starts = is_letter & begins & ~letter_taken
    number_starts = kinds == NUMBER
    if rules.numbers_take_space:
        number_starts &= begins & ~after_blank
    elif rules.number_run:
        continues = number_starts & preceding(number_starts, 1) & ~first
        number_starts &= position_in_run(continues, counted_from_start=True) % rules.number_run == 0
    else:
        number_starts &= begins
    starts = (is_space & space_starts) | other_starts | letter_starts | number_starts | (kinds == INVALID)
    return _with_contractions(starts, code_points, other_starts, is_letter, first, rules.any_case)


def _with_contractions(
    starts: tf.Tensor,
    code_points: tf.Tensor,
    other_starts: tf.Tensor,
    is_letter: tf.Tensor,
    first: tf.Tensor,
    any_case: bool,
) -> tf.Tensor:
    def next_is(letters: str, flags: tf.Tensor | bool = True) -> tf.Tensor:
        # Without regard to case, the long s is an s.
        variants = {*letters, *letters.upper(), *("ſ" if "s" in letters else "")} if any_case else set(letters)
        found = tf.reduce_any(code_points[:, None] == tf.constant(sorted(map(ord, variants)), tf.int32), 1)
        return following(found & ~first & flags, False)  # in the same text

    apostrophe = other_starts & (code_points == ord("'"))
    short = apostrophe & next_is("stmd")
    long = apostrophe & (next_is("rv", next_is("e")) | next_is("l", next_is("l")))
    inside = preceding(short, 1) | preceding(long, 1) | preceding(long, 2)
    after = (preceding(short, 2) | preceding(long, 3)) & is_letter & ~first
    return (starts & ~inside) | after


@functools.cache
def class_pages(digits_step: bool = False) -> tuple[np.ndarray, np.ndarray]:
    r"""Returns the class of every code point, in pages of 256 without duplicates.

    The classes come from the regular expression engine of tiktoken, which agrees with that of `tokenizers` (Python has
    another version of Unicode). With `digits_step`, numbers are what the Digits step of `tokenizers` cuts.

    Returns:
        [pages × 256] uint8 classes and [0x1100] int32 page of each code point's upper bits.
    """
    every_character = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
    ranks = {bytes([byte]): byte for byte in range(256)}
    classes = np.full(0x110000, OTHER, np.uint8)
    for kind, expression in ((LETTER, r"\p{L}+"), (NUMBER, r"\p{N}+"), (SPACE, r"\s+")):
        # An encoding drops the characters that its expression does not match.
        matcher = tiktoken.Encoding("class", pat_str=expression, mergeable_ranks=ranks, special_tokens={})
        members = bytes(matcher.encode_ordinary(every_character)).decode().encode("utf-32-le")
        classes[np.frombuffer(members, np.uint32)] = kind
    if digits_step:
        step = tokenizers.pre_tokenizers.Digits(individual_digits=True)
        likely = [piece for piece, _ in step.pre_tokenize_str(every_character) if len(piece) == 1]
        # A character between two digits is a piece as well; between letters it is not.
        found = {piece for piece, _ in step.pre_tokenize_str("a".join(["", *likely, ""]))}
        classes[[ord(character) for character in likely if character in found]] = NUMBER
    pages, page_of = np.unique(classes.reshape(-1, 256), axis=0, return_inverse=True)
    return pages.reshape(-1), page_of.reshape(-1).astype(np.int32)
