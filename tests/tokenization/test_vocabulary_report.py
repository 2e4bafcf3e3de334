"""The vocabulary report."""

from tests.tokenization.texts import CHINESE
from tfgpt.tokenization.train_tokenizer import byte_tokenizer, train_bpe
from tfgpt.tokenization.vocabulary_report import vocabulary_report


def test_report_of_bytes_equals_the_counts_by_hand():
    assert vocabulary_report(byte_tokenizer(), iter(["abc", "aé"]), longest=3) == [
        "vocabulary          260 ids",
        "text                2 documents, 6 bytes, 6 tokens (3.0 a document)",
        "bytes per token     1.000 (0.833 characters)",
        "unused ids          251 of 256 (98.0%)",  # a, b, c and the two bytes of é are used
        "bytes in merges     0.0%",
        "90% of the tokens   are 5 ids",  # a twice, four once: 6 tokens, 90% of which is 5.4
        r"longest tokens      '\x00' '\x01' '\x02'",
    ]


def test_report_of_merges_equals_the_counts_by_hand():
    tokenizer = train_bpe(["abab abab"], 262)
    assert tokenizer.encode("abab").tolist() == [257]
    report = vocabulary_report(tokenizer, ["abab", "x"], longest=2)
    assert report[1] == "text                2 documents, 5 bytes, 2 tokens (1.0 a document)"
    assert report[2] == "bytes per token     2.500 (2.500 characters)"
    assert report[4:] == [
        "bytes in merges     80.0%",
        "90% of the tokens   are 2 ids",
        "longest tokens      'abab' 'ab'",
    ]


def test_broken_documents_and_no_documents_have_a_report(trained):
    assert vocabulary_report(trained, [CHINESE, "\ud800", ""])[1].startswith("text                3 documents")
    empty = vocabulary_report(trained, [])
    assert empty[1] == "text                0 documents, 0 bytes, 0 tokens (0.0 a document)"
    assert empty[5] == "90% of the tokens   are 0 ids"
