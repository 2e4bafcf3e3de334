"""Claim: every family comes in and goes out with equal logits and equal tokens, from every format, on tiny models.

The largest differences are printed as the README's table: python -m pytest -s tests/conversion/test_families.py
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from tests.conversion.gguf_files import byte_level_vocabulary, write_gguf
from tests.conversion.tiny import ENDS, MODELS, TEMPLATE, VOCABULARY, converted, save_tiny
from tfgpt.generation.prompts import encode_prompt
from tfgpt.model.checkpoints.huggingface import load_decoder
from tfgpt.tokenization.load import load_tokenizer

TEXTS = [
    "The quick brown fox",
    "it's 1234 o'clock, WE'LL see\n\n  \tdef f(x):\r\n    return x ** 2",
    "cafe\u0301 e\u0301 中文 naïve  spaces ",
    "a\u030a ½ \U0001f600!",
]
IDS = np.random.default_rng(0).integers(0, VOCABULARY, (2, 40)).astype(np.int32)
DIFFERENCES: dict[tuple[str, str], float] = {}


@pytest.fixture(scope="module", autouse=True)
def table() -> Iterator[None]:
    yield
    directions = list(dict.fromkeys(direction for _, direction in DIFFERENCES))
    print("\n| family | " + " | ".join(directions) + " |\n| --- |" + " --- |" * len(directions))
    for family in dict.fromkeys(family for family, _ in DIFFERENCES):
        row = [f"{DIFFERENCES[family, way]:.1e}" if (family, way) in DIFFERENCES else "" for way in directions]
        print(f"| {family} | " + " | ".join(row) + " |")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory, documents, sentencepiece_model) -> Callable[[str], tuple[Path, Any]]:
    made: dict[str, tuple[Path, Any]] = {}

    def make(family: str) -> tuple[Path, Any]:
        if family not in made:
            directory = tmp_path_factory.mktemp("theirs")
            made[family] = directory, save_tiny(directory, family, documents, sentencepiece_model)
        return made[family]

    return make


def logits_of(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(torch.tensor(IDS, dtype=torch.long)).logits.float().numpy()


def our_logits(directory: Path) -> np.ndarray:
    return load_decoder(directory, dtype="float32")({"token_ids": IDS}).numpy()


def note(family: str, direction: str, found: np.ndarray, expected: np.ndarray) -> None:
    """Keeps the largest difference, and refuses one that is no rounding error."""
    assert expected.std() > 0.1
    DIFFERENCES[family, direction] = float(np.abs(found - expected).max())
    assert DIFFERENCES[family, direction] < 1e-3
    np.testing.assert_array_equal(found.argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize("family", MODELS)
def test_in_from_transformers_and_out_again(family, theirs, tmp_path):
    source, model = theirs(family)
    directory = converted(source, tmp_path / "ours")
    expected = logits_of(model)
    note(family, "transformers → tfgpt", our_logits(directory), expected)
    out = converted(directory, tmp_path / "out")
    again, report = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(report.values()), report
    note(family, "tfgpt → transformers", logits_of(again), expected)

    tokenizer, original = load_tokenizer(out), transformers.AutoTokenizer.from_pretrained(source)
    written = transformers.AutoTokenizer.from_pretrained(out)
    for text in TEXTS:
        ids = encode_prompt(tokenizer, text).tolist()
        assert ids == original(text)["input_ids"] == written(text)["input_ids"], text
    assert written.chat_template == tokenizer.config["chat_template"] == TEMPLATE
    ends = [tokenizer.end_of_turn_id, tokenizer.end_of_text_id]
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == list(dict.fromkeys(ends))
    assert tokenizer.vocabulary_size <= VOCABULARY
    assert tokenizer.padding_id not in (*tokenizer.stop_ids, *tokenizer.start_ids)
    assert MODELS[family][1] == "sentencepiece" or tokenizer.end_of_turn == ENDS[MODELS[family][1]]


def test_a_vocabulary_in_two_lists_is_the_same_tokenizer(theirs, tmp_path):
    source, _ = theirs("GPT-2")
    lists = shutil.copytree(source, tmp_path / "lists")
    document = json.loads((lists / "tokenizer.json").read_text())
    (lists / "tokenizer.json").unlink()
    (lists / "vocab.json").write_text(json.dumps(document["model"]["vocab"]))
    pairs = "\n".join(" ".join(pair) for pair in document["model"]["merges"])
    (lists / "merges.txt").write_text(f"#version: 0.2\n{pairs}\n")
    whole, tokenizer = (load_tokenizer(converted(path, tmp_path / path.name / "ours")) for path in (source, lists))
    assert tokenizer.roles == whole.roles
    for text in TEXTS:
        assert tokenizer.encode(text).tolist() == whole.encode(text).tolist(), text


TYPES = {"F32": 2e-6, "F16": 2e-3, "BF16": 2e-2, "Q8_0": 5e-2, "Q5_0": None, "Q5_1": None, "Q4_0": None, "Q4_1": None}
"""How a GGUF file stores weights → what the logits may differ from those before; None: whatever."""


def test_in_from_gguf_with_the_scaling_of_llama_31(theirs, tmp_path):
    source, _ = theirs("SmolLM2")
    scaling = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = transformers.AutoConfig.from_pretrained(source)
    config.rope_parameters = {**scaling, "original_max_position_embeddings": 8192, "rope_theta": 500_000.0}
    torch.manual_seed(1)
    model = transformers.LlamaForCausalLM(config)
    # What convert_hf_to_gguf.py writes: how many times slower each pair of channels turns.
    plain = 500_000.0 ** (-np.arange(0, config.head_dim, 2) / config.head_dim)
    divisors = (plain / model.model.rotary_emb.inv_freq.numpy()).astype(np.float32)
    assert divisors.min() == 1 and divisors.max() > 31
    more = {"rope_freqs.weight": divisors}
    write_gguf(tmp_path / "model.gguf", model, "F32", byte_level_vocabulary(source, VOCABULARY, TEMPLATE), more)
    found = our_logits(converted(tmp_path / "model.gguf", tmp_path / "ours"))
    note("Llama 3.2, GGUF F32", "transformers → tfgpt", found, logits_of(model))


@pytest.mark.parametrize("kind", TYPES)
def test_in_from_gguf(kind, theirs, tmp_path):
    source, model = theirs("SmolLM2")
    path = tmp_path / "model.gguf"
    write_gguf(path, model, kind, byte_level_vocabulary(source, VOCABULARY, TEMPLATE))
    directory = converted(path, tmp_path / "ours")
    found = our_logits(directory)
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    note(f"Llama, GGUF {kind}", "transformers' reader → tfgpt", found, logits_of(reference))
    if TYPES[kind] is not None:
        np.testing.assert_allclose(found, logits_of(model), atol=TYPES[kind] * 100, rtol=TYPES[kind])
    tokenizer, original = load_tokenizer(directory), transformers.AutoTokenizer.from_pretrained(source)
    for text in TEXTS:
        assert tokenizer.encode(text).tolist() == original(text)["input_ids"], text
    assert tokenizer.config["chat_template"] == TEMPLATE
