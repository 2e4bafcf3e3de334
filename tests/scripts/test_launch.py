"""The launch recipes: the Kubernetes manifest is valid, the SLURM file starts workers that find each other."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from tests.conftest import ROOT
from tests.training.test_faults import FLAGS
from tfgpt import train
from tfgpt.training.train_config import TrainConfig

MANIFEST = ROOT / "scripts/launch_kubernetes.yaml"
SHORT = [*FLAGS, "--max_steps=4", "--validate_every=4", "--log_every=2"]
# Stands in for srun, which needs a SLURM installation: it starts as many tasks as --ntasks-per-node says, on this
# machine, with the variables that srun of SLURM 22.05 was seen to set for them (2026-11-23).
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
for index in 0 1; do
  SLURM_PROCID=$index SLURM_STEP_ID=0 SLURM_STEP_NUM_NODES=1 SLURM_STEP_NUM_TASKS=2 SLURM_STEP_NODELIST=localhost \\
    SLURM_STEP_TASKS_PER_NODE=2 "$@" &
done
wait -n && wait -n
"""


def test_the_kubernetes_manifest_is_valid():
    service, job = yaml.safe_load_all(MANIFEST.read_text())
    for document in (service, job):
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
    # A check that finds nothing wrong with anything would be none.
    job["spec"]["completionsMode"] = "Indexed"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)


def test_the_kubernetes_manifest_agrees_with_itself_and_with_the_flags():
    service, job = yaml.safe_load_all(MANIFEST.read_text())
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    recipe = TrainConfig(
        **train.COMMAND.parse([part.replace("configs/", f"{ROOT}/configs/") for part in container["args"]])
    )
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == recipe.strategy.cluster_size
    assert service["spec"]["ports"][0]["port"] == recipe.strategy.cluster_port
    assert service["metadata"]["name"] == pod["subdomain"]
    assert service["spec"]["selector"]["job-name"] == job["metadata"]["name"]
    failing = job["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"]
    assert recipe.run.preempted_exit_code not in [0, *failing]
    mounted = [mount["mountPath"] for mount in container["volumeMounts"]]
    assert str(recipe.run_dir).startswith(mounted[0])


@pytest.mark.slow
def test_the_slurm_file_starts_workers_that_find_each_other(text_file, tmp_path):
    srun = tmp_path / "bin/srun"
    srun.parent.mkdir()
    srun.write_text(SRUN)
    srun.chmod(0o755)
    flags = [*SHORT, f"--train_text={text_file}", f"--run_dir={tmp_path / 'run'}", f"--cluster_port={two_ports()}"]
    done = subprocess.run(
        ["bash", str(ROOT / "scripts/launch_slurm.sbatch"), *flags],
        cwd=ROOT, capture_output=True, text=True, timeout=600,
        env={**os.environ, "PATH": f"{srun.parent}:{os.environ['PATH']}", "PYTHON": sys.executable},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 share each batch, 4 rows each (MultiWorkerMirroredStrategy of 2 workers)" in done.stdout
    assert (tmp_path / "run/model/model.safetensors").is_file()


def two_ports() -> int:
    from tests.training.topologies import free_addresses

    for _ in range(50):
        port = int(free_addresses(1)[0].rsplit(":", 1)[1])
        done = subprocess.run(
            [sys.executable, "-c", f"import socket; socket.create_server(('localhost', {port + 1}))"], check=False
        )
        if done.returncode == 0:
            return port
    raise AssertionError("no two free ports in a row")


def test_the_local_launcher_trains_with_two_workers_and_shows_the_errors_of_the_others(text_file, tmp_path):
    launcher = ["bash", str(ROOT / "scripts/launch_local.sh"), "2"]
    environment = {**os.environ, "PYTHON": sys.executable, "LOG_DIR": str(tmp_path / "logs")}
    flags = [*SHORT, f"--train_text={text_file}", f"--run_dir={tmp_path / 'run'}"]
    done = subprocess.run([*launcher, *flags], cwd=ROOT, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 share each batch" in done.stdout
    assert (tmp_path / "logs/worker-1.log").is_file()
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 4
    done = subprocess.run(
        [*launcher, "--batch_size=3", "--train_text=nowhere.txt"],
        cwd=ROOT, capture_output=True, text=True, timeout=600, env=environment,
    )  # fmt: skip
    assert done.returncode == 2
    assert "worker 1 ended with exit code 2\ntfgpt.train: " in done.stderr


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "scripts").glob("*.s[hb]*")))
def test_the_shell_scripts_are_whole(script: str):
    subprocess.run(["bash", "-n", str(ROOT / "scripts" / script)], check=True)
    text = (ROOT / "scripts" / script).read_text()
    # Every file of ours that a script names is there.
    for name in re.findall(r"(?:configs|scripts)/[\w./-]+\.\w+", text):
        assert Path(ROOT / shlex.split(name)[0]).exists(), name
