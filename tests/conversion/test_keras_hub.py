"""Claim: KerasHub presets of GPT-2 and Llama come in with KerasHub's logits and their families' own tokens."""

import json

import keras
import keras_hub
import numpy as np
import pytest
import tokenizers

from tests.conversion.tiny import converted, refusal
from tfgpt.model.checkpoints.huggingface import load_decoder
from tfgpt.tokenization.load import load_tokenizer

VOCABULARY = 400
IDS = np.random.default_rng(0).integers(0, VOCABULARY, (2, 12)).astype(np.int32)
LLAMA = {"vocabulary_size": VOCABULARY, "num_layers": 2, "hidden_dim": 32, "intermediate_dim": 48}
LLAMA |= {"num_query_heads": 4, "num_key_value_heads": 2}
BACKBONES = {
    "GPT-2": lambda: keras_hub.models.GPT2Backbone(
        vocabulary_size=VOCABULARY, num_layers=2, num_heads=4, hidden_dim=32, intermediate_dim=64,
        max_sequence_length=16, dropout=0.0,
    ),
    "Llama": lambda: keras_hub.models.Llama3Backbone(**LLAMA, rope_max_wavelength=500),
    "Llama 3.1": lambda: keras_hub.models.Llama3Backbone(
        **LLAMA, rope_max_wavelength=500, rope_frequency_adjustment_factor=8.0,
        rope_low_freq_factor=1.0, rope_high_freq_factor=4.0, rope_pretraining_sequence_length=32,
    ),
}  # fmt: skip


def vocabulary(documents, specials) -> tuple[dict[str, int], list[str]]:
    trainee = tokenizers.ByteLevelBPETokenizer()
    trainee.train_from_iterator(documents[:300], vocab_size=VOCABULARY - len(specials), show_progress=False)
    document = json.loads(trainee.to_str())
    ids = document["model"]["vocab"]
    ids |= {name: len(ids) + number for number, name in enumerate(specials)}
    return ids, [" ".join(pair) for pair in document["model"]["merges"]]


@pytest.mark.parametrize("family", BACKBONES)
def test_in_from_keras_hub(family, documents, tmp_path):
    keras.utils.set_random_seed(0)
    backbone = BACKBONES[family]()
    random = np.random.default_rng(1)
    for weight in backbone.weights:
        weight.assign(weight + random.normal(0.0, 0.2, weight.shape))
    if family == "GPT-2":
        ids, merges = vocabulary(documents, ["<|endoftext|>"])
        tokenizer = keras_hub.models.GPT2Tokenizer(vocabulary=ids, merges=merges)
    else:
        names = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
        ids, merges = vocabulary(documents, names)
        tokenizer = keras_hub.models.Llama3Tokenizer(vocabulary=ids, merges=merges)
    preset = tmp_path / "preset"
    backbone.save_to_preset(str(preset))
    tokenizer.save_to_preset(str(preset))
    output = converted(preset, tmp_path / "ours")

    hidden = backbone({"token_ids": IDS, "padding_mask": np.ones_like(IDS)})
    expected = np.array(backbone.token_embedding(hidden, reverse=True))
    found = load_decoder(output, dtype="float32")({"token_ids": IDS}).numpy()
    assert expected.std() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-3)
    np.testing.assert_array_equal(found.argmax(-1), expected.argmax(-1))

    ours = load_tokenizer(output)
    text = "The capital of France isn't 2 small."
    assert ours.encode(text).tolist() == np.array(tokenizer(text)).tolist()
    assert ours.end_of_text == ("<|endoftext|>" if family == "GPT-2" else "<|end_of_text|>")
    assert [ids[name] for name in (["<|begin_of_text|>"] if family != "GPT-2" else [])] == list(ours.start_ids)
    assert ours.padding_id not in (*ours.stop_ids, *ours.start_ids)
    assert ours.decode(ours.encode(text)) == text


def test_other_presets_are_refused_by_name_before_their_weights_are_read(tmp_path, documents):
    ids, merges = vocabulary(documents, ["<|endoftext|>"])
    keras_hub.models.GPT2Tokenizer(vocabulary=ids, merges=merges).save_to_preset(str(tmp_path))
    (tmp_path / "metadata.json").write_text("{}")
    (tmp_path / "config.json").write_text(json.dumps({"class_name": "BertBackbone", "config": {}}))
    line = refusal(tmp_path, tmp_path / "out")
    assert "class_name 'BertBackbone' is not supported; supported are GPT2Backbone" in line
