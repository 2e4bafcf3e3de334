"""Claim: runs with LoRA, pairs and rewards come to the same on one device, on logical CPUs and on a cluster."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.training.test_run import final_state, rows
from tests.training.topologies import start_cluster, start_process, wait_for_success
from tests.training.tuning_topologies import CASES, UPDATES, make_inputs, run_case

TOLERANCE = 1e-5
ON_A_CLUSTER = ("lora accumulated", "dpo")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cases, run on one device in this process, on two logical CPUs, and some on a cluster of two processes."""
    place = tmp_path_factory.mktemp("tuning")
    make_inputs(place)
    program = str(Path(__file__).parents[1] / "tuning_topologies.py")
    mirrored = start_process([program, str(place), "mirrored", "2", *CASES])
    for case in CASES:
        run_case(place, "one", case, tf.distribute.get_strategy())
    wait_for_success([mirrored, *start_cluster([[program, str(place), "cluster", "1", *ON_A_CLUSTER, "grpo"]] * 2)])
    return place


def largest_difference(one: Path, other: Path) -> float:
    """Over every number that the runs wrote down and every variable that they end with."""
    states = final_state(one), final_state(other)
    assert states[0].keys() == states[1].keys() and len(states[0]) > 20
    speed = {"tokens_per_second", "model_flops_utilization"}
    tables = [[[row[name] for name in sorted(row.keys() - speed)] for row in rows(run)] for run in (one, other)]
    assert len(tables[0]) == 1 + UPDATES // 2 and rows(one)[-1].keys() - speed == rows(other)[-1].keys() - speed
    numbers = [np.concatenate([np.array(row, np.float64) for row in table]) for table in tables]
    pairs = [(numbers[0], numbers[1]), *((states[0][name], states[1][name]) for name in states[0])]
    return max(float(np.max(np.abs(np.subtract(a, b, dtype=np.float64)))) for a, b in pairs)


@pytest.mark.parametrize(
    ("topology", "case"), [*(("mirrored", case) for case in CASES), *(("cluster", case) for case in ON_A_CLUSTER)]
)
def test_every_topology_equals_one_device(directory: Path, topology: str, case: str):
    assert all(row["gradient_norm"] > 0.01 for row in rows(directory / "one" / case)[1:])  # There is what to differ in.
    difference = largest_difference(directory / "one" / case, directory / topology / case)
    print(f"\n{topology}, {case}: largest difference {difference:.1e}")
    assert difference < TOLERANCE


def test_accumulation_changes_nothing_with_adapters(directory: Path):
    assert largest_difference(directory / "one" / "lora", directory / "one" / "lora accumulated") < TOLERANCE


def test_rewards_are_refused_on_a_cluster(directory: Path):
    assert (directory / "cluster" / "grpo refused").read_text().startswith("--strategy: grpo samples on one machine")


def test_sampled_answers_are_the_same(directory: Path):
    """The first round's by promise: same weights, same bits. The later rounds' weights differ by some 1e-7, and an
    answer would change if a draw fell that close to the border of a token; none of these does."""
    found = {
        topology: [np.load(directory / topology / "grpo" / f"answers-{step}.npy") for step in (0, 2, 4)]
        for topology in ("one", "mirrored")
    }
    for one, other in zip(found["one"], found["mirrored"], strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(found["one"][0], found["one"][1])


@pytest.mark.parametrize("case", ["lora accumulated", "grpo"])
def test_a_checkpoint_of_logical_cpus_goes_on_on_one_device(directory: Path, case: str):
    run = directory / "moved" / case
    shutil.copytree(directory / "mirrored" / case, run)
    shutil.rmtree(run / "checkpoints" / f"step-{UPDATES:08}")
    run_case(directory, "moved", case, tf.distribute.get_strategy())
    assert largest_difference(directory / "one" / case, run) < TOLERANCE
