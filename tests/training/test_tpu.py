"""Claims about the step on TPUs, traced and compiled without one: see fake_tpu.py and scripts/tpu_export_step.py."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from scripts import tpu_export_step
from tests.conftest import ROOT
from tests.training.fake_tpu import trace_apart
from tests.training.small_step import batches, dataset, make_trainer, state

SMALL = (
    "--preset=tiny --tokenizer=bytes --num_layers=1 --num_query_heads=2 --num_key_value_heads=1 --hidden_dim=16 "
    "--head_dim=8 --intermediate_dim=32 --sequence_length=16 --batch_size=8 --dtype=mixed_bfloat16 --compile=xla"
).split()
EVERYTHING = (
    "--dropout=0.1 --ema_decay=0.99 --gradient_accumulation_steps=2 --document_masking --cross_entropy_chunk_tokens=8 "
    "--rematerialize"
).split()
CASES = {
    "adamw": {"flags": [*SMALL, "--position_embedding=learned", "--normalization=layer_norm"]},
    "everything": {"flags": [*SMALL, *EVERYTHING, "--optimizer=muon"]},
    "adafactor": {"flags": [*SMALL, "--optimizer=adafactor", "--z_loss=0.001", "--label_smoothing=0.1"]},
    "lion": {"flags": [*SMALL, "--optimizer=lion", "--tie_embeddings=false", "--logit_soft_cap=30"]},
    "evaluation": {"flags": [*SMALL, "--document_masking"], "evaluation": True},
    "python": {"flags": SMALL, "fault": "python"},
    "string": {"flags": SMALL, "fault": "string"},
}
TRAINING = ("adamw", "everything", "adafactor", "lion")


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    return trace_apart(tmp_path_factory.mktemp("tpu"), CASES)


@pytest.mark.parametrize("case", TRAINING)
def test_an_update_is_one_program_that_sums_each_gradient_and_each_sum_once(traced: dict, case: str):
    found = traced[case]
    operations = found["operations"]
    assert operations["CrossReplicaSum"] == found["weights"] + 3
    assert not {"AllToAll", "CollectivePermute", "CollectiveReduceV2", "NcclAllReduce"} & set(operations)
    # Several steps a call are a loop on the host around one program, not a loop in it.
    assert found["host_loops"] == 1 and operations["TPUReplicateMetadata"] == 1
    # Each weight, slot, average and counter is written, and nothing else; learning_rate_scale is one of them.
    assert operations["AssignVariableOp"] == found["variables"]


@pytest.mark.parametrize("case", [*TRAINING, "evaluation"])
def test_xla_has_a_kernel_for_every_operation(traced: dict, case: str):
    assert traced[case]["unknown"] == []
    assert sum(traced[case]["operations"].values()) > 100


def test_evaluation_sums_over_the_cores_and_writes_nothing(traced: dict):
    operations = traced["evaluation"]["operations"]
    assert operations["CrossReplicaSum"] == 6
    assert "AssignVariableOp" not in operations


@pytest.mark.parametrize(
    ("fault", "operations"), [("python", {"EagerPyFunc"}), ("string", {"AsString", "StringToNumber"})]
)
def test_an_operation_for_the_host_in_the_step_is_found(traced: dict, fault: str, operations: set[str]):
    assert set(traced[fault]["unknown"]) == operations


def test_the_step_as_a_tpu_compiles_it_computes_the_same_update():
    settings = {
        "model": {"dropout": 0.2},
        "optimizer": {"ema_decay": 0.9, "max_grad_norm": 0.5},
        "step": {"gradient_accumulation_steps": 2},
    }
    rows = batches(3)
    usual, whole = make_trainer(**settings), make_trainer(**settings)
    usual.train_steps(iter(dataset(rows)), 3)
    step = tf.function(lambda batch: whole.train_step(batch), jit_compile=True, autograph=False)
    with tpu_export_step.as_on_tpu(replicas=1):
        for row in rows:
            logs = step({name: tf.constant(value) for name, value in row.items()})
    for name, value in state(usual).items():
        np.testing.assert_allclose(state(whole)[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    assert 0 < float(logs["update_ratio"]) < 1


def exported(out: Path, *more: str) -> tuple[bytes, dict]:
    assert tpu_export_step.main([f"--out={out}", *SMALL, *more]) == 0
    return out.read_bytes(), json.loads(out.with_suffix(".json").read_text())


def test_the_exported_step_donates_its_variables_and_sums_over_chips(tmp_path: Path):
    alone, facts = exported(tmp_path / "alone.mlirbc", "--rows=3", "--micro_batches=2", "--ema_decay=0.9")
    summed, _ = exported(tmp_path / "summed.mlirbc", "--rows=3", "--micro_batches=2", "--ema_decay=0.9", "--replicas=4")
    assert alone.startswith(b"ML\xefR") and b"alias" in alone
    assert b"all_reduce" in summed and b"all_reduce" not in alone
    # 260 x 16 embeddings, 2 x 16 x 16 + 2 x 16 x 8 attention, 2 x 8 query-key norm, 3 x 16 x 32 MLP, 3 x 16 norms.
    parameters = 260 * 16 + 2 * 16 * 16 + 2 * 16 * 8 + 2 * 8 + 3 * 16 * 32 + 3 * 16
    assert facts["parameters"] == parameters
    assert facts["weight_bytes"] == facts["average_bytes"] == 4 * parameters
    # AdamW's two numbers a parameter, and the number of the step, the rate's factor and the rate itself if kept.
    assert 0 < facts["optimizer_bytes"] - 8 * parameters <= 16
    assert (facts["rows"], facts["micro_batches"], facts["tokens"]) == (3, 2, 6 * 16)


def test_exporting_a_large_model_takes_no_memory_for_its_variables(tmp_path: Path):
    flags = ["--rows=1", "--num_layers=1", "--hidden_dim=4096", "--head_dim=64", "--intermediate_dim=16384"]
    command = [sys.executable, ROOT / "scripts" / "tpu_export_step.py", f"--out={tmp_path / 'step'}", *SMALL, *flags]
    # Not getrusage: Linux gives a new program the peak of the process that started it, here the test's own gigabytes.
    program = (
        "import runpy, sys; sys.argv = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally: print(*(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    command[1:1] = ["-c", program]
    done = subprocess.run(
        [*map(str, command)], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    facts = json.loads((tmp_path / "step.json").read_text())
    state_bytes = facts["weight_bytes"] + facts["optimizer_bytes"]
    assert state_bytes > 2.4e9
    # TensorFlow itself holds about 0.6 GB.
    assert int(done.stdout.splitlines()[-1]) * 1024 < 1.2e9


def test_flags_that_do_not_fit_are_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert tpu_export_step.main([f"--out={tmp_path / 'step'}", *SMALL, "--batch_size=12"]) == 2
    assert re.fullmatch(r"tpu_export_step: --batch_size: 12 rows .*\n", capsys.readouterr().err)
    assert tpu_export_step.main([f"--out={tmp_path / 'step'}", *SMALL, "--hidden_dimm=12"]) == 2
    assert "hidden_dimm" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


TPU_PYTHON = Path(os.environ.get("TPU_VENV", ROOT / ".venv-tpu")) / "bin" / "python"


@pytest.mark.slow
@pytest.mark.skipif(not TPU_PYTHON.exists(), reason="scripts/tpu_compile.sh has not made .venv-tpu, and no TPU_VENV")
def test_the_step_compiles_for_every_chip(tmp_path: Path):
    out = tmp_path / "results.json"
    command = ["scripts/tpu_compile.sh", "--rows=2", "--replicas=4", f"--json={out}", f"--cache={tmp_path}", *SMALL]
    environment = {**os.environ, "VENV": os.environ.get("VENV", sys.prefix), "TPU_VENV": str(TPU_PYTHON.parents[1])}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    results = json.loads(out.read_text())
    assert [result["chip"] for result in results] == ["v4", "v4core", "v5e", "v5p", "v6e"]
    for result in results:
        assert result["fits"] and result["all_reduces"] >= 1
        assert result["all_reduced_bytes"] >= result["weight_bytes"]
        assert result["argument_bytes"] >= result["weight_bytes"] + result["optimizer_bytes"]
        assert result["flops_per_token"] * result["tokens"] == pytest.approx(result["model_flops"], rel=0.5)
