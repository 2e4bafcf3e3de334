"""The serving files fit TensorFlow Serving's protos and Kubernetes' schema, and labels move as they should."""

import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from tfgpt.common.errors import UserError
from tfgpt.serving.serving_files import write_serving_files


@pytest.fixture
def output(tmp_path) -> Path:
    for number in (1, 2, 3):
        (tmp_path / "my_Chat" / str(number)).mkdir(parents=True)
    return tmp_path / "my_Chat"


def written(output: Path, version: int) -> Path:
    return write_serving_files(output, output / str(version), "example.org/serving:2", 4)


def model(folder: Path):
    config = model_server_config_pb2.ModelServerConfig()
    text_format.Parse((folder / "models.config").read_text(), config)
    [found] = config.model_config_list.config
    return found


def test_the_first_version_has_both_labels(output):
    found = model(written(output, 1))
    assert (found.name, found.base_path) == ("my_Chat", "/models/my_Chat")
    assert dict(found.version_labels) == {"stable": 1, "canary": 1}
    assert list(found.model_version_policy.specific.versions) == [1]


def test_a_new_version_becomes_the_canary_and_a_promoted_one_stays_stable(output):
    written(output, 1)
    folder = written(output, 2)
    assert dict(model(folder).version_labels) == {"stable": 1, "canary": 2}
    assert list(model(folder).model_version_policy.specific.versions) == [1, 2]
    config = folder / "models.config"
    config.write_text(config.read_text().replace('key: "stable" value: 1', 'key: "stable" value: 2'))
    assert dict(model(written(output, 3)).version_labels) == {"stable": 2, "canary": 3}
    assert "stable 2, canary 3" in (folder / "ROLLOUT.md").read_text()


def test_a_stable_version_that_is_gone_is_not_named(output):
    written(output, 1)
    (output / "1").rmdir()
    assert dict(model(written(output, 2)).version_labels) == {"stable": 2, "canary": 2}


def test_a_models_config_that_cannot_be_read_is_refused_and_kept(output):
    folder = written(output, 1)
    (folder / "models.config").write_text("model_config_list { nonsense }")
    with pytest.raises(UserError, match=r"models.config: not a model server configuration \(1:21"):
        written(output, 2)
    assert "nonsense" in (folder / "models.config").read_text()


def test_other_files_in_the_folder_are_kept_unless_it_may_be_replaced(output):
    folder = written(output, 1)
    (folder / "mine.yaml").write_text("a: 1")
    with pytest.raises(UserError, match=r"holds files that are not part of .* serving files \(mine.yaml\)"):
        written(output, 2)
    assert (folder / "mine.yaml").is_file() and dict(model(folder).version_labels)["canary"] == 1
    write_serving_files(output, output / "2", "example.org/serving:2", 4, overwrite=True)
    assert not (folder / "mine.yaml").exists() and dict(model(folder).version_labels)["canary"] == 2


def test_batching_parameters_are_those_of_the_servers_proto(output):
    # The fields of tensorflow_serving/servables/tensorflow/session_bundle_config.proto.
    lines = (written(output, 1) / "batching.config").read_text().splitlines()
    assert {line for line in lines if not line.startswith("#")} == {
        "max_batch_size { value: 16 }",
        "batch_timeout_micros { value: 5000 }",
        "max_enqueued_batches { value: 64 }",
        "num_batch_threads { value: 4 }",
        "pad_variable_length_inputs: true",
    }


def test_kubernetes_manifests_fit_the_schema(output):
    manifests = list(yaml.safe_load_all((written(output, 1) / "kubernetes.yaml").read_text()))
    assert [manifest["kind"] for manifest in manifests] == ["Deployment", "Service", "PodDisruptionBudget"]
    for manifest in manifests:
        kubernetes_validate.validate(manifest, "1.30", strict=True)


def test_compose_runs_the_same_command_with_the_same_files(output):
    folder = written(output, 1)
    [(name, service)] = yaml.safe_load((folder / "docker-compose.yaml").read_text())["services"].items()
    assert name == "tfgpt-my-chat"
    assert service["volumes"] == ["..:/models/my_Chat:ro", ".:/settings:ro"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert (folder / Path(service["entrypoint"][1]).name).is_file()


def test_the_command_line_names_files_that_are_there_and_settings_that_hold(output, tmp_path):
    folder = written(output, 1)
    server = tmp_path / "bin" / "tensorflow_model_server"
    server.parent.mkdir()
    server.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    server.chmod(0o755)
    environment = {"PATH": f"{server.parent}:/usr/bin:/bin", "SETTINGS": str(folder)}
    done = subprocess.run([folder / "serve.sh", "--v=1"], env=environment, capture_output=True, text=True)
    flags = dict(line.removeprefix("--").split("=", 1) for line in done.stdout.splitlines())
    assert int(flags["grpc_max_threads"]) == 64 and int(flags["rest_api_timeout_in_ms"]) > 30_000
    assert flags["v"] == "1"
    for name in ("model_config_file", "batching_parameters_file", "monitoring_config_file"):
        assert Path(flags[name]).is_file()
