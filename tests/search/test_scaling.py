"""Scaling laws: known coefficients come back, Chinchilla's own give its allocation, and the command predicts a run."""

import csv
import json

import numpy as np
import pytest

from tfgpt import scale as command
from tfgpt.search.scaling_law import Run, ScalingLaw, fit

CHINCHILLA = ScalingLaw(1.69, 406.4, 0.34, 410.7, 0.28)  # Hoffmann et al. 2022, equation 10
# Besiroglu et al. 2024 (arXiv:2404.10102), table 1: the same runs fitted again
REPLICATION = ScalingLaw(1.8172, 482.01, 0.3478, 2085.43, 0.3658)
GOPHER = 5.76e23  # the floating-point operations that Hoffmann et al. compare at


SIZES = [(size, tokens) for size in (100_000, 400_000, 1_600_000) for tokens in (1_000_000, 4_000_000, 16_000_000)]


def test_known_coefficients_come_back_from_synthetic_runs():
    found = fit([Run(*size, CHINCHILLA.loss(*size)) for size in SIZES], starts=6)
    for name, value in vars(CHINCHILLA).items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-4), name


def test_with_noise_and_one_outlier_the_next_size_is_still_predicted():
    random = np.random.default_rng(0)
    runs = [Run(*size, CHINCHILLA.loss(*size) * float(np.exp(1e-3 * random.normal()))) for size in SIZES]
    # Huber's loss hardly minds one run that went wrong.
    runs[4] = Run(runs[4].parameters, runs[4].tokens, 1.1 * runs[4].loss)
    found = fit(runs, starts=6)
    assert found.loss(6_400_000, 64_000_000) == pytest.approx(CHINCHILLA.loss(6_400_000, 64_000_000), rel=0.01)


def test_chinchillas_coefficients_give_its_published_allocation():
    # Table 2, approach 3: N_opt ~ C^0.46 and D_opt ~ C^0.54; its printed coefficients are rounded.
    sizes, tokens = zip(*(CHINCHILLA.compute_optimal(flops) for flops in (1e20, 1e24)), strict=True)
    assert np.log(sizes[1] / sizes[0]) / np.log(1e4) == pytest.approx(0.46, abs=0.01)
    assert np.log(tokens[1] / tokens[0]) / np.log(1e4) == pytest.approx(0.54, abs=0.01)
    # Figure 4: for Gopher's budget approach 3 projects a model of 40 billion parameters.
    assert CHINCHILLA.compute_optimal(GOPHER)[0] == pytest.approx(40e9, rel=0.25)
    # The replication agrees with the rule of thumb of twenty tokens a parameter, and with N_opt ~ C^0.512.
    size, read = REPLICATION.compute_optimal(GOPHER)
    assert read / size == pytest.approx(20, rel=0.15)
    assert REPLICATION.compute_optimal(10 * GOPHER)[0] / size == pytest.approx(10**0.512, rel=0.01)


def test_the_optimum_is_the_lowest_loss_at_its_budget():
    size, tokens = CHINCHILLA.compute_optimal(1e21)
    assert 6 * size * tokens == pytest.approx(1e21)
    for factor in (0.8, 1.25):
        assert CHINCHILLA.loss(size * factor, tokens / factor) > CHINCHILLA.loss(size, tokens)


def test_too_few_runs_are_refused():
    with pytest.raises(ValueError, match="at least five runs"):
        fit([Run(10, 10, 1.0)] * 4)
    with pytest.raises(ValueError, match="two sizes"):
        fit([Run(10, tokens, 1.0 / tokens) for tokens in range(1, 7)])


FLAGS = """--num_layers=1 --hidden_dim=16 --num_query_heads=2 --num_key_value_heads=1 --head_dim=8 --intermediate_dim=32
--vocabulary_size=300 --sequence_length=16 --batch_size=4 --compile=graph --strategy=one --warmup_steps=2
--learning_rate=0.01 --scaling_runs=16:512,16:1024,16:2048,32:512,32:1024 --held_out_run=32:2048 --tensorboard=false
""".split()


def test_the_command_trains_predicts_and_does_not_train_again(text_file, tmp_path, capsys):
    flags = [*FLAGS, f"--train_text={text_file}", f"--scaling_dir={tmp_path / 'scaling'}", "--budget_flops=1e12"]
    assert command.main(flags) == 0
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "scaling/scaling.json").read_text())
    held_out = found["held_out"]
    assert held_out["tokens"] == 2048
    assert held_out["relative_error"] == pytest.approx(held_out["predicted_loss"] / held_out["loss"] - 1)
    assert f"predicted {held_out['predicted_loss']:.4f}, measured {held_out['loss']:.4f}" in said
    with open(tmp_path / "scaling/runs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["held_out"] for row in rows] == ["false"] * 5 + ["true"]
    # What the runs themselves say: the last line of metrics of the first one.
    metrics = (tmp_path / "scaling/runs/w16-t512/metrics.jsonl").read_text().splitlines()
    assert float(rows[0]["validation_loss"]) == json.loads(metrics[-1])["validation_loss"]
    assert float(rows[0]["flops"]) == 6 * int(rows[0]["parameters"]) * 512
    assert (tmp_path / "scaling/scaling.png").stat().st_size > 10_000
    before = (tmp_path / "scaling/runs/w16-t512/log.txt").stat().st_mtime_ns
    assert command.main(flags) == 0
    assert (tmp_path / "scaling/runs/w16-t512/log.txt").stat().st_mtime_ns == before
    assert command.main([*flags, "--learning_rate=0.02"]) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error and "was started with other flags (--learning_rate differs)" in error


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--scaling_runs=16:512,32:1024"], "--scaling_runs: five runs or more"),
        (["--scaling_runs=16x512"], "--scaling_runs: '16x512' is not WIDTH:TOKENS"),
        (["--held_out_run=16:512"], "--held_out_run: 16:512 is one of --scaling_runs"),
        (["--held_out_run=18:512"], "--hidden_dim: 18: num_query_heads = 2 at --hidden_dim=16"),
    ],
)
def test_runs_that_cannot_be_are_refused_in_one_line(flags, words, text_file, tmp_path, capsys):
    given = [*FLAGS, f"--train_text={text_file}", f"--scaling_dir={tmp_path / 'scaling'}", *flags]
    assert command.main(given) == 2
    error = capsys.readouterr().err.strip()
    assert words.split(": ", 1)[1].split(",")[0] in error and error.startswith("tfgpt.scale: --")
    assert not (tmp_path / "scaling").exists()
