"""Claims about settings classes."""

import dataclasses
import importlib
import re

import pytest

from tfgpt.common.errors import SettingError
from tfgpt.common.settings import Settings, setting


@dataclasses.dataclass(frozen=True)
class BoxConfig(Settings):
    """A box."""

    width: float = setting(1.0, "Width.", minimum=0.5)
    lids: int = setting(1, "Lids.")
    labels: tuple[str, ...] = setting((), "Labels.")
    shelf: str | None = setting(None, "Where it stands.", path=True)


def test_settings_turn_to_json_values_and_back():
    box = BoxConfig(width=2, labels=("a", "b"))
    assert box.to_dict() == {"width": 2.0, "lids": 1, "labels": ["a", "b"], "shelf": None}
    assert BoxConfig.from_dict(box.to_dict()) == box


@pytest.mark.parametrize(
    ("values", "name"),
    [({"width": 0.4}, "width"), ({"width": "wide"}, "width"), ({"lids": 1.5}, "lids"), ({"lids": True}, "lids"),
     ({"lids": None}, "lids"), ({"height": 1}, "height")],
)  # fmt: skip
def test_a_wrong_value_is_refused_by_name(values, name):
    with pytest.raises(SettingError, match=f"--{name}:") as caught:
        BoxConfig.from_dict(values)
    assert caught.value.exit_code == 2


def test_a_tilde_becomes_the_home_directory(monkeypatch, tmp_path):
    # huggingface/transformers#10628: no shell does it behind `--name=`, and `rm -rf ~` is no way to undo it.
    monkeypatch.setenv("HOME", str(tmp_path))
    assert BoxConfig(shelf="~/runs/x").shelf == f"{tmp_path}/runs/x"
    assert BoxConfig(shelf="runs/~x").shelf == "runs/~x"


@pytest.mark.parametrize(
    ("path", "words"),
    [("gs://bucket/run", "not a path on this machine"), ("s3://b/x", "not a path on this machine"),
     ("file:///tmp/x", "not a path on this machine"), ("~nobody_here/x", "no such home directory")],
)  # fmt: skip
def test_a_path_on_another_machine_is_refused(path, words):
    # tensorpack/tensorpack#1317: Python's Path makes a folder "gs:" of it, lost with the virtual machine.
    with pytest.raises(SettingError, match=f"--shelf: {path}.*{words}"):
        BoxConfig(shelf=path)


def test_every_flag_that_is_a_path_is_declared_so():
    commands = "chat convert doctor evaluate export generate prepare scale serve train tune".split()
    named = re.compile(r".*_(dir|file|path)|model|source|output|load|init_from|tokenizer|evaluation_text")
    forgotten = [
        f"{name} --{field.name}"
        for name in commands
        for group in importlib.import_module(f"tfgpt.{name}").COMMAND.groups
        for field in dataclasses.fields(getattr(group, "settings", group))
        if named.fullmatch(field.name) and isinstance(field.default, (str, type(None)))
        and not field.metadata.get("path") and field.name != "tfds_data_dir"
    ]  # fmt: skip
    assert not forgotten
