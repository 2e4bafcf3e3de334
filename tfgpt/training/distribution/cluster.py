"""Finds the cluster of a run in TF_CONFIG, a SLURM step or a Kubernetes Indexed Job.

TensorFlow's `TFConfigClusterResolver` reads TF_CONFIG. Two other resolvers of TensorFlow 2.21 are not used:

- `SlurmClusterResolver` sorts host names as text, so that node10 comes before node2, unlike SLURM's ranks: workers then
  connect to the wrong hosts. It also fails on nodes without GPUs and runs nvidia-smi. Its functions that expand SLURM's
  lists are used.
- `KubernetesClusterResolver` needs the kubernetes package and a role, and lists addresses of pods in any order, without
  saying which is this one. The pods of an Indexed Job with a headless service have stable names and indices instead
  (https://kubernetes.io/docs/tasks/job/job-with-pod-to-pod-communication).
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import socket
from collections.abc import Mapping
from typing import Any

from tfgpt.common.errors import SettingError, UserError


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The worker processes of one run, "host:port" of each, and the index of this one; 0 is the chief, which writes."""

    workers: tuple[str, ...]
    index: int


def find_cluster(port: int, size: int = 0) -> Cluster | None:
    """Returns the cluster that the environment of this process describes, or None.

    Args:
        port: the first port on each host, where the environment only names hosts (SLURM, Kubernetes).
        size: the number of workers of a Kubernetes job, which its pods do not know.
    """
    if os.environ.get("TF_CONFIG", "").strip() not in ("", "{}"):
        return from_tf_config()
    if "SLURM_PROCID" in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return from_slurm(os.environ, port)
    if "JOB_COMPLETION_INDEX" in os.environ:
        return from_kubernetes(os.environ, port, size)
    return None


def from_tf_config() -> Cluster:
    import tensorflow as tf

    text = os.environ["TF_CONFIG"]
    try:
        content: Any = json.loads(text)
        if not isinstance(content, dict) or not isinstance(content.get("cluster"), dict):
            raise ValueError("it has no 'cluster'")
        resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
        jobs = resolver.cluster_spec().as_dict()
        kind, number = resolver.task_type, resolver.task_id
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(
            f"TF_CONFIG: cannot be read ({error}); it should look like "
            '{"cluster": {"worker": ["host0:port", "host1:port"]}, "task": {"type": "worker", "index": 0}}'
        ) from error
    for job in jobs:
        if job not in ("chief", "worker"):
            raise UserError(
                f"TF_CONFIG: the job {job!r} is not used in this kind of training, only chief and worker; leave it out"
            )
    chief = list(jobs.get("chief", []))
    workers = (*chief, *jobs.get("worker", []))
    index = number if kind == "chief" or number is None else number + len(chief)
    if kind not in ("chief", "worker") or index is None or not 0 <= index < len(workers):
        raise UserError(f"TF_CONFIG: its task, {kind} {number}, is not one of the cluster's {len(workers)} workers")
    return Cluster(workers, index)


def from_slurm(environment: Mapping[str, str], port: int) -> Cluster:
    """Returns the cluster of a SLURM step (started by `srun`): a worker for each task, with consecutive ports."""
    from tensorflow.python.distribute.cluster_resolver import slurm_cluster_resolver as slurm

    try:
        hosts = slurm.expand_hostlist(environment["SLURM_STEP_NODELIST"])
        tasks = slurm.expand_tasks_per_node(environment["SLURM_STEP_TASKS_PER_NODE"])
        index = int(environment["SLURM_PROCID"])
    except (KeyError, ValueError) as error:
        raise UserError(f"SLURM: the step's variables cannot be read ({error}); start the workers with srun") from error
    workers = [f"{host}:{port + offset}" for host, count in zip(hosts, tasks) for offset in range(count)]
    if index >= len(workers):
        raise UserError(f"SLURM: task {index} is not one of the {len(workers)} that SLURM_STEP_TASKS_PER_NODE counts")
    return Cluster(tuple(workers), index)


def from_kubernetes(environment: Mapping[str, str], port: int, size: int, name: str | None = None) -> Cluster:
    """Returns the cluster of a Kubernetes Indexed Job: pod i is called JOB-i under the job's headless service.

    `size` is the job's completions, `name` this pod's full name (None: the name of the machine).
    """
    if size < 1:
        raise SettingError("cluster_size", "is needed in a Kubernetes job: its number of completions")
    index = int(environment["JOB_COMPLETION_INDEX"])
    name = name or socket.getfqdn()
    match = re.fullmatch(rf"(.+)-{index}(\..+)?", name)
    if not match:
        raise UserError(
            f"Kubernetes: the pod's name {name} does not end in its index {index}; make it a Job with "
            "completionMode: Indexed and give the pods the subdomain of a headless service"
        )
    if index >= size:
        raise SettingError("cluster_size", f"is {size}, but this is pod number {index}; give the job's completions")
    return Cluster(tuple(f"{match[1]}-{i}{match[2] or ''}:{port}" for i in range(size)), index)
