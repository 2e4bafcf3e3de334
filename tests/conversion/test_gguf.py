"""Claims: a SentencePiece vocabulary comes out of a GGUF file as it went in; quantized weights are read right.

They are compared with the `sentencepiece` library, `transformers` (its own reading of quantized blocks) and llama.cpp.
"""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import sentencepiece
import torch
import transformers

from tests.conversion.gguf_files import (
    K_QUANTS,
    Llama,
    dequantized_by_llama,
    quantized,
    sentencepiece_vocabulary,
    write_gguf,
    write_tensor,
)
from tests.conversion.tiny import SIZES, TEMPLATE, VOCABULARY, converted, refusal, save_tiny
from tfgpt.generation.prompts import encode_prompt
from tfgpt.model.checkpoints.gguf import GGUFFile
from tfgpt.model.checkpoints.huggingface import load_decoder
from tfgpt.tokenization.in_graph.sentencepiece import in_graph_tokenizer
from tfgpt.tokenization.load import load_tokenizer
from tfgpt.tokenization.sentencepiece_tokenizer import SentencePieceTokenizer

TEXTS = [
    "",
    " ",
    "a",
    "The quick brown fox",
    "  two  spaces   and three ",
    "line\nline\n\n\n  def f(x):\r\n\treturn x ** 2\n",
    "it's 1234 o'clock, WE'LL see 3.14",
    "\U0001f600 emoji\U0001f469\u200d\U0001f4bb!",
    "天地玄黃，宇宙洪荒。 中文　全角",
    "cafe\u0301 naïve ½ \u00a0\u2003\u200b\ufeff Ωμέγα \u2581 x",
    "<s> </s> <unk> <0x0A> [PAD419] not special",
]
"""Unusual spaces, lines, letters that are bytes in a tiny vocabulary, and names of special pieces."""


@pytest.fixture(scope="module")
def llama2(tmp_path_factory, documents, sentencepiece_model) -> transformers.PreTrainedModel:
    return save_tiny(tmp_path_factory.mktemp("llama2"), "Llama 2", documents, sentencepiece_model)


@pytest.fixture(scope="module")
def file(tmp_path_factory, llama2, sentencepiece_model) -> Path:
    path = tmp_path_factory.mktemp("file") / "model.gguf"
    vocabulary = sentencepiece_vocabulary(sentencepiece_model, VOCABULARY, chat_template=TEMPLATE, eos_token_id=2)
    write_gguf(path, llama2, "F32", vocabulary)
    return path


@pytest.fixture(scope="module")
def ours(tmp_path_factory, file) -> Path:
    return converted(file, tmp_path_factory.mktemp("ours") / "model")


@pytest.fixture(scope="module")
def llama(file) -> Llama:
    pytest.importorskip("xllamacpp")
    return Llama(file)


def test_ids_equal_those_of_the_model_that_went_in(ours, sentencepiece_model, documents):
    tokenizer = load_tokenizer(ours)
    assert isinstance(tokenizer, SentencePieceTokenizer)
    original = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model)
    texts = [*TEXTS, *documents[400:800]]
    expected = original.encode(texts)
    assert [ids.tolist() for ids in tokenizer.encode_batch(texts)] == expected
    assert in_graph_tokenizer(tokenizer).encode(texts).to_list() == expected
    for ids in expected:
        assert tokenizer.decode(ids) == original.decode(ids)
    size = original.get_piece_size()
    assert tokenizer.vocabulary_size == size
    for number in range(size):
        found = tokenizer.processor
        assert found.id_to_piece(number) == original.id_to_piece(number)
        assert found.get_score(number) == original.get_score(number)


def test_ids_equal_those_of_llama_cpp(ours, llama, documents):
    tokenizer = load_tokenizer(ours)
    for text in [*TEXTS, *documents[400:600]]:
        theirs = llama.answer("/tokenize", content=text, add_special=True, parse_special=False)["tokens"]
        assert theirs == encode_prompt(tokenizer, text).tolist() or not text, text


def test_log_probabilities_equal_those_of_llama_cpp(ours, llama, documents):
    tokenizer, decoder = load_tokenizer(ours), load_decoder(ours, dtype="float32")
    for text in documents[500:503]:
        ids = encode_prompt(tokenizer, text)[:32]
        logits = decoder({"token_ids": ids[None]}).numpy()[0, -1].astype(np.float64)
        expected = logits - np.logaddexp.reduce(logits)
        theirs = llama.log_probabilities(ids)
        print(f"\nF32 against llama.cpp, log probabilities: {np.abs(theirs - expected).max():.1e}")
        np.testing.assert_allclose(theirs, expected, atol=1e-4)


def test_transformers_opens_what_is_written_with_equal_ids_and_logits(ours, llama2):
    again, report = transformers.AutoModelForCausalLM.from_pretrained(ours, output_loading_info=True)
    assert not any(report.values()), report
    ids = torch.arange(40)[None]
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(ids).logits, llama2(ids).logits)
    written, tokenizer = transformers.AutoTokenizer.from_pretrained(ours), load_tokenizer(ours)
    for text in TEXTS:
        # transformers 5 puts no space before a text that begins with one, and reads names of special pieces in a text.
        if text.strip() == text and "<s>" not in text:
            assert written(text)["input_ids"] == encode_prompt(tokenizer, text).tolist(), text
    assert written.chat_template == tokenizer.config["chat_template"] == TEMPLATE
    assert (written.bos_token, written.eos_token, written.unk_token) == ("<s>", "</s>", "<unk>")
    assert json.loads((ours / "generation_config.json").read_text())["eos_token_id"] == [2]
    assert tokenizer.start_ids == (1,)


def test_added_tokens_and_what_the_file_says_of_the_text(sentencepiece_model, llama2, tmp_path):
    size = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model).get_piece_size()
    kinds = gguf.TokenType
    torch.manual_seed(0)
    wider = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**SIZES, "vocab_size": size + 8}))
    added = {"<|im_start|>": kinds.CONTROL, "<|im_end|>": kinds.CONTROL, "<tool call>": kinds.USER_DEFINED}

    def as_tokenizer_config_says(names, scores, types):
        types[0], scores[0] = kinds.CONTROL, -1000.0

    vocabulary = sentencepiece_vocabulary(
        sentencepiece_model, size + 8, added, as_tokenizer_config_says,
        add_bos_token=False, add_space_prefix=False, eos_token_id=size + 1, unk_token_id=0,
    )  # fmt: skip
    write_gguf(tmp_path / "model.gguf", wider, "F32", vocabulary)
    tokenizer = load_tokenizer(converted(tmp_path / "model.gguf", tmp_path / "ours"))
    assert (tokenizer.start_of_turn_id, tokenizer.end_of_turn_id, tokenizer.end_of_text_id) == (size, size + 1, 2)
    assert tokenizer.start_ids == () and tokenizer.vocabulary_size == size + 3
    texts = ["The fox", "a <tool call> b", "x<|im_end|>y", " a"]
    found = [tokenizer.encode(text).tolist() for text in texts]
    assert size + 2 in found[1] and size + 1 not in found[2]
    assert [tokenizer.decode(ids) for ids in found] == texts
    assert in_graph_tokenizer(tokenizer).encode(texts).to_list() == found
    pytest.importorskip("xllamacpp")
    llama = Llama(tmp_path / "model.gguf")
    for text, ids in zip(texts, found, strict=True):
        assert llama.answer("/tokenize", content=text, add_special=True, parse_special=False)["tokens"] == ids, text


def lists(part: int, function):
    def change(*all_lists: list) -> None:
        all_lists[part][:] = function(all_lists[part])

    return change


@pytest.mark.parametrize(
    ("change", "fields", "reason"),
    [
        (lists(1, lambda scores: [score / 7 for score in scores]), {}, "unigram models are not supported"),
        (lists(1, lambda scores: [-1000.0] * len(scores)), {}, "tokenizer.ggml.scores are all -1000"),
        (lists(1, lambda scores: scores[:-1]), {}, "tokens, scores and token types of one vocabulary"),
        (lists(2, lambda kinds: [9, *kinds[1:]]), {}, "tokenizer.ggml.token_type: 9 is not a valid PieceType"),
        (lists(2, lambda kinds: [2, 2, *kinds[2:]]), {"bos_token_id": 5}, "2 tokens are the unknown one"),
        (lists(2, lambda kinds: [kind if kind != 6 else 1 for kind in kinds[:-200]] + kinds[-200:]), {}, "byte tokens"),
        (lists(0, lambda names: [*names[:300], names[299], *names[301:]]), {}, "token 300 of its tokenizer is"),
        (lists(0, lambda names: [b"\xff", *names[1:]]), {}, "tokenizer.ggml.tokens holds a text that is not UTF-8"),
        (
            lists(0, list),
            {"remove_extra_whitespaces": True},
            "tokenizer.ggml.remove_extra_whitespaces is not supported",
        ),
        (lists(0, list), {"tokenizer_model": "t5"}, "tokenizer.ggml.model='t5' is not supported, only 'gpt2'"),
    ],
)
def test_what_is_no_bpe_or_not_whole_is_refused_by_name(change, fields, reason, sentencepiece_model, llama2, tmp_path):
    kind = fields.pop("tokenizer_model", None)
    vocabulary = sentencepiece_vocabulary(sentencepiece_model, VOCABULARY, change=change, **fields)

    def add(writer: gguf.GGUFWriter) -> None:
        vocabulary(writer)
        if kind:
            writer.kv_data[0]["tokenizer.ggml.model"].value = kind

    write_gguf(tmp_path / "model.gguf", llama2, "F32", add)
    assert reason in refusal(tmp_path / "model.gguf", tmp_path / "out")


QUANTIZED = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", *K_QUANTS)


@pytest.mark.parametrize("kind", QUANTIZED)
def test_blocks_are_read_as_llama_cpp_reads_them(kind, tmp_path):
    pytest.importorskip("xllamacpp")
    stored = gguf.GGMLQuantizationType[kind]
    value = np.random.default_rng(0).normal(size=(24, 512)).astype(np.float32)
    blocks = quantized(value, stored)
    write_tensor(tmp_path / "blocks.gguf", blocks, kind)
    found = GGUFFile(tmp_path / "blocks.gguf").read("token_embd.weight")
    expected = dequantized_by_llama(blocks, stored)
    assert 0 < np.abs(expected - value).max() < 0.4
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", K_QUANTS)
def test_k_quants_end_to_end(kind, documents, sentencepiece_model, tmp_path):
    pytest.importorskip("xllamacpp")
    sizes = {**SIZES, "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1, "initializer_range": 0.05}
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).eval()
    path = tmp_path / "model.gguf"
    write_gguf(path, model, kind, sentencepiece_vocabulary(sentencepiece_model, VOCABULARY))
    directory = converted(path, tmp_path / "ours")
    ids = encode_prompt(load_tokenizer(directory), documents[500])[:32]
    found = load_decoder(directory, dtype="float32")({"token_ids": ids[None]}).numpy()[0]
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    with torch.no_grad():
        given = torch.tensor(ids[None], dtype=torch.long)
        expected, before = reference.eval()(given).logits[0].numpy(), model(given).logits[0].numpy()
    print(f"\n{kind} against transformers' reader: {np.abs(found - expected).max():.1e}", end="; ")
    print(
        f"the model before it was quantized: {np.abs(found - before).max():.2f} (spread {before.std():.2f})", end="; "
    )
    assert np.abs(found - expected).max() < 1e-3 and before.std() > 0.3
    np.testing.assert_array_equal(found.argmax(-1), expected.argmax(-1))
    probabilities = Llama(path).log_probabilities(ids)
    ours = found[-1] - np.logaddexp.reduce(found[-1])
    print(f"llama.cpp, log probabilities: {np.abs(ours - probabilities).max():.1e}")
    # llama.cpp rounds the activations of each product with quantized weights to 8 bits.
    np.testing.assert_allclose(probabilities, ours, atol=0.1)
