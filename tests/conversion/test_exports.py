"""Converted models are exported with their own tokenizers; where that needs tensorflow_text, the export says so."""

import json
from pathlib import Path

import numpy as np
import pytest
import transformers

from tests.conversion.tiny import converted, save_tiny
from tfgpt.generation.config import SamplingConfig
from tfgpt.serving.export import export
from tfgpt.serving.export_config import ExportConfig
from tfgpt.serving.saved_model_session import SessionModel
from tfgpt.tokenization.in_graph.sentencepiece import in_graph_tokenizer
from tfgpt.tokenization.load import load_tokenizer
from tfgpt.tokenization.sentencepiece_tokenizer import SentencePieceTokenizer


@pytest.fixture(scope="module")
def converted_family(tmp_path_factory, documents, sentencepiece_model):
    def make(family: str, **changes) -> Path:
        source = tmp_path_factory.mktemp("source")
        save_tiny(source, family, documents, sentencepiece_model)
        settings = json.loads((source / "tokenizer_config.json").read_text())
        (source / "tokenizer_config.json").write_text(json.dumps({**settings, **changes}))
        output = tmp_path_factory.mktemp("output") / "model"
        return converted(source, output)

    return make


def test_a_converted_model_is_exported_and_answers_as_the_model_does(converted_family, tmp_path):
    directory = converted_family("Llama 2", add_bos_token=False)
    config = ExportConfig(model=str(directory), output=str(tmp_path / "served"), max_new_tokens_limit=32)
    sampling = SamplingConfig(max_new_tokens=4)
    tokenizer = load_tokenizer(directory)
    version = export(config, sampling, directory, tokenizer, lambda line: None)
    metadata = json.loads((version / "assets.extra" / "tfgpt.json").read_text())
    assert metadata["operations"] == "core TensorFlow and tensorflow_text"
    assert metadata["tokenizer"]["kind"] == "SentencePiece"
    with SessionModel(version) as model:
        found = model("tokenize", {"text": np.array(["The fox", ""], object)})
        assert found["ids"][0][: found["num_tokens"][0]].tolist() == tokenizer.encode("The fox").tolist()
        # Nothing stands before a text, as for SmolLM2 and Qwen; our own models have an end-of-text token there.
        assert tokenizer.start_ids == () and found["end_of_text_id"].tolist() == [-1, -1]
        assert model("score", {"text": np.array(["The fox", ""], object)})["num_bytes"].tolist() == [7, 0]


def test_sentencepiece_ids_in_graph_equal_those_outside_and_those_of_transformers(
    sentencepiece_model, tmp_path, documents
):
    save_tiny(tmp_path / "source", "Llama 2", documents, sentencepiece_model)
    directory = converted(tmp_path / "source", tmp_path / "ours")
    tokenizer = load_tokenizer(directory)
    assert isinstance(tokenizer, SentencePieceTokenizer)
    graph, reference = in_graph_tokenizer(tokenizer), transformers.AutoTokenizer.from_pretrained(tmp_path / "source")
    texts = ["", " ", "a", "The fox", "  two  spaces ", "line\nline\t\n", "中文 ½ \U0001f600", "1234", *documents[:300]]
    found = graph.encode(texts).to_list()
    assert found == [ids.tolist() for ids in tokenizer.encode_batch(texts)]
    for text, ids in zip(texts, found, strict=True):
        assert ids == tokenizer.encode(text).tolist(), text
        assert tokenizer.decode(ids) == text
        # transformers 5 puts no space before a text that begins with one, unlike SentencePiece and Llama's own code.
        assert text.startswith(" ") or ids == reference.encode(text, add_special_tokens=False), text
    assert graph.decode(graph.encode(["The fox"])).numpy()[0] == b" The fox"
    assert graph.encode([b"a\xff\xc3b"]).to_list() == [tokenizer.encode(b"a\xff\xc3b").tolist()]
    assert tokenizer.byte_lengths()[tokenizer.encode("The fox")].sum() == len(" The fox")
    assert not set(tokenizer.encode("</s><s>").tolist()) & set(tokenizer.special_tokens.values())
