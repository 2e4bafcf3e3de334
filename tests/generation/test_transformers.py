"""Greedy text and beam search equal `transformers`' own `generate` on tiny random models that both read."""

from pathlib import Path

import pytest
import torch
import transformers

from tests.generation.models import make_decoder
from tests.model.options import GPT2_STYLE
from tfgpt.generation.config import SamplingConfig
from tfgpt.generation.generator import Generator
from tfgpt.model.checkpoints.huggingface import save_decoder
from tfgpt.tokenization.train_tokenizer import byte_tokenizer

MODELS = {
    "gpt2": GPT2_STYLE | {"normalization_epsilon": 1e-5},
    "llama": {"query_key_norm": False, "num_key_value_heads": 2, "tie_embeddings": False},
}
PROMPTS = ["The cat sat", "", "one two three"]


@pytest.fixture(scope="module", params=MODELS.keys())
def pair(request, tmp_path_factory) -> tuple[Generator, transformers.PreTrainedModel]:
    tokenizer = byte_tokenizer()
    directory: Path = tmp_path_factory.mktemp(request.param)
    options = {"num_layers": 2, "intermediate_dim": None, **MODELS[request.param]}
    ids = {name: getattr(tokenizer, name) for name in ("end_of_text_id", "end_of_turn_id", "padding_id")}
    save_decoder(make_decoder(**options), directory, **ids)
    tokenizer.save(directory)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)
    assert model.config.model_type == request.param
    return Generator.load(directory), model


def theirs(model: transformers.PreTrainedModel, generator: Generator, prompt: str, **options) -> list[list[int]]:
    ids = torch.tensor([[generator.tokenizer.end_of_text_id, *generator.tokenizer.encode(prompt).tolist()]])
    with torch.no_grad():
        found = model.generate(ids, do_sample=False, eos_token_id=list(generator.stop_tokens), **options)
    texts = []
    for row in found[:, ids.shape[1] :].tolist():
        ends = [place for place, token in enumerate(row) if token in generator.stop_tokens]
        texts.append(row[: ends[0]] if ends else row)
    return texts


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_text_equals_transformers(pair, penalty):
    generator, model = pair
    config = SamplingConfig(max_new_tokens=40, temperature=0.0, repetition_penalty=penalty)
    for prompt, [found] in zip(PROMPTS, generator.generate(PROMPTS, config), strict=True):
        [expected] = theirs(model, generator, prompt, max_new_tokens=40, repetition_penalty=penalty)
        assert found.token_ids == expected


@pytest.mark.parametrize("num_beams", [2, 5])
@pytest.mark.parametrize(("length_penalty", "penalty"), [(1.0, 1.0), (-2.0, 1.0), (0.0, 1.2)])
def test_beam_search_equals_transformers(pair, num_beams, length_penalty, penalty):
    generator, model = pair
    options = {
        "max_new_tokens": 9, "num_beams": num_beams, "length_penalty": length_penalty, "repetition_penalty": penalty
    }  # fmt: skip
    config = SamplingConfig(temperature=0.0, num_samples=2, **options)
    for prompt, found in zip(PROMPTS[:2], generator.generate(PROMPTS[:2], config), strict=True):
        expected = theirs(model, generator, prompt, num_return_sequences=2, **options)
        assert [text.token_ids for text in found] == expected


def test_log_probability_of_a_beam_is_what_transformers_gives_its_tokens(pair):
    generator, model = pair
    [[found]] = generator.generate(["The cat"], SamplingConfig(max_new_tokens=8, temperature=0.0, num_beams=3))
    prompt = [generator.tokenizer.end_of_text_id, *generator.tokenizer.encode("The cat").tolist()]
    ids = torch.tensor([prompt + found.token_ids])
    with torch.no_grad():
        log_probabilities = torch.log_softmax(model(ids).logits[0], -1)
    own = log_probabilities[range(len(prompt) - 1, ids.shape[1] - 1), found.token_ids].sum()
    if found.finish_reason == "stop":  # The stop token counts, but is not among the ids.
        [best] = theirs(model, generator, "The cat", max_new_tokens=8, num_beams=3)
        assert best == found.token_ids
        own += max(log_probabilities[-1, token] for token in generator.stop_tokens)
    assert found.log_probability == pytest.approx(float(own), abs=1e-4)
