"""Sources that are refused, each by one line, before anything is written; models on a hub."""

import hashlib
import http.server
import json
import re
import threading
from pathlib import Path

import gguf
import numpy as np
import pytest

from tests.conversion.gguf_files import finish, write_tensor
from tests.conversion.tiny import converted, refusal
from tests.serving.models import save_model
from tfgpt.model.checkpoints.huggingface import load_decoder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), unused_ids=0, num_layers=2)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "bert"}, "model_type 'bert' is not supported"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config: gptq quantized weights"),
        ({"model_type": "smollm3", "no_rope_layers": [0, 1]}, "no_rope_layers is not supported where"),
    ],
)
def test_what_we_cannot_compute_is_refused_by_name_before_weights_are_looked_at(change, reason, model, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    config = json.loads((model / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, **change}))
    assert reason in refusal(source, tmp_path / "out")


def test_what_is_missing_is_named(model, tmp_path):
    source = tmp_path / "source"
    assert "nothing here: no such file or directory; the folder" in refusal("./nothing here", tmp_path / "out")
    source.mkdir()
    assert "source is empty" in refusal(source, tmp_path / "out")
    (source / "config.json").write_bytes((model / "config.json").read_bytes())
    assert "there are no weights in it (model.safetensors)" in refusal(source, tmp_path / "out")
    (source / "pytorch_model.bin").write_bytes(b"")
    assert "pickled weights can run code and are not read" in refusal(source, tmp_path / "out")
    (source / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    assert "there is no tokenizer in it (tokenizer.json)" in refusal(source, tmp_path / "out")


def test_gguf_files_that_we_cannot_compute_are_refused_by_name(tmp_path):
    path = tmp_path / "model.gguf"
    assert f"{path}: no such file or directory" in refusal(path, tmp_path / "out")
    path.write_bytes(b"GGUF but nothing behind it")
    assert f"{path}: cannot be read as GGUF" in refusal(path, tmp_path / "out")
    write_tensor(path, np.ones((2, 256), np.float32), architecture="mamba")
    assert "general.architecture 'mamba' is not supported" in refusal(path, tmp_path / "out")
    write_tensor(path, np.ones((2, 256), np.float32))
    assert "llama.attention.head_count is missing" in refusal(path, tmp_path / "out")


def refusal_of_metadata(path: Path, **metadata: str | int) -> str:
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in metadata.items():
        if isinstance(value, str):
            writer.add_string(name.replace("_", "."), value)
        else:
            writer.add_uint16(name.replace("_", "."), value)
    finish(writer)
    return refusal(path, path.with_name("out"))


def test_a_part_of_a_split_file_says_how_the_parts_are_joined(tmp_path):
    path = tmp_path / "my model-00002-of-00003.gguf"
    assert refusal_of_metadata(path, split_no=1, split_count=3) == (
        f"{path}: is part 2 of 3 of a split model; llama-gguf-split --merge "
        f"'{tmp_path}/my model-00001-of-00003.gguf' '{tmp_path}/my model.gguf' makes it one file"
    )


@pytest.mark.parametrize(
    ("kind", "advice"),
    [("adapter", "llama-export-lora"), ("mmproj", "the language model"), ("imatrix", "only guides"), ("vocab", "only")],
)
def test_what_is_no_model_is_named(kind, advice, tmp_path):
    line = refusal_of_metadata(tmp_path / "file.gguf", general_type=kind)
    assert f"does not hold a model (general.type is '{kind}'); " in line and advice in line


class Hub(http.server.BaseHTTPRequestHandler):
    """What huggingface_hub asks of a hub: the list of a repository's files, and the files."""

    files: dict[str, bytes] = {}
    asked: list[str] = []
    commit = "0123456789012345678901234567890123456789"

    def do_HEAD(self) -> None:
        self.answer(with_content=False)

    def do_GET(self) -> None:
        self.answer(with_content=True)

    def answer(self, with_content: bool) -> None:
        self.asked.append(self.path)
        path = self.path.split("?")[0]
        found = re.fullmatch(r"/someone/tiny/resolve/[^/]+/(.*)", path)
        if path.startswith("/api/models/someone/tiny"):
            listed = [{"rfilename": name} for name in self.files]
            tree = [{"type": "file", "path": name, "size": len(c), "oid": "0"} for name, c in self.files.items()]
            described = {"id": "someone/tiny", "sha": self.commit, "siblings": listed, "private": False}
            content = json.dumps(tree if "/tree/" in path else described).encode()
        elif found and found.group(1) in self.files:
            content = self.files[found.group(1)]
        else:
            known = path.startswith("/someone/tiny")
            gated = path.startswith("/someone/gated")
            self.send_response(403 if gated else 404)
            self.send_header("X-Error-Code", "GatedRepo" if gated else "EntryNotFound" if known else "RepoNotFound")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.commit)
        self.end_headers()
        if with_content:
            self.wfile.write(content)

    def log_message(self, *arguments) -> None:
        pass


@pytest.fixture
def hub(model, tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    # The environment variable HF_ENDPOINT is read when huggingface_hub is imported, which other tests have done.
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    Hub.files = {path.name: path.read_bytes() for path in model.iterdir()} | {"pytorch_model.bin": b"not wanted"}
    Hub.asked = []
    yield
    server.shutdown()


def test_a_name_on_the_hub_is_downloaded_and_converted(hub, model, tmp_path):
    output = converted("someone/tiny", tmp_path / "out")
    ids = np.arange(8, dtype=np.int32)[None]
    np.testing.assert_array_equal(
        load_decoder(output)({"token_ids": ids}).numpy(), load_decoder(model)({"token_ids": ids}).numpy()
    )
    assert json.loads((output / "training.json").read_text())["source_description"]["revision"] == Hub.commit
    assert not any("pytorch_model.bin" in path for path in Hub.asked)


def test_a_model_on_the_hub_that_we_cannot_compute_is_refused_by_its_config_alone(hub, tmp_path):
    Hub.files = {**Hub.files, "config.json": json.dumps({"model_type": "mamba"}).encode()}
    assert "model_type 'mamba' is not supported" in refusal("someone/tiny", tmp_path / "out")
    assert not any("safetensors" in path for path in Hub.asked)


def test_a_name_that_the_hub_does_not_know_or_give_is_refused(hub, tmp_path):
    assert "no/body is not here, and not a model on the Hugging Face hub" in refusal("no/body", tmp_path / "out")
    assert "/someone/gated, then set HF_TOKEN" in refusal("someone/gated", tmp_path / "out")


def test_a_hub_that_cannot_be_reached_is_not_taken_for_one_without_the_model(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "hub cannot be reached" in refusal("someone/tiny", tmp_path / "out")
