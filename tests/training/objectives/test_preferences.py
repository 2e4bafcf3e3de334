"""Claims about pairs of answers: the losses are trl's, the step is exact, a run learns what is preferred."""

import json
import types
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.model.options import MODERN, VOCABULARY, random_decoder
from tests.training.small_step import assert_states_close, save_byte_model, state
from tests.training.test_run import parse, rows, train_recipe
from tfgpt.common.errors import SettingError, UserError
from tfgpt.pipeline.batches import training_batches, validation_batches
from tfgpt.tokenization.chat_template import encode_messages
from tfgpt.tokenization.config import TokenizerConfig
from tfgpt.tokenization.tokenizer import Tokenizer
from tfgpt.tokenization.train_tokenizer import make_tokenizer
from tfgpt.training.config import OptimizerConfig, ScheduleConfig, StepConfig
from tfgpt.training.objective_config import PreferenceConfig
from tfgpt.training.objectives import preferences
from tfgpt.training.objectives.base import get_objective
from tfgpt.training.objectives.preferences import log_of_one_minus_exp, pair_losses
from tfgpt.training.objectives.readers import ExampleReader
from tfgpt.training.optimizers import build_optimizer
from tfgpt.training.schedules import build_schedule
from tfgpt.training.train_config import TrainConfig
from tfgpt.training.trainer import Trainer

PAIRS, LENGTH = 6, 12
RANDOM = np.random.default_rng(0)
SUMS = {name: RANDOM.normal(-20, 5, (PAIRS, 2)).astype(np.float32) for name in ("policy", "reference")}
TOKENS = RANDOM.integers(5, 20, (PAIRS, 2)).astype(np.float32)


def theirs(objective: str, config: PreferenceConfig) -> np.ndarray:
    """trl's loss of each pair on the same log probabilities."""
    torch = pytest.importorskip("torch")
    policy, reference, tokens = (torch.tensor(values) for values in (SUMS["policy"], SUMS["reference"], TOKENS))
    if objective in ("dpo", "ipo"):
        dpo = pytest.importorskip("trl.trainer.dpo_trainer").DPOTrainer
        kind = "ipo" if objective == "ipo" else "sigmoid_norm" if config.preference_length_normalization else "sigmoid"
        return np.array([dpo_loss(dpo, kind, config, number) for number in range(PAIRS)])
    if objective == "orpo":
        trainer = pytest.importorskip("trl.experimental.orpo").ORPOTrainer
        settings = types.SimpleNamespace(
            beta=config.preference_beta, accelerator=types.SimpleNamespace(device=torch.device("cpu"))
        )
        ratio, *_ = trainer.odds_ratio_loss(settings, *(policy / tokens).T)
        return -(policy[:, 0] / tokens[:, 0]).numpy() - ratio.numpy()
    trainer = pytest.importorskip("trl.experimental.cpo").CPOTrainer
    settings = types.SimpleNamespace(
        beta=config.preference_beta,
        simpo_gamma=config.preference_margin,
        label_smoothing=config.preference_label_smoothing,
        loss_type="simpo",
        alpha=0.0,
        accelerator=types.SimpleNamespace(device=torch.device("cpu")),
    )
    losses, *_ = trainer.cpo_loss(settings, *(policy / tokens).T)
    return losses.numpy()


def dpo_loss(trainer, kind: str, config: PreferenceConfig, number: int) -> float:
    """The loss that trl's DPOTrainer computes for one pair whose tokens' log probabilities add up to ours."""
    import torch

    lengths = TOKENS[number].astype(int)
    mask = torch.tensor(np.arange(lengths.max() + 1) > 0).repeat(2, 1) & torch.tensor(
        np.arange(lengths.max() + 1)[None] <= lengths[:, None]
    )
    by_token = torch.tensor(SUMS["policy"][number] / TOKENS[number])[:, None] * mask[:, 1:]

    def model(**_):
        nothing = torch.zeros_like(by_token)
        return types.SimpleNamespace(log_probs=by_token, entropy=nothing, mean_logits=nothing, is_top1=nothing > 0)

    class Quiet(dict):
        def __missing__(self, key):
            self[key] = Quiet()
            return self[key]

        def append(self, _):
            pass

    settings = types.SimpleNamespace(
        accelerator=types.SimpleNamespace(
            device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x, reduce=lambda x, **_: x
        ),
        model=types.SimpleNamespace(training=True),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[kind],
        loss_weights=[1.0],
        beta=config.preference_beta,
        label_smoothing=config.preference_label_smoothing,
        use_weighting=False,
        _metrics=Quiet(),
        _total_train_tokens=0,
        _tp_size=1,
    )
    inputs = {
        "input_ids": torch.zeros(mask.shape, dtype=torch.long),
        "attention_mask": torch.ones(mask.shape, dtype=torch.long),
        "completion_mask": mask.long(),
        "ref_chosen_logps": torch.tensor(SUMS["reference"][number, :1]),
        "ref_rejected_logps": torch.tensor(SUMS["reference"][number, 1:]),
    }
    return float(trainer._compute_loss(settings, model, inputs, return_outputs=False))


@pytest.mark.parametrize(
    ("objective", "settings"),
    [
        ("dpo", {"preference_beta": 0.3}),
        ("dpo", {"preference_beta": 0.7, "preference_length_normalization": True}),
        ("ipo", {"preference_beta": 0.2}),
        ("orpo", {"preference_beta": 0.4}),
        ("simpo", {"preference_beta": 2.0, "preference_margin": 0.9, "preference_label_smoothing": 0.1}),
    ],
)
def test_losses_are_those_of_trl(objective: str, settings: dict):
    config = PreferenceConfig(**settings)
    lengths = TOKENS if objective != "dpo" or config.preference_length_normalization else np.ones_like(TOKENS)
    reference = SUMS["reference"] / lengths if objective in ("dpo", "ipo") else None
    losses, _ = pair_losses(objective, config, tf.constant(SUMS["policy"] / lengths), reference)
    np.testing.assert_allclose(losses, theirs(objective, config), rtol=2e-5)


@pytest.mark.parametrize("certain", [0.0, -1e-12])
def test_orpo_of_a_certain_answer_is_a_number_and_so_is_its_gradient(certain: float):
    policy = tf.constant([[certain, -3.0], [-3.0, certain], [certain, certain]])
    with tf.GradientTape() as tape:
        tape.watch(policy)
        losses, _ = pair_losses("orpo", PreferenceConfig(preference_beta=0.5), policy, None)
    # A certain chosen answer costs nothing; with equal odds -log sigmoid is log 2.
    np.testing.assert_allclose(losses.numpy()[[0, 2]], [0.0, 0.5 * np.log(2)], atol=1e-6)
    assert 3.0 + 0.5 * 10 < losses[1] < np.inf
    assert np.isfinite(tape.gradient(losses, policy)).all()


def test_log_of_one_minus_exp_is_exact_near_nought_and_far_from_it():
    values = -np.geomspace(1e-6, 80.0, 50).astype(np.float32)
    with tf.GradientTape() as tape:
        tape.watch(tensor := tf.constant(values))
        found = log_of_one_minus_exp(tensor)
    exact = values.astype(np.float64)
    expected = np.where(exact > -1, np.log(-np.expm1(exact)), np.log1p(-np.exp(exact)))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(tape.gradient(found, tensor), -1 / np.expm1(-exact), rtol=1e-5)


def random_pairs(decoder) -> dict[str, np.ndarray]:
    """Pairs of random rows, with what the decoder thinks of them as the reference."""
    random = np.random.default_rng(1)
    ids = random.integers(0, VOCABULARY, (PAIRS, 2, LENGTH + 1)).astype(np.int32)
    ends = random.integers(4, LENGTH + 1, (PAIRS, 2, 1))
    place = np.arange(LENGTH)
    arrays = {
        "token_ids": ids[..., :-1],
        "targets": ids[..., 1:],
        "weights": ((place >= 2) & (place < ends)).astype(np.float32),
        "example_weights": np.ones((PAIRS, 2), np.float32),
    }
    return arrays | {"reference_nll": preferences.TokenNLL(decoder)(arrays) + 0.1}


def make_trainer(objective: str, step: dict) -> tuple[Trainer, dict[str, np.ndarray]]:
    decoder = random_decoder(MODERN | {"num_layers": 1})
    arrays = random_pairs(decoder)
    config = OptimizerConfig(learning_rate=0.01)
    trainer = Trainer(
        decoder,
        preferences.PreferenceLoss(objective, PreferenceConfig(), chunk_tokens=16),
        StepConfig(compile="graph", **step),
        config,
        seed=0,
        batch_shape=(2 * PAIRS, LENGTH),
    )
    trainer.compile(build_optimizer(config, build_schedule(ScheduleConfig(warmup_steps=0), 0.01, 10), decoder))
    return trainer, arrays


def test_loss_and_gradient_are_those_of_the_formula():
    """-log sigmoid(beta (d p - d q)) with p from the logits, by TensorFlow's own differentiation."""
    trainer, arrays = make_trainer("dpo", {})
    flat = {name: tf.constant(array.reshape(-1, *array.shape[2:])) for name, array in arrays.items()}
    weights = trainer.decoder.trainable_variables
    gradients, sums = trainer.gradients(flat)
    with tf.GradientTape() as tape:
        logits = trainer.decoder({"token_ids": flat["token_ids"]})
        nats = tf.nn.sparse_softmax_cross_entropy_with_logits(flat["targets"], logits)
        scores = tf.reshape(tf.reduce_sum((flat["reference_nll"] - nats) * flat["weights"], 1), [-1, 2])
        loss = tf.reduce_sum(tf.nn.softplus(-0.1 * (scores[:, 0] - scores[:, 1])))
    expected = tape.gradient(loss, [weight.value for weight in weights])
    np.testing.assert_allclose(sums["loss_sum"], loss, rtol=1e-5)
    for mine, other in zip(gradients, expected, strict=True):
        other = tf.convert_to_tensor(other).numpy()
        np.testing.assert_allclose(mine, other, atol=1e-5 * max(1.0, np.abs(other).max()))


@pytest.mark.parametrize("objective", ["dpo", "simpo"])
def test_what_is_reported_of_pairs_is_what_its_name_says(objective: str):
    """Of dpo with sums, of simpo with means; the last pair only fills up a batch of validation."""
    decoder, random = random_decoder(MODERN | {"num_layers": 1}), np.random.default_rng(2)
    arrays = {name: array.reshape(-1, *array.shape[2:]) for name, array in random_pairs(decoder).items()}
    arrays["example_weights"][-2:] = 0
    logits = decoder({"token_ids": arrays["token_ids"]})
    policy = -tf.nn.sparse_softmax_cross_entropy_with_logits(arrays["targets"], logits).numpy()
    reference = policy + random.normal(0, 0.5, policy.shape).astype(np.float32)
    found = preferences.PreferenceLoss(objective, PreferenceConfig(preference_beta=0.3), chunk_tokens=16)(
        decoder, arrays | {"reference_nll": -reference}, training=False
    )
    sums = dict.fromkeys(("weight_sum", "accuracy", "reward_margin"), 0.0)
    sums |= dict.fromkeys(("chosen_log_probability", "rejected_log_probability", "kl"), 0.0)
    for pair in range(PAIRS - 1):
        rewards = []
        for row, name in ((2 * pair, "chosen"), (2 * pair + 1, "rejected")):
            ours, theirs = (values[row, arrays["weights"][row] > 0] for values in (policy, reference))
            sums[f"{name}_log_probability"] += ours.mean()
            rewards.append(0.3 * ((ours - theirs).sum() if objective == "dpo" else ours.mean()))
            sums["kl"] += np.mean(np.exp(theirs - ours) - 1 - (theirs - ours)) / 2
        sums["weight_sum"] += 1
        sums["accuracy"] += rewards[0] > rewards[1]
        sums["reward_margin"] += rewards[0] - rewards[1]
    if objective == "simpo":
        del sums["kl"]
    assert sums.keys() | {"loss_sum", "nll_sum"} == found.keys() and 0 < sums["accuracy"] < PAIRS - 1
    for name, value in sums.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("objective", ["dpo", "orpo"])
def test_accumulation_changes_nothing(objective: str):
    ends = []
    for step in ({}, {"gradient_accumulation_steps": 3}):
        trainer, arrays = make_trainer(objective, step)
        batches = training_batches(ExampleReader(arrays, seed=0, pairs=True), batch_size=PAIRS)
        logs = trainer.train_steps(iter(batches), 3)
        ends.append((state(trainer), logs))
    assert_states_close(ends[0][0], ends[1][0], 2e-6)
    assert ends[0][1]["reward_margin"] == pytest.approx(ends[1][1]["reward_margin"], rel=1e-4)


def test_every_pair_comes_once_an_epoch_and_hosts_share_a_batch():
    reader = ExampleReader({"number": np.arange(10, dtype=np.int32)}, seed=3)
    whole = [step["number"].numpy() for step in training_batches(reader, batch_size=4).take(5)]
    # Written down on 2026-11-28: a run resumed after an update must go on with the same pairs.
    assert np.concatenate(whole)[:10].tolist() == [5, 8, 4, 7, 1, 9, 6, 3, 0, 2]
    assert [sorted(np.concatenate(whole)[start : start + 10]) for start in (0, 10)] == [list(range(10))] * 2
    later = training_batches(reader, batch_size=4, start_step=3)
    np.testing.assert_array_equal(next(iter(later))["number"], whole[3])
    halves = [next(iter(training_batches(reader, batch_size=4, num_shards=2, shard_index=index))) for index in range(2)]
    np.testing.assert_array_equal(np.concatenate([half["number"] for half in halves]), whole[0])


def test_validation_of_pairs_is_every_row_once_and_what_fills_the_last_batch_has_no_weight():
    arrays = {"number": np.arange(10, dtype=np.int32).reshape(5, 2), "example_weights": np.ones((5, 2), np.float32)}
    batches = list(validation_batches(ExampleReader(arrays, pairs=True), batch_size=2, parts=2))
    assert len(batches) == 6 and all(batch["number"].shape == [2] for batch in batches)
    numbers, weights = (np.concatenate([batch[name] for batch in batches]) for name in arrays)
    assert numbers[:10].tolist() == list(range(10)) and weights.tolist() == [1] * 10 + [0] * 2
    assert arrays["example_weights"].all()


@pytest.fixture(scope="module")
def byte_tokenizer() -> Tokenizer:
    return make_tokenizer(TokenizerConfig(tokenizer="bytes"), [])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of bytes."""
    return save_byte_model(tmp_path_factory.mktemp("base"), 1.0)


def preference_recipe(base: Path, directory: Path, *more: str) -> TrainConfig:
    pairs = [
        {"prompt": [{"role": "user", "content": f"{number}?"}], "chosen": f"yes {number}", "rejected": f"no {number}"}
        for number in range(40)
    ]
    text = directory / "pairs.jsonl"
    text.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    flags = (
        f"--init_from={base} --train_text={text} --run_dir={directory / 'run'} --validation_fraction=0.3 "
        "--sequence_length=64 --batch_size=8 --warmup_steps=2 --compile=graph --max_steps=12 --log_every=3 "
        "--validate_every=6 --checkpoint_every=6 --sample_tokens=0 --learning_rate=0.003 --save_best=false"
    ).split()
    return parse(*flags, *more)


def run(recipe: TrainConfig) -> list[dict]:
    assert train_recipe(recipe) == 0
    return rows(recipe.run_dir)


def test_a_run_learns_what_is_preferred_and_computes_the_reference_once(
    base: Path, tmp_path: Path, capsys, monkeypatch
):
    recipe = preference_recipe(base, tmp_path, "--objective=dpo", "--lora_rank=4", "--lora_alpha=16")
    found = run(recipe)
    first, last = found[0], found[-1]
    # Before the first update the model is the reference: the loss is log 2, nothing is preferred.
    assert first["validation_loss"] == pytest.approx(np.log(2), abs=1e-4)
    assert first["validation_reward_margin"] == pytest.approx(0, abs=1e-4) and abs(first["validation_kl"]) < 1e-5
    assert last["validation_loss"] < 0.5 and last["validation_accuracy"] == 1 and last["validation_kl"] > 0
    assert last["train_reward_margin"] > found[1]["train_reward_margin"]
    assert (tmp_path / "run" / "curves.png").is_file() and (tmp_path / "run" / "adapter").is_dir()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("reference: ")]
    assert len(lines) == 2 and all("made in" in line for line in lines)  # Training side and held-out side.
    again = preferences.PreferenceTuning()
    again.prepare(preference_recipe(base, tmp_path, "--objective=ipo"))
    assert capsys.readouterr().out.count("; reused, ") == 2
    for path in (recipe.corpus.cache_directory / "references").glob("*.safetensors"):
        path.write_bytes(b"damaged")
    again.prepare(preference_recipe(base, tmp_path, "--objective=ipo"))
    assert "making it again" in capsys.readouterr().out


@pytest.mark.parametrize("objective", ["simpo", "grpo"])
def test_samples_are_answers_where_the_records_are_conversations(
    base: Path, byte_tokenizer: Tokenizer, tmp_path: Path, objective: str
):
    turn = {"role": "user", "content": "How are you?"}
    flags = (f"--objective={objective}", "--group_size=8", "--max_completion_length=8", "--reward=length")
    recipe = preference_recipe(base, tmp_path, *flags)
    kind = get_objective(recipe.objective.objective)
    kind.prepare(recipe)
    ids = kind.prompt(byte_tokenizer, turn["content"])
    np.testing.assert_array_equal(ids, encode_messages(byte_tokenizer, [turn], add_generation_prompt=True)[0])
    plain = {"prompt": "Q:", "chosen": "yes", "rejected": "no"}
    (tmp_path / "pairs.jsonl").write_text(
        "".join(json.dumps(plain | {"prompt": f"{number}?"}) + "\n" for number in range(20)), encoding="utf-8"
    )
    kind = get_objective(recipe.objective.objective)
    kind.prepare(recipe)
    assert kind.prompt(byte_tokenizer, "How are you?") == "How are you?"


def test_objectives_that_need_a_model_say_so(base: Path, tmp_path: Path):
    with pytest.raises(SettingError, match="dpo starts from a trained model: name it with --init_from"):
        parse("--train_text=x", "--objective=dpo")
    with pytest.raises(UserError, match=r"none of 25 pairs is left: 25 longer than --sequence_length=4 \(.* takes \d"):
        run(preference_recipe(base, tmp_path, "--objective=simpo", "--sequence_length=4"))
