"""Claim: 20 updates give the same losses and weights on one device, on logical CPUs and on a cluster of processes.

Dropout masks differ by replica by design: there, topologies of equally many replicas are compared.
"""

from pathlib import Path

import numpy as np
import pytest

from tests.training.small_step import ROWS
from tests.training.topologies import OWN, UPDATES, make_shards, run_processes

TOLERANCE = 1e-5


FOUR = pytest.mark.slow  # four processes on two cores


class Topologies(dict[str, list[dict[str, np.ndarray]]]):
    """The results of every process of a topology, run when they are asked for first."""

    def __init__(self, directory: Path):
        super().__init__()
        self.directory, self.shards = directory, make_shards(directory / "shards")

    def __missing__(self, name: str) -> list[dict[str, np.ndarray]]:
        kind, count = name.split()
        workers, cpus = (int(count), 1) if kind == "cluster" else (1, int(count))
        self[name] = run_processes(self.shards, self.directory, workers, cpus)
        return self[name]


@pytest.fixture(scope="session")
def topologies(tmp_path_factory) -> Topologies:
    return Topologies(tmp_path_factory.mktemp("topologies"))


def largest_difference(one: dict, other: dict, case: str) -> float:
    """Over losses, validation figures and every variable of a case."""
    names = {name for name in one if name.startswith(f"{case}/") and not name.endswith(OWN)}
    assert names == {name for name in other if name.startswith(f"{case}/") and not name.endswith(OWN)}
    assert len(names) > 20
    return max(float(np.max(np.abs(one[name].astype(np.float64) - other[name]), initial=0.0)) for name in names)


EXACT = ("adamw", "muon")
COMPARED = [
    *(
        (f"{kind} {count}", case, "one 1")
        for kind in ("mirrored", "cluster")
        for count in (2, 4)
        for case in ("adamw", "muon")
    ),
    *((f"cluster {count}", "dropout", f"mirrored {count}") for count in (2, 4)),
]


@pytest.mark.parametrize(
    ("topology", "case", "reference"), [pytest.param(*each, marks=FOUR if "4" in each[0] else ()) for each in COMPARED]
)
def test_every_topology_equals_one_device_and_dropout_that_of_as_many_replicas(topologies, topology, case, reference):
    for found in topologies[topology]:
        difference = largest_difference(topologies[reference][0], found, case)
        print(f"\n{topology}, {case}: largest difference {difference:.1e}")
        assert difference < TOLERANCE


@pytest.mark.parametrize("topology", ["mirrored 2", "cluster 2"])
def test_dropout_seeds_differ_by_replica(topologies, topology):
    seeds = np.concatenate([found["dropout/seeds"] for found in topologies[topology]])
    assert seeds.shape == (2, 2) and not np.array_equal(*seeds)


@pytest.mark.parametrize("workers", [2, pytest.param(4, marks=FOUR)])
def test_all_workers_of_a_cluster_end_with_the_same_bits(topologies, workers):
    first, *others = topologies[f"cluster {workers}"]
    for other in others:
        assert all(np.array_equal(first[key], other[key]) for key in first if not key.endswith(OWN))


@pytest.mark.parametrize("workers", [2, pytest.param(4, marks=FOUR)])
def test_each_host_reads_only_its_rows(topologies, workers):
    for found in topologies[f"cluster {workers}"]:
        share = ROWS * sum(UPDATES) // workers
        # Some steps are read ahead.
        assert share <= found["adamw/read"] <= 1.4 * share
