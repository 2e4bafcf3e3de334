"""When tiktoken's way of merging gives the same tokens as a list of merges, and what happens when it does not."""

import pytest

from tests.tokenization.texts import TRICKY, reference_encoder
from tfgpt.tokenization.encoders import BytesEncoder, ReferenceEncoder, TiktokenEncoder
from tfgpt.tokenization.in_graph.byte_level import InGraphTokenizer
from tfgpt.tokenization.tokenizer import Tokenizer
from tfgpt.tokenization.tokenizer_json import new_document


def tokenizer_of(*merges: tuple[bytes, bytes]) -> Tokenizer:
    return Tokenizer(new_document(merges))


def test_trained_tokenizers_run_in_tiktoken_and_bytes_need_no_library(trained):
    assert isinstance(trained.encoder, TiktokenEncoder)
    assert isinstance(tokenizer_of().encoder, BytesEncoder)


def test_merges_that_training_could_not_find_run_in_tokenizers_itself():
    # tiktoken would join "ab"+"c" and "a"+"bc" alike; the list joins only the second, which never comes about.
    odd = tokenizer_of((b"a", b"b"), (b"b", b"c"), (b"a", b"bc"))
    assert isinstance(odd.encoder, ReferenceEncoder)
    assert odd.encode("abc").tolist() == reference_encoder(odd)("abc") == [256, ord("c")]


def test_a_merge_before_the_one_that_makes_its_part_runs_in_tokenizers_itself():
    # Its part comes about too late for it: "ab" and "c" are joined all the same, as soon as there is "ab".
    odd = tokenizer_of((b"ab", b"c"), (b"a", b"b"))
    vocabulary = odd.document["model"]["vocab"]
    assert vocabulary["abc"] == 256 and vocabulary["ab"] == 257
    assert isinstance(odd.encoder, ReferenceEncoder)
    assert odd.encode("abc ab").tolist() == reference_encoder(odd)("abc ab") == [256, ord(" "), 257]


def test_second_merge_to_the_same_token_changes_nothing():
    double = tokenizer_of((b"a", b"b"), (b"ab", b"c"), (b"b", b"c"), (b"a", b"bc"))
    assert isinstance(double.encoder, TiktokenEncoder)
    reference = reference_encoder(double)
    for text in ("abc", "aabcc", "abcabc bc", "aabbcc", "cabca"):
        assert double.encode(text).tolist() == reference(text)


def test_ids_need_not_be_in_the_order_of_ranks(trained):
    document = trained.document
    vocabulary = document["model"]["vocab"]
    size = len(vocabulary)
    turned = {token: size - 1 - identifier for token, identifier in vocabulary.items()}
    tokenizer = Tokenizer({**document, "model": {**document["model"], "vocab": turned}})
    assert isinstance(tokenizer.encoder, TiktokenEncoder)
    reference = reference_encoder(tokenizer)
    graph = InGraphTokenizer(tokenizer)
    in_graph = graph.encode(TRICKY).to_list()
    for text, ids in zip(TRICKY, in_graph, strict=True):
        assert tokenizer.encode(text).tolist() == reference(text) == ids
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", ["a\ud800", "\udcff"])
def test_encoders_refuse_lone_surrogates_and_leave_them_to_the_tokenizer(trained, text):
    for encoder in (trained.encoder, ReferenceEncoder(trained.document), BytesEncoder(trained.id_of_byte)):
        with pytest.raises(UnicodeEncodeError):
            encoder.encode(text)
        with pytest.raises(UnicodeEncodeError):
            encoder.encode_many(["x", text])
