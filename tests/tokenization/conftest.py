"""Tokenizers to test, and texts that have broken tokenizers before."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
import transformers

from tests.tokenization.templates import with_template
from tests.tokenization.texts import BROKEN, CHINESE, EVERY_CHARACTER, PIECES, TRICKY
from tfgpt.tokenization.tokenizer import Tokenizer
from tfgpt.tokenization.tokenizer_json import new_document
from tfgpt.tokenization.train_tokenizer import byte_tokenizer, in_bytes, train_bpe

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
    generator = random.Random(1)
    return [
        *TRICKY,
        *(random_text(generator) for _ in range(1500)),
        *(random_characters(generator) for _ in range(1500)),
        *documents[:500],
    ]


@pytest.fixture(scope="session")
def broken_texts() -> list[bytes]:
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
    return trained if request.param == "trained" else byte_tokenizer()


@pytest.fixture(scope="session")
def every_character_ids(trained: Tokenizer) -> tuple[list[str], list[list[int]]]:
    """Every code point in texts of some thousand, and their ids by `tokenizers`."""
    texts = [EVERY_CHARACTER[start : start + 5000] for start in range(0, len(EVERY_CHARACTER), 5000)]
    reference = tokenizers.Tokenizer.from_str(trained.to_json())
    return texts, [encoding.ids for encoding in reference.encode_batch_fast(texts, add_special_tokens=False)]


@pytest.fixture(scope="session")
def gpt2_file(tmp_path_factory: pytest.TempPathFactory, documents: list[str]) -> Path:
    trainee = tokenizers.ByteLevelBPETokenizer()
    trainee.train_from_iterator(documents[:500], vocab_size=600, special_tokens=["<|endoftext|>"], show_progress=False)
    path = tmp_path_factory.mktemp("gpt2") / "tokenizer.json"
    trainee.save(str(path))
    return path


@pytest.fixture
def changed_file(gpt2_file: Path, tmp_path: Path) -> Callable[[Callable[[dict], object]], Path]:
    def change(function: Callable[[dict], object]) -> Path:
        document = json.loads(gpt2_file.read_text(encoding="utf-8"))
        function(document)
        path = tmp_path / "tokenizer.json"
        path.write_text(json.dumps(document), encoding="utf-8")
        return path

    return change


@pytest.fixture(scope="session")
def theirs(trained: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> transformers.PreTrainedTokenizerFast:
    folder = tmp_path_factory.mktemp("theirs")
    with_template(trained, "").save(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    theirs.bos_token, theirs.eos_token = "<s>", "</s>"
    return theirs


@pytest.fixture(scope="session")
def mixtures() -> list[str]:
    generator = random.Random(5)
    return ["".join(generator.choice(PIECES) for _ in range(generator.randrange(1, 14))) for _ in range(3000)]
