"""A flag that takes a model: which of the forms it was given, and what is said where it is none."""

import json
from pathlib import Path

import pytest

from tests.conftest import refusal
from tfgpt.common.errors import UserError
from tfgpt.common.model_paths import EXPORT_FORMS, MODEL_FORMS, find_export, find_model, no_weights_error


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A working directory with a model of each form; the files have no content, which nothing here reads."""
    for name in (
        "runs/quickstart/flags.cfg", "runs/quickstart/model/config.json", "runs/begun/flags.cfg",
        "runs/begun/checkpoints/step-00000005/state.safetensors", "runs/a-search/search.json",
        "models/smollm2/config.json", "models/preset/config.json", "models/preset/metadata.json",
        "models/lora/adapter_config.json", "models/chat/9/saved_model.pb", "models/chat/10/saved_model.pb",
        "models/chat/serving/serve.sh", "files/tiny-q4.gguf", "several/a.gguf", "several/b.gguf", "notes/plan.txt",
    ):  # fmt: skip
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (tmp_path / "files" / "unnamed").write_bytes(b"GGUF\3\0\0\0")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "kind", "path"),
    [
        ("runs/quickstart", "model directory", "runs/quickstart/model"),
        ("runs/quickstart/", "model directory", "runs/quickstart/model"),
        ("runs/quickstart/model", "model directory", "runs/quickstart/model"),
        ("models/smollm2", "model directory", "models/smollm2"),
        ("models/preset", "KerasHub preset", "models/preset"),
        ("models/lora", "adapter", "models/lora"),
        ("models/chat", "export", "models/chat/10"),
        ("models/chat/9", "export", "models/chat/9"),
        ("files/tiny-q4.gguf", "GGUF file", "files/tiny-q4.gguf"),
        ("files/unnamed", "GGUF file", "files/unnamed"),
        ("files", "GGUF file", "files/tiny-q4.gguf"),
        ("HuggingFaceTB/SmolLM2-135M", "hub name", "HuggingFaceTB/SmolLM2-135M"),
        ("hf:runs/quickstart", "hub name", "runs/quickstart"),
        ("gpt2", "hub name", "gpt2"),
    ],
)
def test_every_form_of_a_model_is_found(name, kind, path, here):
    found = find_model(name)
    assert (found.kind, found.path) == (kind, Path(path))


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("runs/quikstart", "runs/quikstart: no such file or directory; did you mean runs/quickstart?"),
        ("run/quickstart", "did you mean runs?"),
        ("quickstar.gguf", "quickstar.gguf: no such file or directory; the folder"),
        ("model", "model: no such file or directory; did you mean models?"),
        ("runs/begun", "runs/begun is a run without a model, which is written at the run's end; python -m tfgpt.train "
         "--flagfile=runs/begun/flags.cfg continues it"),
        ("runs/begun/checkpoints/step-00000005", "is not a model but a part of the run runs/begun; give that"),
        ("runs/a-search", "is a search; python -m tfgpt.train --flagfile=runs/a-search/best.cfg trains its best run"),
        ("models", "models is not a model but a folder of models; name one of chat, lora, preset, smollm2"),
        ("several", "several holds 2 GGUF files (a.gguf, b.gguf); name one of them"),
        ("empty", f"empty is empty; what is taken: {MODEL_FORMS}"),
        ("", f"is empty; what is taken: {MODEL_FORMS}"),
        ("x" * 5000, "cannot be read (File name too long)"),
        ("/dev/null", "/dev/null is neither a file nor a directory"),
        ("a\0b", "no such file or directory"),
        ("天地/玄黃", "no such file or directory"),
        ("notes", f"no config.json in it, no adapter_config.json and no saved_model.pb; what is taken: {MODEL_FORMS}"),
        ("notes/plan.txt", f"notes/plan.txt is a file, but not a GGUF file; what is taken: {MODEL_FORMS}"),
        ("models/smollm2/config.json", "is a file, but not a GGUF file; give its folder, models/smollm2; what"),
    ],
)  # fmt: skip
def test_a_path_without_a_model_is_refused_with_its_content(name, line, here):
    refused = refusal(find_model, name, "init_from")
    assert refused.startswith("--init_from: ") and line in refused


def test_a_name_on_the_hub_whose_folder_is_here_is_given_with_its_prefix(here):
    with pytest.raises(UserError, match=r"for the Hugging Face hub: --model=hf:models/other"):
        find_model("models/other")


def test_an_export_where_weights_are_needed_is_refused_with_its_model(here):
    assert str(no_weights_error(find_model("models/chat"), "init_from")) == (
        "--init_from: models/chat is an export, which serve and TensorFlow Serving take; weights are needed here: give "
        f"the model ({MODEL_FORMS})"
    )
    metadata = here / "models/chat/10/assets.extra/tfgpt.json"
    metadata.parent.mkdir()
    metadata.write_text(json.dumps({"model": "runs/quickstart"}))
    line = str(no_weights_error(find_model("models/chat"), "source"))
    assert "give the model it was made of: runs/quickstart (" in line
    metadata.write_text(json.dumps({"model": "runs/gone"}))
    assert "runs/gone, which does not exist any more (" in str(no_weights_error(find_model("models/chat"), "source"))


def test_a_model_that_is_not_exported_is_refused_with_the_export_command(here):
    assert find_export("models/chat") == Path("models/chat/10")
    for name, kind, output in (
        ("runs/quickstart", "model directory", "models/quickstart"),
        ("runs/quickstart/model", "model directory", "models/quickstart"),
        ("files/tiny-q4.gguf", "GGUF file", "models/tiny-q4"),
        ("hf:HuggingFaceTB/SmolLM2-135M", "hub name", "models/SmolLM2-135M"),
    ):
        command = f"python -m tfgpt.export --model={name} --output={output} makes one"
        line = f"--model: {name} is a {kind}; what is taken: {EXPORT_FORMS}; {command}"
        assert refusal(find_export, name) == line
    for name in ("notes", "empty", "notes/plan.txt", "gpt2"):
        line = refusal(find_export, name)
        assert f"what is taken: {EXPORT_FORMS}" in line and MODEL_FORMS not in line


def test_a_run_of_another_format_is_refused_by_name(tmp_path):
    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    (run / "model" / "config.json").write_text("{}")
    assert find_model(str(run)).path == run / "model"
    (run / "tfgpt.json").write_text('{"kind": "run", "format": 9}')
    with pytest.raises(UserError, match="run: is a run of format 9, and this tfgpt knows format 1"):
        find_model(str(run))
