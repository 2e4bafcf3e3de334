"""The encoder inside the TensorFlow graph gives the same ids as the others, with core operations only."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tokenizers
from tensorflow.core.protobuf import saved_model_pb2

from tfgpt.common.errors import UserError
from tfgpt.tokenization.in_graph import pretokenizers
from tfgpt.tokenization.in_graph.byte_level import BytePairMerger, InGraphTokenizer
from tfgpt.tokenization.in_graph.text_ops import utf8_sequences
from tfgpt.tokenization.load import load_tokenizer
from tfgpt.tokenization.tokenizer import Tokenizer
from tfgpt.tokenization.train_tokenizer import byte_tokenizer


@pytest.fixture(scope="module")
def graph(tokenizer: Tokenizer) -> InGraphTokenizer:
    return InGraphTokenizer(tokenizer)


@pytest.fixture(scope="module")
def trained_graph(trained: Tokenizer) -> InGraphTokenizer:
    return InGraphTokenizer(trained)


def test_ids_equal_those_of_tokenizers_on_valid_text(graph, tokenizer, valid_texts, reference_encoder):
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


def test_real_text_equals_the_bulk_encoder(trained_graph, trained, documents):
    whole = "\n\n".join(documents)
    np.testing.assert_array_equal(trained_graph.encode([whole]).flat_values, trained.encode(whole))


def test_a_text_does_not_depend_on_its_neighbours_in_the_batch(trained_graph, broken):
    # The first bytes of a text could complete a sequence, a word or a run of spaces at the end of the one before.
    texts = [b"\xe4\xba", b"\xba", b"wo", b"rd", b"", b"  ", b" ", b"a", b"", *broken]
    together = trained_graph.encode(texts).to_list()
    assert together == [trained_graph.encode([text]).to_list()[0] for text in texts]


@pytest.mark.parametrize("texts", [[], [""], ["", "", ""], ["", "a", ""], [" "]])
def test_empty_texts_and_batches(graph, tokenizer, texts):
    ids = graph.encode(tf.constant(texts, tf.string))
    assert ids.to_list() == [tokenizer.encode(text).tolist() for text in texts]
    assert ids.dtype == tf.int32
    assert graph.decode(ids).numpy().tolist() == [text.encode() for text in texts]


def test_decoding_gives_the_bytes_back(graph, broken_texts):
    assert graph.decode(graph.encode(broken_texts)).numpy().tolist() == broken_texts


def test_padded_rows_decode_without_padding(graph, tokenizer):
    ids = graph.encode(["a longer text", "b"]).to_tensor(tokenizer.padding_id)
    np.testing.assert_array_equal(graph.decode(ids), [b"a longer text", b"b"])


def test_text_that_spells_special_tokens_is_text(graph, tokenizer):
    ids = graph.encode(["<|im_end|><|endoftext|>"]).flat_values.numpy()
    assert not set(ids.tolist()) & set(tokenizer.special_tokens.values())


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


def test_time_for_a_long_word_is_linear_in_its_length(trained_graph, trained):
    def seconds(encode, length: int) -> float:
        word = "expression" * (length // 10)
        times = []
        for _ in range(3):
            start = time.process_time()
            encode(word)
            times.append(time.process_time() - start)
        return min(times)

    for encode in (lambda word: trained_graph.encode([word]), trained.encode):
        seconds(encode, 1000)
        # Eight times the length: a quadratic encoder takes 64 times as long.
        assert seconds(encode, 200_000) < 24 * max(seconds(encode, 25_000), 0.005)


def test_class_pages_are_the_classes_of_tokenizers(every_character):
    pages, page_of = pretokenizers.class_pages()
    classes = pages.reshape(-1, 256)[page_of].reshape(-1)
    expected = np.full(0x110000, pretokenizers.OTHER)
    code_points = np.array([ord(character) for character in every_character])
    for kind, expression in (
        (pretokenizers.LETTER, r"\p{L}+"),
        (pretokenizers.NUMBER, r"\p{N}+"),
        (pretokenizers.SPACE, r"\s+"),
    ):
        outside = np.zeros(len(code_points), bool)
        cutter = tokenizers.pre_tokenizers.Split(tokenizers.Regex(expression), "removed")
        for _, (start, end) in cutter.pre_tokenize_str(every_character):
            outside[start:end] = True
        expected[code_points[~outside]] = kind
    np.testing.assert_array_equal(classes, expected)


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


class TextToText(tf.Module):
    """What a server would load: text to ids and ids to text."""

    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        self.tokenizer = InGraphTokenizer(tokenizer)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def encode(self, text):
        ids = self.tokenizer.encode(text)
        return {"ids": ids.flat_values, "splits": ids.row_splits, "text": self.tokenizer.decode(ids)}


@pytest.fixture(scope="module")
def saved_models(trained: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both tokenizers of ours as SavedModels."""
    paths = {}
    for name, tokenizer in (("trained", trained), ("bytes", byte_tokenizer())):
        paths[name] = tmp_path_factory.mktemp("saved") / name
        module = TextToText(tokenizer)
        tf.saved_model.save(module, str(paths[name]), signatures={"serving_default": module.encode})
    return paths


LOADER = """
import sys
import numpy as np
import tensorflow as tf
assert "tensorflow_text" not in sys.modules and "keras_hub" not in sys.modules
texts = list(np.load("texts.npy", allow_pickle=False))
for name in ("trained", "bytes"):
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        loaded = tf.compat.v1.saved_model.load(session, ["serve"], dict(zip(sys.argv[1::2], sys.argv[2::2]))[name])
        signature = loaded.signature_def["serving_default"]
        outputs = {output: tensor.name for output, tensor in signature.outputs.items()}
        result = session.run(outputs, {signature.inputs["text"].name: texts})
    assert [text for text in result.pop("text")] == [bytes(text) for text in texts]
    np.savez(name, **result)
"""


def test_saved_model_runs_in_a_session_of_core_tensorflow(trained, saved_models, tmp_path, tricky, broken):
    # numpy's S type drops trailing zero bytes, so none of these texts ends in one.
    texts = [content for content in [*(text.encode() for text in tricky), *broken] if not content.endswith(b"\0")]
    np.save(tmp_path / "texts.npy", np.array(texts))
    names = [word for name, path in saved_models.items() for word in (name, path)]
    subprocess.run([sys.executable, "-c", LOADER, *names], check=True, cwd=tmp_path)
    for name, tokenizer in (("trained", trained), ("bytes", byte_tokenizer())):
        expected = tokenizer.encode_batch(texts)
        with np.load(tmp_path / f"{name}.npz") as result:
            np.testing.assert_array_equal(result["ids"], np.concatenate(expected))
            np.testing.assert_array_equal(np.diff(result["splits"]), [len(ids) for ids in expected])


def test_saved_graph_holds_no_operation_of_another_library(saved_models):
    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString((saved_models["trained"] / "saved_model.pb").read_bytes())
    graph = saved.meta_graphs[0].graph_def
    names = {node.op for node in graph.node} | {
        node.op for function in graph.library.function for node in function.node_def
    }
    assert {"DecodeRaw", "GatherV2", "ScatterNd"} <= names
    # tf.raw_ops lists the operations of TensorFlow itself, not those of libraries that were loaded.
    foreign = names - set(dir(tf.raw_ops)) - {function.signature.name for function in graph.library.function}
    assert not foreign
    assert not {name for name in names if "PyFunc" in name or "Table" in name}


def test_works_inside_a_dataset_map(trained_graph, trained, tricky, chinese):
    dataset = tf.data.Dataset.from_tensor_slices(tricky).batch(7).map(trained_graph.encode)
    found = [row for batch in dataset for row in batch.to_list()]
    assert found == [trained.encode(text).tolist() for text in tricky]
    assert chinese in tricky
