"""Bits per byte of an export's weights, against the whole model's own numbers."""

import math

import numpy as np
import pytest
import tensorflow as tf

from tests.serving.conftest import DEFAULTS
from tests.serving.models import CONTEXT
from tfgpt.common.atomic_files import write_json
from tfgpt.common.errors import UserError
from tfgpt.pipeline.chat_shards import write_chat_shards
from tfgpt.serving.export_quality import bits_per_byte, evaluation_ids
from tfgpt.serving.quantization import ServedWeights
from tfgpt.serving.saved_model import ServedModel
from tfgpt.tokenization.chat_template import encode_messages


def test_bits_per_byte_count_text_and_no_special_token(generator):
    tokenizer, context = generator.tokenizer, CONTEXT
    start = tokenizer.end_of_text_id
    ids = np.concatenate(
        [[start], tokenizer.encode("The quick brown fox jumps."), [start], tokenizer.encode("dog" * 40)]
    )
    model = ServedModel(generator.decoder, ServedWeights(generator.decoder, "float32"), tokenizer, DEFAULTS, 9)
    found = bits_per_byte(model, ids.astype(np.int32), tokenizer)
    nats = 0.0
    for first in range(0, len(ids) - 1, context - 1):
        row = ids[first : first + context].astype(np.int32)
        log_probabilities = tf.nn.log_softmax(generator.decoder({"token_ids": row[None]}))[0].numpy()
        nats -= sum(log_probabilities[place, token] for place, token in enumerate(row[1:]) if token != start)
    assert found == pytest.approx(nats / math.log(2) / (26 + 120), rel=1e-4)


def test_a_text_is_read_as_far_as_asked(tmp_path, generator):
    path = tmp_path / "text.txt"
    path.write_text("The quick brown fox")
    ids, name = evaluation_ids(tmp_path, str(path), generator.tokenizer, 9)
    assert generator.tokenizer.decode(ids) == "The quick" and name == str(path)
    assert evaluation_ids(tmp_path, str(path), generator.tokenizer, 0) is None
    assert evaluation_ids(tmp_path, "", generator.tokenizer, 9) is None
    path.write_text("")
    with pytest.raises(UserError, match="is empty"):
        evaluation_ids(tmp_path, str(path), generator.tokenizer, 9)
    with pytest.raises(UserError, match="--evaluation_text: /nowhere: no such file"):
        evaluation_ids(tmp_path, "/nowhere", generator.tokenizer, 9)


def test_what_was_held_out_of_a_chat_run_is_read_too(tmp_path, generator):
    said = [{"role": "user", "content": "quick?"}, {"role": "assistant", "content": "The lazy dog."}]
    options = {"length": 40, "repeat_system": True, "sources": {"a": "a"}}
    document = {"messages": said, "source": "a"}
    conversations = write_chat_shards([document], generator.tokenizer, tmp_path / "held_out", **options)
    held_out = {"directory": str(conversations.directory), "fingerprint": conversations.fingerprint}
    write_json(tmp_path / "training.json", {"data": {"validation": held_out}})
    ids, _ = evaluation_ids(tmp_path, "", generator.tokenizer, 10_000)
    assert ids.tolist() == encode_messages(generator.tokenizer, said)[0][: len(ids)].tolist()
    assert "The lazy dog." in generator.tokenizer.decode(ids)
    write_json(tmp_path / "training.json", {"data": {"validation": {"prompts": 3}}})
    assert evaluation_ids(tmp_path, "", generator.tokenizer, 10_000) is None
