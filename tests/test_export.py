"""`python -m tfgpt.export` as a user runs it: what it writes and says, and what it refuses."""

import json
import shutil
from pathlib import Path

import pytest
import tensorflow as tf

from tests.serving.models import save_model
from tfgpt import export
from tfgpt.common.errors import RunError
from tfgpt.serving.session import SessionModel


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A model directory in its run directory."""
    return save_model(tmp_path_factory.mktemp("run") / "model", max_sequence_length=40).parent


@pytest.fixture
def said(capsys):
    """Runs the command in this process; returns its exit code, output and error."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        code = export.main(list(map(str, arguments)))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.mark.parametrize("precision", ["int8", "bfloat16"])
def test_a_version_is_written_verified_and_described(model, said, tmp_path, precision):
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 20)
    (tmp_path / "chat" / "4").mkdir(parents=True)
    code, out, err = said(
        f"--model={model}", f"--output={tmp_path / 'chat'}", f"--precision={precision}", f"--quality_text={text}",
        "--max_new_tokens=5", "--serving_files",
    )  # fmt: skip
    assert code == 0, err
    version = tmp_path / "chat" / "5"
    assert "Quality on 900 bytes of" in out and f"bits per byte in {precision}" in out and "%" in out
    assert "Verified: 8 signatures through the session loader" in out
    assert f"Written: {version}" in out
    assert sorted(path.name for path in version.parent.iterdir()) == ["4", "5", "serving"]
    described = json.loads((version / "assets.extra" / "tfgpt.json").read_text())
    assert described["precision"] == precision and described["operations"] == "core TensorFlow only"
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
    (tmp_path / "3").mkdir()
    problem = refused(said, f"--model={model}", output, "--version=3")
    assert f"--version: {tmp_path / '3'} is there already" in problem
    assert [path.name for path in tmp_path.iterdir()] == ["3"]


def test_a_sentencepiece_model_that_was_not_converted_is_refused(model, said, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(model / "model", copy)
    (copy / "tokenizer.json").rename(copy / "tokenizer.model")
    problem = refused(said, f"--model={copy}", f"--output={tmp_path / 'out'}")
    assert "has a SentencePiece model that was not converted; python -m tfgpt.convert" in problem


def test_a_version_that_does_not_answer_as_the_model_is_not_published(model, said, tmp_path, monkeypatch):
    # That verification finds such versions is tests/serving/test_verification.py's; here is what comes of it.
    def different(directory, generator, defaults):
        assert (directory / "saved_model.pb").is_file() and not directory.name.isdigit()
        raise RunError("the exported signature generate writes [1], generate [2]")

    monkeypatch.setattr("tfgpt.serving.export.verify", different)
    code, out, err = said(f"--model={model}", f"--output={tmp_path / 'chat'}", "--quality_bytes=0")
    assert code == 1 and "the exported signature generate writes" in err and "Written" not in out
    assert list((tmp_path / "chat").iterdir()) == []
