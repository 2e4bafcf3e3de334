"""Tokenizers to test, and texts that have broken tokenizers before."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers

from tfgpt.tokenization.tokenizer import Tokenizer
from tfgpt.tokenization.tokenizer_json import new_document
from tfgpt.tokenization.train_tokenizer import byte_tokenizer, in_bytes, train_bpe

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

ALPHABET = (
    *" \t\n\r\u00a0\u3000",
    *"aéЖß人日한ءक",
    *"0½٣Ⅷ",
    *"!.,'\"-_$€。\u0301\u200d\x00\x1f\x85\ufffd",
    "\U0001f600",
    "\U00010348",
)


def random_text(generator: random.Random) -> str:
    """Runs of characters of all classes, of lengths around the bounds of a pre-token."""
    runs = [1, 1, 1, 1, 2, 3, 4, 7, 31, 32, 33, 64, 65]
    return "".join(generator.choice(ALPHABET) * generator.choice(runs) for _ in range(generator.randrange(25)))


def random_characters(generator: random.Random) -> str:
    """Any code points."""
    points = [generator.randrange(0x110000) for _ in range(generator.randrange(40))]
    return "".join(chr(point) for point in points if not 0xD800 <= point < 0xE000)


def random_bytes(generator: random.Random) -> bytes:
    """Any bytes, sometimes cut out of valid text."""
    if generator.random() < 0.5:
        return generator.randbytes(generator.randrange(60))
    content = bytearray(random_text(generator).encode()[:200])
    for _ in range(len(content) // 20 + 1):
        if content:
            content[generator.randrange(len(content))] = generator.randrange(256)
    return bytes(content)


@pytest.fixture(scope="session")
def valid_texts(documents: list[str]) -> list[str]:
    """Hand-picked, random and real texts without invalid bytes."""
    generator = random.Random(1)
    return [
        *TRICKY,
        *(random_text(generator) for _ in range(1500)),
        *(random_characters(generator) for _ in range(1500)),
        *documents[:500],
    ]


@pytest.fixture(scope="session")
def broken_texts() -> list[bytes]:
    """Hand-picked and random byte strings, most of them not UTF-8."""
    generator = random.Random(2)
    return [*BROKEN, *(random_bytes(generator) for _ in range(3000))]


@pytest.fixture(scope="session")
def trained(documents: list[str]) -> Tokenizer:
    """A tokenizer of 2048 entries, trained on real text, Chinese, emoji and a few tricky texts."""
    return train_bpe([*documents[:1500], *[CHINESE] * 20, *TRICKY, *TRICKY], 2048)


@pytest.fixture(scope="session")
def uncut() -> Tokenizer:
    """A tokenizer whose merges were found in texts that were not cut: "\\na", "a0" and "! " are tokens of it.

    Where an encoder cuts elsewhere than the others, such a token shows it; the merges of a usual tokenizer never reach
    across a cut and would hide it.
    """
    generator = random.Random(3)
    texts = [random_text(generator)[:150] for _ in range(600)] + [random_characters(generator) for _ in range(100)]
    texts += [left + right for left in ALPHABET for right in ALPHABET] * 3
    trainee = tokenizers.Tokenizer(tokenizers.models.BPE())
    trainee.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=3000, initial_alphabet=alphabet, show_progress=False)
    trainee.train_from_iterator(texts, trainer)
    merges = json.loads(trainee.to_str())["model"]["merges"]
    return Tokenizer(new_document(tuple(map(in_bytes, pair)) for pair in merges))


@pytest.fixture(scope="session", params=["trained", "bytes"])
def tokenizer(request: pytest.FixtureRequest, trained: Tokenizer) -> Tokenizer:
    """Both tokenizers of ours, one after the other."""
    return trained if request.param == "trained" else byte_tokenizer()


@pytest.fixture(scope="session")
def reference_encoder() -> Callable[[Tokenizer], Callable[[str], list[int]]]:
    """`tokenizers` reading a tokenizer's own JSON, told to leave special tokens in the text alone."""

    def encoder(tokenizer: Tokenizer) -> Callable[[str], list[int]]:
        reference = tokenizers.Tokenizer.from_str(tokenizer.to_json())
        reference.encode_special_tokens = True
        return lambda text: reference.encode(text, add_special_tokens=False).ids

    return encoder


@pytest.fixture(scope="session")
def tricky() -> list[str]:
    """Hand-picked texts, all valid."""
    return TRICKY


@pytest.fixture(scope="session")
def broken() -> list[bytes]:
    """Hand-picked byte strings, none of them UTF-8."""
    return BROKEN


@pytest.fixture(scope="session")
def chinese() -> str:
    """Two sentences without a space."""
    return CHINESE


@pytest.fixture(scope="session")
def every_character() -> str:
    """Every code point but the surrogates, in order."""
    return "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))


@pytest.fixture(scope="session")
def every_character_ids(trained: Tokenizer, every_character: str) -> tuple[list[str], list[list[int]]]:
    """Every code point in texts of some thousand, and their ids by `tokenizers`."""
    texts = [every_character[start : start + 5000] for start in range(0, len(every_character), 5000)]
    reference = tokenizers.Tokenizer.from_str(trained.to_json())
    return texts, [encoding.ids for encoding in reference.encode_batch_fast(texts, add_special_tokens=False)]


@pytest.fixture(scope="session")
def gpt2_file(tmp_path_factory: pytest.TempPathFactory, documents: list[str]) -> Path:
    """A tokenizer.json as GPT-2's is: its pre-tokenizer, <|endoftext|> as the only special token."""
    trainee = tokenizers.ByteLevelBPETokenizer()
    trainee.train_from_iterator(documents[:500], vocab_size=600, special_tokens=["<|endoftext|>"], show_progress=False)
    path = tmp_path_factory.mktemp("gpt2") / "tokenizer.json"
    trainee.save(str(path))
    return path


@pytest.fixture
def changed_file(gpt2_file: Path, tmp_path: Path) -> Callable[[Callable[[dict], object]], Path]:
    """A copy of the GPT-2-like file with its JSON changed by a function."""

    def change(function: Callable[[dict], object]) -> Path:
        document = json.loads(gpt2_file.read_text(encoding="utf-8"))
        function(document)
        path = tmp_path / "tokenizer.json"
        path.write_text(json.dumps(document), encoding="utf-8")
        return path

    return change
