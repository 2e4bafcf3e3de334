"""Devices of the step: from flags and environment to a `tf.distribute.Strategy`, and each host's part of the data."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from tfgpt.common.errors import SettingError, UserError
from tfgpt.training.config import StrategyConfig
from tfgpt.training.distribution.cluster import Cluster, find_cluster
from tfgpt.training.distribution.startup_barrier import wait_for_all_workers

# A worker that hangs is given up after this time; one that dies is noticed at once.
HEARTBEAT_SECONDS = 20
# Time limit of TensorFlow's own start, when all workers are known to be there.
START_SECONDS = 120


def resolve(config: StrategyConfig, log: Callable[[str], None] = print) -> tf.distribute.Strategy:
    """Returns the strategy that the settings name. Call it before anything else uses TensorFlow's devices.

    Use one MirroredStrategy a process on CPUs: the collectives of a second one collide with those of the first. Raises
    UserError if settings, cluster or TPU are at fault, and WorkerLost if not all workers of the cluster came.
    """
    if config.strategy == "tpu":
        return connect_tpu(config.tpu)
    if config.strategy in ("auto", "multiworker"):
        # SLURM and Kubernetes describe jobs that need not train together; with auto only TF_CONFIG counts.
        wanted = config.strategy == "multiworker" or bool(os.environ.get("TF_CONFIG", "").strip())
        cluster = find_cluster(config.cluster_port, config.cluster_size) if wanted else None
        if cluster is not None and (len(cluster.workers) > 1 or config.strategy == "multiworker"):
            return join_cluster(cluster, config, log)
        if config.strategy == "multiworker":
            raise SettingError(
                "strategy",
                "multiworker needs to know the cluster: from TF_CONFIG, from a SLURM step (srun) or from a Kubernetes "
                "Indexed Job; scripts/launch_local.sh tries it out on one machine",
            )
    if config.logical_cpus > 1:
        split_cpu(config.logical_cpus)
    gpus = tf.config.list_logical_devices("GPU")
    devices = [device.name for device in gpus or tf.config.list_logical_devices("CPU")]
    if config.strategy == "one" or (config.strategy == "auto" and len(devices) == 1):
        return tf.distribute.get_strategy()
    return tf.distribute.MirroredStrategy(devices)


def is_tpu_strategy(strategy: tf.distribute.Strategy) -> bool:
    return isinstance(strategy, tf.distribute.TPUStrategy)


def check_batch(rows: int, gradient_accumulation_steps: int, strategy: tf.distribute.Strategy) -> int:
    """Returns the rows of each replica; raises SettingError if replicas or micro-batches cannot share them evenly."""
    replicas = strategy.num_replicas_in_sync
    if rows % replicas:
        raise SettingError("batch_size", f"{rows} rows cannot be shared by {replicas} replicas; use a multiple of both")
    if rows // replicas % gradient_accumulation_steps:
        raise SettingError(
            "gradient_accumulation_steps",
            f"{gradient_accumulation_steps} does not divide the {rows // replicas} rows that --batch_size={rows} "
            f"leaves to each of {replicas} replicas",
        )
    return rows // replicas


def distributed(strategy: tf.distribute.Strategy, make: Callable[..., tf.data.Dataset]) -> Any:
    """Returns a dataset, or an endless distributed dataset that gives every replica its part of every global batch.

    Every host reads only its own rows. The distributed dataset repeats because with a finite one the hosts of
    MultiWorkerMirroredStrategy ask each other at every batch whether all have data left; in a loop in the graph
    (TensorFlow 2.21) that question and the step's all-reduce wait for each other forever.

    `make` is called on every host with `num_shards` and `shard_index` (of hosts) and `parts`, the replicas of a host:
    the number of elements that a step's rows are split into, see `tfgpt.pipeline.batches`.
    """
    if strategy.num_replicas_in_sync == 1:
        return make()

    def make_for_host(context: tf.distribute.InputContext) -> tf.data.Dataset:
        dataset = make(
            num_shards=context.num_input_pipelines,
            shard_index=context.input_pipeline_id,
            parts=context.num_replicas_in_sync // context.num_input_pipelines,
        )
        return dataset.repeat()

    return strategy.distribute_datasets_from_function(make_for_host)


def split_cpu(count: int) -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    try:
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    except RuntimeError as error:
        raise SettingError("logical_cpus", f"cannot be {count} any more: {error}") from error


def join_cluster(
    cluster: Cluster, config: StrategyConfig, log: Callable[[str], None]
) -> tf.distribute.MultiWorkerMirroredStrategy:
    if config.logical_cpus > 1:
        raise SettingError("logical_cpus", "is for --strategy=mirrored; with multiworker every process has one CPU")
    wait_for_all_workers(cluster, config.cluster_timeout, log)
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(cluster.workers)}),
        task_type="worker",
        task_id=cluster.index,
        num_accelerators={"GPU": len(tf.config.list_physical_devices("GPU"))},
        rpc_layer="grpc",
    )
    if len(cluster.workers) > 1:
        from tensorflow.compiler.xla.tsl.protobuf import coordination_config_pb2
        from tensorflow.python.eager import context

        # MultiWorkerMirroredStrategy starts the coordination service too, but TensorFlow 2.21 has no public way to set
        # its time limit.
        context.context().configure_coordination_service(
            service_type="standalone",
            service_leader="/job:worker/replica:0/task:0",
            heartbeat_timeout_in_ms=HEARTBEAT_SECONDS * 1000,
            coordinated_jobs=[coordination_config_pb2.CoordinatedJob(name="worker", num_tasks=len(cluster.workers))],
        )
    line = f"tfgpt: worker {cluster.index}: TensorFlow did not join the cluster within {START_SECONDS} s"
    with killed_after(START_SECONDS, line):
        strategy = tf.distribute.MultiWorkerMirroredStrategy(resolver)
    # TensorFlow's coordination service has installed a handler of SIGTERM that does nothing.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return strategy


@contextlib.contextmanager
def killed_after(seconds: float, line: str) -> Iterator[None]:
    """Kills this process with a line on standard error if the block takes longer.

    Another process does it: while TensorFlow waits for a connection it ignores SIGTERM and blocks Python's threads.
    """
    program = (
        "import os, sys, time\n"
        "parent, seconds, line = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]\n"
        "end = time.monotonic() + seconds\n"
        "while time.monotonic() < end and os.getppid() == parent: time.sleep(0.2)\n"
        "if os.getppid() == parent: print(line, file=sys.stderr, flush=True); os.kill(parent, 9)\n"
    )
    watcher = subprocess.Popen([sys.executable, "-S", "-E", "-c", program, str(os.getpid()), str(seconds), line])
    try:
        yield
    finally:
        watcher.kill()
        watcher.wait()


def connect_tpu(name: str) -> tf.distribute.TPUStrategy:
    """Connects to a TPU: "local" (a TPU VM), "grpc://host:port" or the name of a Cloud TPU."""
    if name.startswith("grpc://"):
        host, _, port = name.removeprefix("grpc://").partition(":")
        try:
            socket.create_connection((host, int(port or 8470)), timeout=10).close()
        except (OSError, ValueError) as error:
            problem = f"--tpu: nothing answers at {name}; check the address, or use --tpu=local on a TPU VM"
            raise UserError(problem) from error
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=name)
        if name != "local":
            tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        strategy = tf.distribute.TPUStrategy(resolver)
    except (ValueError, RuntimeError, OSError, tf.errors.OpError) as error:
        why = " ".join(str(error).split())[:200]
        hint = "this needs a TPU VM with tensorflow-tpu installed" if name == "local" else "check its name and zone"
        raise UserError(f"--tpu: no TPU answers at {name!r} ({why}); {hint}") from error
    if strategy.extended.num_hosts > 1:
        # A Python function cuts the batches next to the memory-mapped shards; it cannot run on another host.
        raise SettingError(
            "tpu",
            f"{name} has {strategy.extended.num_hosts} hosts; one host (4 to 8 chips) is the most that is supported",
        )
    return strategy
