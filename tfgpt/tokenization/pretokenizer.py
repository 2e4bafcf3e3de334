"""How bytes become pre-tokens: the regular expression that all three encoders share, and GPT-2's byte alphabet.

A pre-token is what BPE merges within. The expression is GPT-2's in spirit (a word takes the space before it), without
English contractions, with digits in groups of three, and with every run bounded. The bound is there so that a
"word" of 100,000 letters, or as many spaces, costs linear time in each encoder: BPE's cost grows faster than the
length of a pre-token, and in graph every merge within the longest pre-token is one more round for the whole batch.
It is 32 characters because no ordinary word of any language is longer (32 letters of German compounds, 32 ideographs
of a Chinese clause), and because the Rust engine inside tiktoken unrolls bounded repeats: up to 48 it matches at the
speed of the unbounded expression (18 MB/s), from 64 at half of it, and at 256 it refuses to compile (measured).

Text that is not UTF-8: a byte that belongs to no well-formed sequence (The Unicode Standard, table 3-7) is a pre-token
by itself, and the text before and after it is split as if it stood alone. That is Python's `surrogateescape` reading,
and it does not depend on how a library groups broken sequences.
"""

from __future__ import annotations

from typing import Any

MAXIMUM_RUN = 32
"""Characters of a run of letters, of other signs or of white space in one pre-token."""

PATTERN = (
    rf" ?\p{{L}}{{1,{MAXIMUM_RUN}}}"
    r"| ?\p{N}{1,3}"
    rf"| ?[^\s\p{{L}}\p{{N}}]{{1,{MAXIMUM_RUN}}}"
    rf"|\s{{1,{MAXIMUM_RUN}}}(?!\S)"
    rf"|\s{{1,{MAXIMUM_RUN}}}"
)
"""The pre-token expression, the same text for Oniguruma (`tokenizers`) and Rust's fancy-regex (`tiktoken`)."""

PRE_TOKENIZER: dict[str, Any] = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ],
}
"""`PATTERN` as a `tokenizers` pre-tokenizer."""

DECODER: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
"""The decoder that turns the byte alphabet back into bytes (its options play no part in decoding)."""


def byte_alphabet() -> list[str]:
    """The printable character that stands for each byte in a byte-level vocabulary.

    Returns:
        256 one-character strings: byte → character.

    Source: `bytes_to_unicode` of GPT-2's `encoder.py` (Radford et al. 2019): printable Latin-1 stands for itself,
    every other byte for the next character from U+0100 on.
    """
    themselves = {*range(33, 127), *range(161, 173), *range(174, 256)}
    alphabet, moved = [], 0
    for byte in range(256):
        if byte in themselves:
            alphabet.append(chr(byte))
        else:
            alphabet.append(chr(256 + moved))
            moved += 1
    return alphabet


BYTE_OF_CHARACTER: dict[str, int] = {character: byte for byte, character in enumerate(byte_alphabet())}
"""The reverse of `byte_alphabet`."""
