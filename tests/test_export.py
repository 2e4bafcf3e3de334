"""`python -m tfgpt.export` as a user runs it: what it writes and says, and what it refuses."""

import json
import os
import shutil
from pathlib import Path

import pytest
import tensorflow as tf

from tests.serving.models import save_model
from tfgpt import export
from tfgpt.common.errors import RunError
from tfgpt.common.output_directories import working_directory
from tfgpt.serving.saved_model_session import SessionModel


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("run") / "model", max_sequence_length=40).parent


@pytest.fixture
def said(capsys):
    def run(*arguments: str | Path) -> tuple[int, str, str]:
        code = export.main(list(map(str, arguments)))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def a_version(path: Path) -> None:
    """What stands for an earlier version, made before roots said what they are."""
    (path / "assets.extra").mkdir(parents=True)
    (path / "assets.extra" / "tfgpt.json").write_text("{}")


def shown(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if not path.name.startswith("."))


@pytest.mark.parametrize("precision", ["int8", "bfloat16"])
def test_a_version_is_written_verified_and_described(model, said, tmp_path, precision):
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 20)
    a_version(tmp_path / "chat" / "4")
    code, out, err = said(
        f"--model={model}", f"--output={tmp_path / 'chat'}", f"--precision={precision}", f"--evaluation_text={text}",
        "--max_new_tokens=5", "--serving_files",
    )  # fmt: skip
    assert code == 0, err
    version = tmp_path / "chat" / "5"
    assert "Quality on 900 bytes of" in out and f"bits per byte in {precision}" in out and "%" in out
    assert "Verified: 8 signatures through the session loader" in out
    assert f"Written: {version}" in out
    assert shown(version.parent) == ["4", "5", "serving", "tfgpt.json"]
    described = json.loads((version / "assets.extra" / "tfgpt.json").read_text())
    expected = {"format": 1, "precision": precision, "operations": "core TensorFlow only"}
    assert expected.items() <= described.items()
    assert described["defaults"]["max_new_tokens"] == 5
    assert described["bits_per_byte"]["float32"] == pytest.approx(described["bits_per_byte"][precision], rel=0.1)
    dtypes = {dtype for dtype in checkpoint_types(version).values()}
    assert (tf.int8 if precision == "int8" else tf.bfloat16) in dtypes
    with SessionModel(version) as opened:
        # The server sends no bfloat16 over REST.
        types = {info.dtype for entry in opened.signatures.values() for info in entry.outputs.values()}
    assert types <= {tf.float32.as_datatype_enum, tf.int32.as_datatype_enum, tf.string.as_datatype_enum}


def checkpoint_types(version: Path) -> dict[str, tf.DType]:
    reader = tf.train.load_checkpoint(str(version / "variables" / "variables"))
    return {name: dtype for name, dtype in reader.get_variable_to_dtype_map().items() if dtype != tf.string}


def refused(said, *arguments: str | Path) -> str:
    code, out, err = said(*arguments)
    assert code == 2 and err.count("\n") == 1 and not out
    return err


def test_what_cannot_be_exported_is_refused_in_one_line(model, said, tmp_path):
    output = f"--output={tmp_path}"
    assert "--model: is missing" in refused(said, output)
    assert "--output: is missing" in refused(said, f"--model={model}")
    assert "--precision" in refused(said, f"--model={model}", output, "--precision=float16")
    assert "--max_new_tokens: 9 is above --max_new_tokens_limit=8" in refused(
        said, f"--model={model}", output, "--max_new_tokens=9", "--max_new_tokens_limit=8"
    )
    assert "num_beams" in refused(said, f"--model={model}", output, "--num_beams=2")
    a_version(tmp_path / "3")
    problem = refused(said, f"--model={model}", output, "--version=3")
    assert f"--version: {tmp_path / '3'} exists" in problem
    assert shown(tmp_path) == ["3", "tfgpt.json"]


def test_a_folder_that_holds_something_else_is_refused_and_untouched(model, said, tmp_path):
    kept = {"thesis/notes.txt": "mine", "other/1/saved_model.pb": "another program's", "other/1/assets/a": "b"}
    for name, text in kept.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for output, problem in {
        "thesis": "holds other files (notes.txt) and no export",
        "other": "holds other files (1) and no export",
        "other/1": f"is a SavedModel; give the folder of its versions, such as {tmp_path / 'other'}",
        "thesis/notes.txt": "is a file",
    }.items():
        assert problem in refused(said, f"--model={model}", f"--output={tmp_path / output}/")
    assert "--output: " in refused(said, f"--model={model}", f"--output={model}")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert {name: (tmp_path / name).read_text() for name in kept} == kept


def test_serving_files_that_a_person_has_put_there_are_kept(model, said, tmp_path):
    a_version(tmp_path / "1")
    (tmp_path / "serving").mkdir()
    (tmp_path / "serving" / "mine.yaml").write_text("a: 1")
    problem = refused(said, f"--model={model}", f"--output={tmp_path}", "--serving_files")
    assert "--serving_files: " in problem and "mine.yaml" in problem and "--overwrite" in problem
    assert (tmp_path / "serving" / "mine.yaml").read_text() == "a: 1" and shown(tmp_path / "serving") == ["mine.yaml"]


def test_a_second_export_into_the_folder_ends_at_once(model, said, tmp_path):
    with working_directory(tmp_path, "export", "output"):
        problem = refused(said, f"--model={model}", f"--output={tmp_path}")
    assert f"--output: {tmp_path} is being written by process {os.getpid()} on " in problem


def test_a_file_that_is_no_sentencepiece_model_is_named(model, said, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(model / "model", copy)
    (copy / "tokenizer.json").rename(copy / "tokenizer.model")
    problem = refused(said, f"--model={copy}", f"--output={tmp_path / 'out'}")
    assert f"{copy / 'tokenizer.model'}: is not a SentencePiece model" in problem


def test_a_version_that_does_not_answer_as_the_model_is_not_published(model, said, tmp_path, monkeypatch):
    # That verification finds such versions is tests/serving/test_verification.py's; here is what comes of it.
    def different(directory, generator, defaults):
        assert (directory / "saved_model.pb").is_file() and not directory.name.isdigit()
        raise RunError("the exported signature generate generates [1], the model [2]")

    monkeypatch.setattr("tfgpt.serving.export.verify", different)
    code, out, err = said(f"--model={model}", f"--output={tmp_path / 'chat'}", "--evaluation_bytes=0")
    assert code == 1 and "the exported signature generate generates" in err and "Written" not in out
    assert shown(tmp_path / "chat") == ["tfgpt.json"]
