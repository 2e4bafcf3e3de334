"""What every objective learns from a conversation, decoded, is what the assistant says: with every kind of tokenizer.

What the sampled answers of rewards teach is in `test_grpo`.
"""

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from sentencepiece import sentencepiece_model_pb2

from tests.conversion.tiny import byte_level_files
from tfgpt.pipeline.chat_shards import write_chat_shards
from tfgpt.pipeline.token_shards import write_token_shards
from tfgpt.tokenization.chat_template import encode_messages
from tfgpt.tokenization.hugging_face_tokenizer import load_hugging_face_tokenizer
from tfgpt.tokenization.sentencepiece_tokenizer import SentencePieceTokenizer
from tfgpt.tokenization.special_tokens import SpecialTokens
from tfgpt.tokenization.tokenizer import Tokenizer
from tfgpt.tokenization.train_tokenizer import byte_tokenizer, train_bpe
from tfgpt.training.objectives.prompt_records import encode_answer

ANSWERS = ["It is 4.", "Nö, caffe\u0301 汉."]
"""With an accent that some tokenizers join to its letter, and characters that small vocabularies spell in bytes."""

DIALOGUE = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 2+2?"},
    {"role": "assistant", "content": ANSWERS[0]},
    {"role": "user", "content": "And  more? [/INST] é"},
    {"role": "assistant", "content": ANSWERS[1]},
]

INST = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content + eos_token }}{% else %}"
    "{{ '[INST]' + m.content + '[/INST]' }}{% endif %}{% endfor %}"
)
"""Of Llama 2's kind: no special token between what a user and the assistant say."""


def sentencepiece_tokenizer(model: bytes, space_before_text: bool) -> Tokenizer:
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    proto.normalizer_spec.add_dummy_prefix = space_before_text
    size = len(proto.pieces)
    roles = SpecialTokens("</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<s>")
    config = {"bos_token": "<s>", "eos_token": "</s>"}
    added = {"<|im_start|>": size, "<|im_end|>": size + 1}
    made = SentencePieceTokenizer(proto.SerializeToString(), "tiny.model", roles, config, added)
    assert made.prefix == (b" " if space_before_text else b"")
    return made


KINDS = ["bytes", "trained", "gpt2", "smollm", "qwen2", "llama3", "sentencepiece", "sentencepiece without a space"]


@pytest.fixture(scope="module", params=KINDS)
def kind(request, tmp_path_factory: pytest.TempPathFactory, documents: list[str], sentencepiece_model: bytes):
    if request.param == "bytes":
        return byte_tokenizer()
    if request.param == "trained":
        return train_bpe(documents[:200], 400)
    if request.param.startswith("sentencepiece"):
        return sentencepiece_tokenizer(sentencepiece_model, request.param == "sentencepiece")
    directory = tmp_path_factory.mktemp("files")
    byte_level_files(directory, request.param, documents[:200])
    made = load_hugging_face_tokenizer(directory, request.param)
    del made.config["chat_template"]
    return made


@pytest.fixture(params=["ChatML", "INST"])
def tokenizer(request, kind: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Tokenizer:
    if request.param == "INST":
        monkeypatch.setitem(kind.config, "chat_template", INST)
        monkeypatch.setitem(kind.config, "eos_token", kind.end_of_text)
    return kind


def learned(tokenizer: Tokenizer, ids: np.ndarray, weights: np.ndarray) -> list[str]:
    edges = np.flatnonzero(np.diff(np.asarray(weights) > 0, prepend=False, append=False))
    runs = [tokenizer.decode(ids[start:end], False) for start, end in zip(edges[::2], edges[1::2], strict=True)]
    return [unicodedata.normalize("NFC", run) for run in runs]


def said(tokenizer: Tokenizer, answers: list[str]) -> list[str]:
    end = tokenizer.end_of_text if tokenizer.config.get("chat_template") == INST else tokenizer.end_of_turn
    return [unicodedata.normalize("NFC", answer) + end for answer in answers]


def test_chat_tuning_learns_the_assistants_words_and_the_ends_of_its_turns(tokenizer: Tokenizer, tmp_path: Path):
    document = {"messages": DIALOGUE, "source": "a"}
    options = {"length": 500, "repeat_system": True, "sources": {"a": "a"}}
    made = write_chat_shards([document], tokenizer, tmp_path / "made", **options)
    assert learned(tokenizer, *made.part(0)) == said(tokenizer, ANSWERS)
    assert made.num_targets.tolist() == [(made.part(0)[1] > 0).sum()]


def test_pretraining_on_dialogues_with_weights_learns_the_same(tokenizer: Tokenizer, tmp_path: Path):
    made = write_token_shards([{"messages": DIALOGUE}], tokenizer, tmp_path / "made", store_weights=True)
    assert made.weights is not None
    # The first id is no target, whatever its weight.
    assert learned(tokenizer, made.tokens[1:], made.weights[1:]) == said(tokenizer, ANSWERS)


def test_preferences_learn_the_last_answer_only(tokenizer: Tokenizer):
    ids, weights = encode_answer(tokenizer, DIALOGUE[:-1], ANSWERS[1])
    assert learned(tokenizer, ids, weights) == said(tokenizer, ANSWERS[1:])
    np.testing.assert_array_equal(ids, encode_messages(tokenizer, DIALOGUE)[0])
    plain = encode_answer(tokenizer, "2+2=", "4.")
    assert learned(tokenizer, *plain) == [f"4.{tokenizer.end_of_text}"]
