"""The encoder inside the TensorFlow graph gives the same ids as the others, with core operations only."""

import random

import numpy as np
import pytest
import tensorflow as tf

from tests.tokenization.texts import BROKEN, TRICKY, reference_encoder
from tfgpt.common.errors import UserError
from tfgpt.tokenization.in_graph.byte_level import BytePairMerger, InGraphTokenizer
from tfgpt.tokenization.in_graph.text_ops import utf8_sequences
from tfgpt.tokenization.load import load_tokenizer
from tfgpt.tokenization.pretokenizer import FAMILIES
from tfgpt.tokenization.tokenizer import Tokenizer
from tfgpt.tokenization.tokenizer_json import added_token


@pytest.fixture(scope="module")
def graph(tokenizer: Tokenizer) -> InGraphTokenizer:
    return InGraphTokenizer(tokenizer)


@pytest.fixture(scope="module")
def trained_graph(trained: Tokenizer) -> InGraphTokenizer:
    return InGraphTokenizer(trained)


def test_ids_equal_those_of_tokenizers_on_valid_text(graph, tokenizer, valid_texts):
    reference = reference_encoder(tokenizer)
    for text, ids in zip(valid_texts, graph.encode(valid_texts).to_list(), strict=True):
        assert ids == reference(text), text


def test_ids_equal_those_of_the_bulk_encoder_on_any_bytes(graph, tokenizer, broken_texts):
    for content, ids in zip(broken_texts, graph.encode(broken_texts).to_list(), strict=True):
        assert ids == tokenizer.encode(content).tolist(), content


def test_text_is_cut_where_the_bulk_encoder_cuts_it(uncut, valid_texts, broken_texts):
    graph = InGraphTokenizer(uncut)
    for texts in (valid_texts, broken_texts):
        for text, ids in zip(texts, graph.encode(texts).to_list(), strict=True):
            assert ids == uncut.encode(text).tolist(), text


def test_ids_of_every_code_point_equal_those_of_tokenizers(trained_graph, every_character_ids):
    texts, expected = every_character_ids
    assert trained_graph.encode(texts).to_list() == expected


def test_every_pair_of_bytes_equals_the_bulk_encoder(trained_graph, trained):
    pairs = [bytes([first, second]) for first in range(256) for second in range(256)]
    in_graph_ids = trained_graph.encode(pairs)
    np.testing.assert_array_equal(in_graph_ids.flat_values, np.concatenate(trained.encode_batch(pairs)))
    assert trained_graph.decode(in_graph_ids).numpy().tolist() == pairs


def test_a_text_does_not_depend_on_its_neighbours_in_the_batch(trained_graph):
    # The first bytes of a text could complete a sequence, a word or a run of spaces at the end of the one before.
    texts = [b"\xe4\xba", b"\xba", b"wo", b"rd", b"", b"  ", b" ", b"a", b"", *BROKEN]
    together = trained_graph.encode(texts).to_list()
    assert together == [trained_graph.encode([text]).to_list()[0] for text in texts]


@pytest.mark.parametrize("texts", [[], [""], ["", "", ""], ["", "a", ""], [" "]])
def test_empty_texts_and_batches(graph, tokenizer, texts):
    ids = graph.encode(tf.constant(texts, tf.string))
    assert ids.to_list() == [tokenizer.encode(text).tolist() for text in texts]
    assert ids.dtype == tf.int32
    assert graph.decode(ids).numpy().tolist() == [text.encode() for text in texts]


def test_padded_rows_decode_without_padding(graph, tokenizer):
    ids = graph.encode(["a longer text", "b"]).to_tensor(tokenizer.padding_id)
    np.testing.assert_array_equal(graph.decode(ids), [b"a longer text", b"b"])


@pytest.mark.parametrize("unit", ["a", "abcdefgh", "人", " ", "\n", "!", "7", "e\u0301"])
def test_long_word_equals_the_bulk_encoder(trained_graph, trained, unit):
    word = unit * (100_000 // len(unit))
    np.testing.assert_array_equal(trained_graph.encode([word]).flat_values, trained.encode(word))


def test_rounds_of_merging_do_not_grow_with_the_word(trained, monkeypatch):
    rounds = []
    one_round = BytePairMerger._round
    monkeypatch.setattr(BytePairMerger, "_round", lambda *arguments: rounds.append(1) or one_round(*arguments))
    tf.config.run_functions_eagerly(True)
    try:
        graph = InGraphTokenizer(trained)
        counts = []
        for length in (1_000, 100_000):
            rounds.clear()
            graph.encode(["expression" * (length // 10)])
            counts.append(len(rounds))
    finally:
        tf.config.run_functions_eagerly(False)
    assert counts[0] == counts[1]
    assert 2 <= counts[0] <= 32


def test_well_formed_sequences_are_those_that_python_decodes(broken_texts):
    texts = [content for content in broken_texts if content]
    first = [place == 0 for content in texts for place in range(len(content))]
    code_points, lengths = utf8_sequences(tf.constant(list(b"".join(texts))), tf.constant(first))
    expected_points, expected_lengths = [], []
    for content in texts:
        for character in content.decode("utf-8", "surrogateescape"):
            escaped = "\udc80" <= character <= "\udcff"
            size = 1 if escaped else len(character.encode())
            expected_points += [0 if escaped else ord(character)] + [0] * (size - 1)
            expected_lengths += [0 if escaped else size] + [0] * (size - 1)
    assert code_points.numpy().tolist() == expected_points
    assert lengths.numpy().tolist() == expected_lengths


def test_unknown_pre_tokenizer_is_refused_by_one_line_naming_the_file(changed_file):
    def change(document):
        steps = [{"type": "Punctuation", "behavior": "Isolated"}, document["pre_tokenizer"]]
        document["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}

    path = changed_file(change)
    with pytest.raises(UserError, match=rf"^{path}: cannot be run inside the TensorFlow graph: its pre-tokenizer"):
        InGraphTokenizer(load_tokenizer(path))


def of_family(uncut: Tokenizer, family: str, **model) -> Tokenizer:
    document = {**uncut.document, "pre_tokenizer": FAMILIES[family]}
    document["normalizer"] = {"type": "NFC"} if family == "qwen2" else None
    return Tokenizer({**document, "model": {**uncut.document["model"], **model}})


def assert_ids_are_equal(tokenizer: Tokenizer, texts: list[str]) -> InGraphTokenizer:
    graph, reference = InGraphTokenizer(tokenizer), reference_encoder(tokenizer)
    for text, ids in zip(texts, graph.encode(texts).to_list(), strict=True):
        assert ids == reference(text) == tokenizer.encode(text).tolist(), text
    return graph


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_equal_those_of_tokenizers(family, uncut, mixtures, broken_texts):
    tokenizer = of_family(uncut, family)
    graph = assert_ids_are_equal(tokenizer, mixtures)
    for content, ids in zip(broken_texts, graph.encode(broken_texts).to_list(), strict=True):
        assert ids == tokenizer.encode(content).tolist(), content


def test_bytes_without_a_token_are_dropped_as_tokenizers_drops_them(uncut, mixtures):
    missing = ["Ā", "÷", "ÿ", "Ã"]  # the bytes 00, F7, FF and C3; C3 begins é and its relatives
    alphabet = set(missing)
    model = uncut.document["model"]
    merges = [pair for pair in model["merges"] if not alphabet & {*pair[0], *pair[1]}]
    vocabulary = {token: identifier for token, identifier in model["vocab"].items() if not alphabet & {*token}}
    tokenizer = of_family(uncut, "smollm", vocab=vocabulary, merges=merges)
    assert tokenizer.missing_bytes == [0x00, 0xC3, 0xF7, 0xFF]
    texts = [*mixtures[:2000], "é", "\x00", "a\x00b\x00", "été l'été", ""]
    # `tokenizers` gives added tokens ids behind the vocabulary's size, which is smaller now; there are none in texts.
    assert_ids_are_equal(tokenizer, texts)
    assert tokenizer.encode(b"a\xff\xf7b").tolist() == tokenizer.encode("a").tolist() + tokenizer.encode("b").tolist()


def test_a_pre_token_that_is_a_token_needs_no_merges(uncut):
    model = uncut.document["model"]
    first = max(model["vocab"].values()) + 5
    # As in Llama 3's vocabulary, tokens that no merge makes; one is the beginning of another.
    added = {"Ġstrawberry": first, "straw": first + 1, "strawberry": first + 2, "ä¸ĸçķĮ": first + 3}
    added |= {f"<{number}>": first - 4 + number for number in range(4)}
    tokenizer = of_family(uncut, "llama3", vocab={**model["vocab"], **added}, ignore_merges=True)
    texts = ["strawberry straw", "a strawberry, strawberrys 世界!", "世界 straw" * 3, "", "straw"]
    found = assert_ids_are_equal(tokenizer, texts).encode(texts).to_list()
    assert found[-1] == [first + 1] and first in found[1] and first + 2 in found[0]
    merging = of_family(uncut, "llama3", vocab={**model["vocab"], **added})
    assert len(merging.encode("straw")) > 1


def test_added_tokens_are_found_in_the_text_as_tokenizers_finds_them(uncut, mixtures):
    first, generator = uncut.vocabulary_size, random.Random(9)
    names = ["<tool_call>", "</tool_call>", "<think>", "<think>>", "人间", "<|fim|>"]
    added = [{**added_token(first + number, name), "special": False} for number, name in enumerate(names)]
    base = of_family(uncut, "qwen2").document
    tokenizer = Tokenizer({**base, "added_tokens": [*base["added_tokens"], *added]})
    parts = [*names, *names, *"<think < tool_call> e\u0301 \u0301 a 人 <|im_end|> \uf8fe \uf8fe2".split(), " ", "\n"]
    texts = ["", *mixtures[:500], *("".join(generator.choices(parts, k=generator.randrange(9))) for _ in range(2000))]
    graph = assert_ids_are_equal(tokenizer, texts)
    assert graph.encode(tf.constant([], tf.string)).to_list() == []
    assert graph.encode([b"<think>\xff<think>>"]).to_list()[0][0] == first + 2


def test_added_tokens_that_may_overlap_are_refused_in_graph(uncut):
    base = of_family(uncut, "llama3").document
    added = {**added_token(uncut.vocabulary_size, "    "), "special": False}
    tokenizer = Tokenizer({**base, "added_tokens": [*base["added_tokens"], added]})
    with pytest.raises(UserError, match="it looks for added tokens in the text that may overlap"):
        InGraphTokenizer(tokenizer)


def test_saved_graph_of_core_operations_gives_the_same_ids(tokenizer, tmp_path):
    module = tf.Module()
    module.tokenizer = InGraphTokenizer(tokenizer)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "text")])
    def encode(text):
        ids = module.tokenizer.encode(text)
        return {"ids": ids.flat_values, "splits": ids.row_splits, "text": module.tokenizer.decode(ids)}

    tf.saved_model.save(module, str(tmp_path), signatures={"serving_default": encode})
    texts = [*(text.encode() for text in TRICKY), *BROKEN]
    with tf.compat.v1.Session(graph=tf.Graph()) as session:  # the loader of TensorFlow Serving
        loaded = tf.compat.v1.saved_model.load(session, ["serve"], str(tmp_path))
        signature = loaded.signature_def["serving_default"]
        outputs = {output: tensor.name for output, tensor in signature.outputs.items()}
        result = session.run(outputs, {signature.inputs["text"].name: texts})
    expected = tokenizer.encode_batch(texts)
    assert list(result["text"]) == texts
    np.testing.assert_array_equal(result["ids"], np.concatenate(expected))
    np.testing.assert_array_equal(np.diff(result["splits"]), [len(ids) for ids in expected])
    graph = loaded.graph_def
    names = {node.op for nodes in (graph.node, *(one.node_def for one in graph.library.function)) for node in nodes}
    assert {"DecodeRaw", "GatherV2"} <= names
    # tf.raw_ops lists the operations of TensorFlow itself, not those of libraries that were loaded.
    assert not names - set(dir(tf.raw_ops)) - {function.signature.name for function in graph.library.function}
    assert not {name for name in names if "PyFunc" in name or "Table" in name}
