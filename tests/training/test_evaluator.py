"""Evaluation without a trainer: exact metrics, and data without tokens."""

import numpy as np
import pytest
import tensorflow as tf

from tests.training.small_step import ROWS, batches, byte_lengths, dataset, make_trainer
from tfgpt.common.errors import UserError
from tfgpt.training.evaluator import Evaluator
from tfgpt.training.losses import CausalLanguageModelingLoss


@pytest.mark.parametrize("mode", ["graph", "xla"])
def test_evaluation_is_exact_over_the_dataset_without_an_optimizer(mode):
    decoder = make_trainer(model={"logit_soft_cap": 3.0}).decoder
    loss, rows = CausalLanguageModelingLoss(label_smoothing=0.1, z_loss=0.01), batches(3, seed=4)
    rows[0]["weights"] *= np.linspace(0.5, 1, ROWS, dtype=np.float32)[:, None]
    nats = correct = tokens = text_nats = text_bytes = 0.0
    for batch in rows:
        log_probabilities = tf.nn.log_softmax(decoder({"token_ids": batch["token_ids"]})).numpy()
        losses = -np.take_along_axis(log_probabilities, batch["targets"][..., None], -1)[..., 0]
        lengths = byte_lengths()[batch["targets"]]
        nats += (losses * batch["weights"]).sum()
        tokens += batch["weights"].sum()
        correct += ((log_probabilities.argmax(-1) == batch["targets"]) * batch["weights"]).sum()
        text_nats += (losses * batch["weights"])[lengths > 0].sum()
        text_bytes += (lengths * batch["weights"]).sum()
    evaluator = Evaluator(decoder, loss, token_byte_lengths=byte_lengths(), mode=mode)
    logs = evaluator.evaluate(dataset(rows))
    assert logs["loss"] == pytest.approx(nats / tokens, rel=1e-5)
    assert logs["accuracy"] == pytest.approx(correct / tokens)
    assert logs["tokens"] == pytest.approx(tokens)
    assert logs["bits_per_byte"] == pytest.approx(text_nats / np.log(2) / text_bytes, rel=1e-5)


def test_data_without_a_token_to_predict_are_refused_and_without_bytes_there_are_no_bits_per_byte():
    [batch] = batches(1)
    evaluator = Evaluator(make_trainer().decoder, CausalLanguageModelingLoss())
    assert "bits_per_byte" not in evaluator.evaluate(dataset([batch]))
    with pytest.raises(UserError, match="^validation: there is no token to predict"):
        evaluator.evaluate(dataset([{**batch, "weights": 0 * batch["weights"]}]))
