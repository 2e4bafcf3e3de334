"""Environment variables to clusters, as TF_CONFIG, SLURM and Kubernetes give them."""

import json

import pytest

from tfgpt.common.errors import SettingError, UserError
from tfgpt.training.distribution.cluster import Cluster, find_cluster, from_kubernetes


@pytest.fixture
def environment(monkeypatch):
    """Sets variables, with nothing of a real cluster around them."""
    for name in ("TF_CONFIG", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "JOB_COMPLETION_INDEX"):
        monkeypatch.delenv(name, raising=False)

    def give(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return give


def config(cluster: dict, kind: str, index: int) -> str:
    return json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})


def test_without_variables_there_is_no_cluster(environment):
    assert find_cluster(8888) is None


@pytest.mark.parametrize(("kind", "index", "expected"), [("chief", 0, 0), ("worker", 0, 1), ("worker", 1, 2)])
def test_tf_config_counts_the_chief_as_the_first_worker(environment, kind, index, expected):
    environment(TF_CONFIG=config({"worker": ["b:1", "c:1"], "chief": ["a:1"]}, kind, index))
    assert find_cluster(8888) == Cluster(("a:1", "b:1", "c:1"), expected)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        (config({"worker": ["a:1"], "ps": ["b:1"]}, "worker", 0), "the job 'ps' is not used"),
        (config({"worker": ["a:1"]}, "worker", 1), "worker 1, is not one of the cluster's 1 workers"),
        (config({"worker": ["a:1"]}, "evaluator", 0), "evaluator 0, is not one"),
    ],
)
def test_a_wrong_tf_config_is_one_line_that_names_it(environment, text, words):
    environment(TF_CONFIG=text)
    with pytest.raises(UserError, match="^TF_CONFIG: ") as caught:
        find_cluster(8888)
    assert words in str(caught.value)


def test_slurm_ranks_follow_slurms_order_of_hosts_not_the_alphabet(environment):
    # What srun sets for 2 tasks on each of node2 and node10, and one on node11.
    environment(
        SLURM_PROCID="2",
        SLURM_STEP_NUM_TASKS="5",
        SLURM_STEP_NODELIST="node[2,10-11]",
        SLURM_STEP_TASKS_PER_NODE="2(x2),1",
    )
    assert find_cluster(9000) == Cluster(("node2:9000", "node2:9001", "node10:9000", "node10:9001", "node11:9000"), 2)


def test_slurm_without_a_steps_variables_says_how_to_start(environment):
    environment(SLURM_PROCID="0", SLURM_STEP_NUM_TASKS="2")
    with pytest.raises(UserError, match="^SLURM: .*SLURM_STEP_NODELIST.*srun"):
        find_cluster(8888)


def test_kubernetes_names_every_pod_of_the_indexed_job():
    found = from_kubernetes({"JOB_COMPLETION_INDEX": "1"}, 8888, 3, "chat-1.chat-workers.team.svc.cluster.local")
    names = [f"chat-{index}.chat-workers.team.svc.cluster.local:8888" for index in range(3)]
    assert found == Cluster(tuple(names), 1)
    alone = from_kubernetes({"JOB_COMPLETION_INDEX": "0"}, 8888, 1, "chat-0.workers")
    assert alone == Cluster(("chat-0.workers:8888",), 0)


def test_kubernetes_needs_the_number_of_workers_and_an_indexed_name(environment):
    environment(JOB_COMPLETION_INDEX="1")
    with pytest.raises(SettingError, match="^--cluster_size: is needed"):
        find_cluster(8888)
    with pytest.raises(UserError, match="completionMode: Indexed"):
        from_kubernetes({"JOB_COMPLETION_INDEX": "1"}, 8888, 3, "chat-x7f2k")
    with pytest.raises(SettingError, match="^--cluster_size: is 3"):
        from_kubernetes({"JOB_COMPLETION_INDEX": "3"}, 8888, 3, "chat-3.workers")
