"""Claim: 20 updates give the same losses and weights on one device, on logical CPUs and on a cluster of processes.

Clipping, accumulation, ragged loss weights, moving averages, AdamW and Muon, several updates a call, the pipeline's own
feed. Dropout masks differ by replica by design: there, topologies of equally many replicas are compared.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.training.small_step import ROWS
from tests.training.topologies import UPDATES, make_shards, run_cluster, run_mirrored

TOLERANCE = 1e-5


@pytest.fixture(scope="session")
def topologies(tmp_path_factory) -> dict[str, list[dict[str, np.ndarray]]]:
    """The results of every process of every topology."""
    directory: Path = tmp_path_factory.mktemp("topologies")
    shards = make_shards(directory / "shards")
    return {
        "one": [run_mirrored(shards, directory, 1)],
        "mirrored 2": [run_mirrored(shards, directory, 2)],
        "mirrored 4": [run_mirrored(shards, directory, 4)],
        "cluster 2": run_cluster(shards, directory, 2),
        "cluster 4": run_cluster(shards, directory, 4),
    }


def largest_difference(one: dict, other: dict, case: str) -> float:
    """Over losses, validation figures and every variable of a case."""
    names = {name for name in one if name.startswith(f"{case}/") and not name.endswith("/read")}
    assert names == {name for name in other if name.startswith(f"{case}/") and not name.endswith("/read")}
    assert len(names) > 20
    return max(float(np.max(np.abs(one[name].astype(np.float64) - other[name]), initial=0.0)) for name in names)


@pytest.mark.parametrize("case", ["adamw", "muon"])
@pytest.mark.parametrize("topology", ["mirrored 2", "mirrored 4", "cluster 2", "cluster 4"])
def test_every_topology_equals_one_device(topologies, topology, case):
    expected = topologies["one"][0]
    for found in topologies[topology]:
        difference = largest_difference(expected, found, case)
        print(f"\n{topology}, {case}: largest difference {difference:.1e}")
        assert difference < TOLERANCE


@pytest.mark.parametrize("replicas", [2, 4])
def test_dropout_is_the_same_on_a_cluster_and_on_one_machine_with_as_many_replicas(topologies, replicas):
    expected = topologies[f"mirrored {replicas}"][0]
    for found in topologies[f"cluster {replicas}"]:
        difference = largest_difference(expected, found, "dropout")
        print(f"\ncluster {replicas}, dropout: largest difference {difference:.1e}")
        assert difference < TOLERANCE


def test_dropout_masks_differ_by_replica(topologies):
    # With one mask for all replicas the other half of the batch would be treated otherwise than here.
    assert largest_difference(topologies["one"][0], topologies["mirrored 2"][0], "dropout") > 1e-4


def test_all_workers_of_a_cluster_end_with_the_same_bits(topologies):
    for name in ("cluster 2", "cluster 4"):
        first, *others = topologies[name]
        for other in others:
            assert all(np.array_equal(first[key], other[key]) for key in first if not key.endswith("/read"))


@pytest.mark.parametrize("workers", [2, 4])
def test_each_host_reads_only_its_rows(topologies, workers):
    for found in topologies[f"cluster {workers}"]:
        share = ROWS * sum(UPDATES) // workers
        # Some steps are read ahead.
        assert share <= found["adamw/read"] <= 1.4 * share
