"""Texts that have broken tokenizers before."""

from collections.abc import Callable

import tokenizers

from tfgpt.tokenization.tokenizer import Tokenizer

CHINESE = "人工智能是计算机科学的一个分支，它企图了解智能的实质。天地玄黃，宇宙洪荒。"

TRICKY = [
    "",
    " ",
    "a",
    " a",
    "  a",
    "a ",
    "a  ",
    "\n",
    "\n\n",
    " \n a",
    "a\n\n\n  b",
    "\t\tif x:\r\n\r\n    pass  \r\n",
    "don't WE'LL 'tis",
    "1 12 123 1234 12345 ½٣४ 1,000,000.00 x2y",
    "!!! ... -- ?! (a) [b] {c} <|endoftext|> <|im_start|>user",
    CHINESE,
    " ".join(CHINESE),
    "日本語のテキスト　全角スペース　한국어 텍스트",
    "👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇯🇵 ☕️ emoji😀emoji 😀😀😀",
    "e\u0301 cafe\u0301 A\u030a \u0301 \u200d\u200b\ufeff",
    "\x00\x01\x1b[0m\x1c\x1d\x1e\x1f\x7f\x80\x85\x9f",
    "\u00a0\u1680\u180e\u2000\u2028\u2029\u202f\u205f\u3000 mixed \u00a0 spaces",
    "Привет, мир! Ελληνικά שלום مرحبا हिन्दी ไทย",
    "\ufffd\ufffe\uffff\U0010ffff\ue000",
    "𝕳𝖊𝖑𝖑𝖔 𐍈 𒀀𒀁",
    *("x" * length for length in (31, 32, 33, 63, 64, 65, 96)),
    *("人" * length for length in (32, 33, 64)),
    *(" " * length + "a" for length in (31, 32, 33, 34, 63, 64, 65, 66)),
    *("\n" * length for length in (31, 32, 33, 64, 65)),
    *(" " + "!" * length + " ?" for length in (31, 32, 33, 64)),
    "7" * 100,
    " " + "y" * 33 + " " * 40 + "-" * 70 + "\t",
]
"""Hand-picked texts, all valid."""

BROKEN = [
    b"\xff",
    b"\x80\x80",
    b"a\xffb",
    b" \xff ",
    b"  \xff  a",
    b"word \xc3",
    b"\xc3\xa9\xc3",
    b"\xe4\xba\xba\xe4\xba",
    b"\xed\xa0\x80\xed\xbf\xbf",
    b"\xc0\x80\xc1\xbf\xe0\x80\x80\xf0\x80\x80\x80",
    b"\xf4\x90\x80\x80\xf5\x80\x80\x80\xf8\x88\x80\x80\x80",
    b"\xf0\x9f\x98\x80\xf0\x9f\x98",
    b"   \xe3\x80   \xe3\x80\x80\xe3\x80",
    bytes(range(256)),
    bytes(reversed(range(256))) * 2,
]
"""Byte strings that are not UTF-8: stray, cut, overlong, surrogate and out-of-range sequences."""

PIECES = "' 's 'S 'ſ 'll 'LL 'lL 'l 're 'RE 'r 've 'd 'm 't s l r e d ! !! - _ . a abc é 人 1 12 1234 ½ \u0301".split()
PIECES += [" ", " ", "  ", "   ", "\n", "\r", "\r\n", "\t", "\u00a0", "\u2028", "\x1c", "\x85"]
"""What the expressions of the pretrained families tell apart."""

EVERY_CHARACTER = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
"""Every code point but the surrogates, in order."""


def reference_encoder(tokenizer: Tokenizer) -> Callable[[str], list[int]]:
    """`tokenizers` reading a tokenizer's own JSON, told to leave special tokens in the text alone."""
    reference = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    reference.encode_special_tokens = True
    return lambda text: reference.encode(text, add_special_tokens=False).ids
