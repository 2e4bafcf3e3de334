"""A head beside tied embeddings, and embeddings that stand as the head only, are read as transformers reads them."""

import json

import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from tests.model.test_transformers import THEIRS, TOKEN_IDS, TOLERANCE
from tfgpt.model.checkpoints.huggingface import load_config, load_decoder

EMBEDDINGS = {"gpt2": "transformer.wte.weight", "llama_tied_biased": "model.embed_tokens.weight"}


def save(directory, family: str, change) -> None:
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(THEIRS[family]()).save_pretrained(directory)
    assert json.loads((directory / "config.json").read_text()).get("tie_word_embeddings", True)
    path = directory / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    change(tensors)
    safetensors.numpy.save_file(tensors, path, {"format": "pt"})


def assert_logits_are_theirs(directory) -> None:
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory)
    with torch.no_grad():
        expected = theirs(torch.tensor(TOKEN_IDS, dtype=torch.long)).logits.numpy()
    np.testing.assert_allclose(load_decoder(directory)({"token_ids": TOKEN_IDS}).numpy(), expected, atol=TOLERANCE)


@pytest.mark.parametrize("family", list(EMBEDDINGS))
def test_another_head_than_the_tied_one_is_the_models_head_and_a_line_says_so(family, tmp_path, capsys):
    head = np.random.default_rng(3).normal(size=(61, 32)).astype(np.float32)
    save(tmp_path, family, lambda tensors: tensors.update({"lm_head.weight": head}))
    assert not load_config(tmp_path).tie_embeddings
    assert_logits_are_theirs(tmp_path)
    lines = [
        line for line in capsys.readouterr().err.splitlines() if "lm_head.weight" in line and "config.json" in line
    ]
    assert len(lines) == 1  # However often it is read.
    assert f"{tmp_path / 'model.safetensors'}: lm_head.weight is another matrix than the embeddings" in lines[0]


@pytest.mark.parametrize("family", list(EMBEDDINGS))
def test_a_tied_head_that_is_stored_twice_stays_tied(family, tmp_path, capsys):
    save(tmp_path, family, lambda tensors: tensors.update({"lm_head.weight": tensors[EMBEDDINGS[family]].copy()}))
    assert load_config(tmp_path).tie_embeddings
    assert_logits_are_theirs(tmp_path)
    assert "lm_head.weight is another" not in capsys.readouterr().err


@pytest.mark.parametrize("family", list(EMBEDDINGS))
def test_embeddings_that_only_the_tied_head_stands_for_are_the_head(family, tmp_path):
    save(tmp_path, family, lambda tensors: tensors.update({"lm_head.weight": tensors.pop(EMBEDDINGS[family])}))
    assert_logits_are_theirs(tmp_path)
