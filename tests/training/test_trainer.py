"""The training step: accumulation, replicas, clipping, averages, skipped updates, dropout, resuming, Keras's fit."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.training.small_step import (
    LENGTH,
    ROWS,
    VOCABULARY,
    assert_states_close,
    batches,
    dataset,
    make_trainer,
    state,
)
from tfgpt.common.errors import UserError
from tfgpt.model.dropout import current_dropout_seed
from tfgpt.training.trainer import Trainer, average_decay


def trained(trainer: Trainer, rows: list[dict[str, np.ndarray]], calls: tuple[int, ...] = ()) -> dict[str, np.ndarray]:
    """The state after one update for each batch, grouped into calls."""
    feed = iter(dataset(rows))
    for count in calls or (len(rows),):
        trainer.train_steps(feed, count)
    return state(trainer)


def objective_of_all(trainer: Trainer, batch: dict[str, np.ndarray]) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """The mean loss over a batch's weight and its gradients, computed in the plainest way."""
    with tf.GradientTape() as tape:
        logits = trainer.decoder({"token_ids": batch["token_ids"]}, training=True)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["targets"], logits)
        loss = tf.reduce_sum(losses * batch["weights"]) / tf.reduce_sum(batch["weights"])
    return loss, tape.gradient(loss, [variable.value for variable in trainer.decoder.trainable_variables])


def flat(trainer: Trainer) -> np.ndarray:
    return np.concatenate([variable.numpy().ravel() for variable in trainer.decoder.trainable_variables])


@pytest.mark.parametrize("mode", ["graph", "xla"])
def test_one_update_is_kerass_adamw_on_the_clipped_gradient_of_the_weighted_mean(mode):
    trainer = make_trainer(optimizer={"max_grad_norm": 0.2, "weight_decay": 0.0}, step={"compile": mode})
    reference = make_trainer()
    batch = batches(1)[0]
    before = flat(trainer)
    loss, gradients = objective_of_all(reference, batch)
    clipped, norm = tf.clip_by_global_norm(gradients, 0.2)
    theirs = keras.optimizers.AdamW(1e-2 / 3, beta_2=0.95, epsilon=1e-8, weight_decay=0.0)
    theirs.apply(clipped, reference.decoder.trainable_variables)
    logs = trainer.train_steps(iter(dataset([batch])), 1)
    assert float(norm) > 0.2
    assert logs["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert logs["gradient_norm"] == pytest.approx(float(norm), rel=1e-4)
    assert logs["learning_rate"] == pytest.approx(1e-2 / 3)
    assert logs["tokens"] == batch["weights"].sum()
    change = np.linalg.norm(flat(trainer) - before)
    assert logs["update_ratio"] == pytest.approx(change / np.linalg.norm(before), rel=1e-4)
    for mine, other in zip(trainer.decoder.trainable_variables, reference.decoder.trainable_variables, strict=True):
        # Adam's first update is about ±learning rate: where a gradient is nearly zero, its sign is rounding.
        np.testing.assert_allclose(mine.numpy(), other.numpy(), atol=2e-5, err_msg=mine.path)


def test_accumulation_changes_nothing_with_ragged_weights():
    settings = {"optimizer": {"max_grad_norm": 0.3, "ema_decay": 0.9}}
    whole = trained(make_trainer(**settings), batches(4))
    for steps in (2, 8):
        parts = trained(make_trainer(**settings, step={"gradient_accumulation_steps": steps}), batches(4))
        assert_states_close(whole, parts, 2e-5)


def test_grouping_updates_into_calls_changes_nothing_and_traces_once():
    one, other = make_trainer(), make_trainer()
    by_ones = trained(one, batches(6), (1,) * 6)
    grouped = trained(other, batches(6), (1, 3, 2))
    assert_states_close(by_ones, grouped)
    assert other.functions.functions["train_loop", "graph"].experimental_get_tracing_count() == 1


def test_an_update_that_is_not_finite_changes_nothing_but_the_counters():
    trainer = make_trainer(optimizer={"ema_decay": 0.9})
    good, (bad, worse) = batches(3), batches(2, seed=8)
    bad["weights"][0, 0] = np.inf
    worse["weights"][0, 0] = 1e30
    gradients, sums = trainer.gradients({name: tf.constant(value) for name, value in worse.items()})
    assert np.isfinite(sums["loss_sum"]) and not np.isfinite(tf.linalg.global_norm(gradients))
    before = trained(trainer, good)
    logs = trainer.train_steps(iter(dataset([bad, worse])), 2)
    after = state(trainer)
    assert logs["skipped"] == 2
    assert after.pop("counters/skipped_updates") == 2
    assert after.pop("counters/consecutive_skipped") == 2
    assert after.pop("optimizer/iteration") == 5
    assert_states_close({name: before[name] for name in after}, after)
    trainer.train_steps(iter(dataset(good)), 1)
    assert trainer.skipped_updates.numpy() == 2
    assert trainer.consecutive_skipped.numpy() == 0
    assert all(np.isfinite(value).all() for value in state(trainer).values())


def test_skipped_updates_are_left_out_of_the_calls_mean_loss():
    good, bad = batches(1)[0], batches(1, seed=8)[0]
    bad["weights"][0, 0] = np.nan
    alone = make_trainer().train_steps(iter(dataset([good])), 1)
    mixed = make_trainer().train_steps(iter(dataset([good, bad])), 2)
    assert mixed["loss"] == alone["loss"]
    assert mixed["tokens"] == alone["tokens"]
    assert mixed["skipped"] == 1


def test_averages_follow_the_weights_as_written_and_stand_in_for_them():
    trainer = make_trainer(optimizer={"ema_decay": 0.5})
    variable, average = trainer.decoder.trainable_variables[2], trainer.averages[2]
    expected = variable.numpy().copy()
    feed = iter(dataset(batches(4)))
    for step in range(4):
        trainer.train_steps(feed, 1)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * variable.numpy()
        assert float(average_decay(0.5, step)) == pytest.approx(decay)
        np.testing.assert_allclose(average.numpy(), expected, atol=1e-6)
    raw, averaged = variable.numpy().copy(), average.numpy().copy()
    data = dataset(batches(2))
    outside = trainer.evaluator.evaluate(data)
    with trainer.averaged_weights():
        np.testing.assert_array_equal(variable.numpy(), averaged)
        assert trainer.evaluator.evaluate(data)["loss"] != outside["loss"]
    np.testing.assert_array_equal(variable.numpy(), raw)
    np.testing.assert_array_equal(average.numpy(), averaged)


def test_dropout_is_a_function_of_seed_step_and_micro_batch():
    batch = batches(1)[0]
    batch = {name: np.repeat(value[:1], ROWS, axis=0) for name, value in batch.items()}
    data = {name: tf.constant(value) for name, value in batch.items()}
    trainer = make_trainer(model={"dropout": 0.3})

    def loss(micro_batch: int) -> float:
        return float(trainer.micro_batch_gradients(data, micro_batch)[1]["loss_sum"])

    first = loss(0)
    assert loss(0) == first
    assert loss(1) != first
    trainer.optimizer.iterations.assign(1)
    assert loss(0) != first
    trainer.optimizer.iterations.assign(0)
    trainer.seed += 1
    assert loss(0) != first


def test_every_replica_and_every_micro_batch_drops_elsewhere():
    trainer = make_trainer(model={"dropout": 0.3}, step={"gradient_accumulation_steps": 2})
    seeds = set()
    for replica in range(2):
        with tf.distribute.ReplicaContext(tf.distribute.get_strategy(), replica):
            for micro_batch in range(2):
                with trainer.dropout(micro_batch):
                    seeds.add(tuple(current_dropout_seed().numpy()))
    assert len(seeds) == 4
    # The update hands each micro-batch its number.
    row = batches(1, ragged=False)[0]
    half = {name: tf.repeat(value[:1], ROWS // 2, axis=0) for name, value in row.items()}
    losses = [float(trainer.micro_batch_gradients(half, number)[1]["loss_sum"]) for number in range(2)]
    whole = {name: tf.concat([value, value], 0) for name, value in half.items()}
    assert losses[0] != losses[1]
    assert float(trainer.gradients(whole)[1]["loss_sum"]) == pytest.approx(sum(losses), rel=1e-6)


def test_resuming_from_the_state_equals_going_on():
    settings = {"model": {"dropout": 0.2}, "optimizer": {"optimizer": "muon", "ema_decay": 0.9}}
    rows = batches(6)
    straight = make_trainer(**settings)
    trained(straight, rows[:3])
    saved = state(straight)
    straight.train_steps(iter(dataset(rows[3:])), 3)
    resumed = make_trainer(**settings)
    for name, variable in resumed.state_variables().items():
        variable.assign(saved[name])
    trained(resumed, rows[3:])
    assert_states_close(state(straight), state(resumed))


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_state_names_cover_every_variable_and_are_the_same_in_a_second_model(optimizer):
    settings = {"optimizer": {"optimizer": optimizer, "ema_decay": 0.9}}
    one, other = make_trainer(**settings), make_trainer(**settings)
    assert list(one.state_variables()) == list(other.state_variables())
    weights = len(one.decoder.trainable_variables)
    assert len(one.state_variables()) == 2 * weights + len(one.optimizer.variables) + 2


def test_fit_and_evaluate_work_with_kerass_callbacks(tmp_path):
    trainer = make_trainer(optimizer={"learning_rate": 0.03})
    rows = batches(4, ragged=False)
    stopping = keras.callbacks.EarlyStopping("val_loss", patience=1, restore_best_weights=True)
    history = trainer.fit(
        dataset(rows),
        epochs=40,
        validation_data=dataset(batches(2, seed=9)),  # random text: it can only get worse once the rows are learnt
        callbacks=[stopping, keras.callbacks.TensorBoard(tmp_path)],
        verbose=0,
    ).history
    assert history["loss"][-1] < history["loss"][0]
    assert len(history["loss"]) < 40
    assert history["val_bits_per_byte"]
    assert list(tmp_path.rglob("events.out.tfevents.*"))
    best = trainer.evaluate(dataset(batches(2, seed=9)), return_dict=True, verbose=0)
    assert best["loss"] == pytest.approx(min(history["val_loss"]))


def test_fit_with_several_updates_a_call_equals_train_steps():
    rows = batches(4)
    direct, fitted = make_trainer(), make_trainer()
    fitted.compile(fitted.optimizer, steps_per_execution=2)
    fitted.fit(dataset(rows), epochs=1, verbose=0)
    assert_states_close(trained(direct, rows), state(fitted))


def test_packed_documents_train_through_the_step():
    trainer = make_trainer(model={"logit_soft_cap": 5.0, "position_embedding": "learned"}, packed=True)
    rows = batches(3)
    for row in rows:
        row["segment_ids"] = np.repeat(np.arange(2, dtype=np.int32), LENGTH // 2)[None].repeat(ROWS, 0)
        row["positions"] = np.tile(np.arange(LENGTH // 2, dtype=np.int32), 2)[None].repeat(ROWS, 0)
    before = trainer.evaluator.evaluate(dataset(rows))["loss"]
    assert before == pytest.approx(np.log(VOCABULARY), rel=0.05)
    trainer.train_steps(iter(dataset(rows).repeat()), 30)
    assert trainer.evaluator.evaluate(dataset(rows))["loss"] < before


def test_parts_that_do_not_fit_the_batch_are_refused_by_name():
    with pytest.raises(UserError, match="--gradient_accumulation_steps: 3 does not divide the 8 rows"):
        make_trainer(step={"gradient_accumulation_steps": 3}).train_steps(iter(dataset(batches(1))), 1)
    shorter = [{name: value[:, : LENGTH - 1] for name, value in batch.items()} for batch in batches(1)]
    with pytest.raises(ValueError, match="must be equal, but are 12 and 11"):
        make_trainer().train_steps(iter(dataset(shorter)), 1)
