"""Texts for the tokenizers."""

from pydoc_data.topics import topics

import pytest
import sentencepiece


@pytest.fixture(scope="session")
def documents() -> list[str]:
    """Real text: the language reference that every Python brings along, cut to paragraphs."""
    return "\n\n".join(topics[name] for name in sorted(topics)).split("\n\n")


@pytest.fixture(scope="session")
def sentencepiece_model(tmp_path_factory, documents) -> bytes:
    """A small model of Llama 2's kind: BPE, byte fallback, a space before each text."""
    folder = tmp_path_factory.mktemp("sentencepiece")
    (folder / "text.txt").write_text("\n".join(documents[:400]))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"), model_prefix=str(folder / "tiny"), vocab_size=420, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        character_coverage=0.99, split_digits=True, allow_whitespace_only_pieces=True, minloglevel=2,
    )  # fmt: skip
    return (folder / "tiny.model").read_bytes()
