"""What a flag that takes a model was given: a run, a model directory, an adapter, an export, a GGUF file, a hub name.

One function for every flag: `find_model`. What has to be converted first is `tfgpt.conversion.cached_conversion`'s.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

from tfgpt.common.adapters import ADAPTER_CONFIG, is_adapter
from tfgpt.common.command_line import shell_command
from tfgpt.common.did_you_mean import closest_names, no_such_file
from tfgpt.common.errors import UserError
from tfgpt.common.output_directories import check_format, shorten_list

MODEL_FORMS = "a run, a model directory, an adapter, a .gguf file, a KerasHub preset or a name on the Hugging Face hub"
"""What stands for a model wherever its weights are needed; for `--help` and messages."""

MODEL_HELP = f"The model: {MODEL_FORMS}. What is no model directory of ours is converted into the cache, once."
"""`--help` of a flag that takes one."""

EXPORT_FORMS = "an export, such as models/chat, or one version of it, models/chat/1"
"""What `serve` takes."""

HUB_NAME = re.compile(r"(hf:)?([\w.-]{1,96}(?:/[\w.-]{1,96})?)", re.ASCII)
"""A repository's name, which `hf:` tells from a path where both could be meant."""

EXPORT_METADATA = Path("assets.extra", "tfgpt.json")


@dataclasses.dataclass(frozen=True)
class FoundModel:
    """What a name stands for.

    Attributes:
        name: as it was given.
        kind: "model directory", "adapter", "export", "GGUF file", "KerasHub preset" or "hub name".
        path: the directory (of an export its newest version) or file; of a hub name the name without `hf:`.
    """

    name: str
    kind: str
    path: Path


def find_model(name: str, flag: str = "model", taken: str = MODEL_FORMS) -> FoundModel:
    """What the value of a flag stands for; no file of weights is opened.

    Args:
        name: a run directory (its `model/` is meant), a model directory, an adapter, an export or one version of it, a
            GGUF file or the folder of a single one, a KerasHub preset, or the name of a model on the Hugging Face hub.
        flag: the flag's name, for messages.
        taken: what the flag takes, for messages.

    Raises:
        UserError: it is none of these; the line says what is there instead, or which names are near.
    """
    if not name.strip():
        raise UserError(f"--{flag}: is empty; what is taken: {taken}")
    try:
        return find_path(name, Path(name).expanduser(), flag, taken)
    except (OSError, RuntimeError) as error:  # RuntimeError: somebody's home folder that is not there.
        problem = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"--{flag}: {name[:200]}: cannot be read ({problem})") from error


def find_path(name: str, path: Path, flag: str, taken: str) -> FoundModel:
    """As `find_model`; what the operating system refuses is raised."""
    if path.is_dir():
        found = found_in(path, name) or refused(path, flag, taken)
        if found.path == path / "model":
            check_format(path, "run")
        return found
    if path.is_file():
        if is_gguf(path):
            return FoundModel(name, "GGUF file", path)
        hint = f"; give its folder, {path.parent}" if found_in(path.parent, name) else ""
        raise UserError(f"--{flag}: {path} is a file, but no GGUF file{hint}; what is taken: {taken}")
    if path.exists():
        raise UserError(f"--{flag}: {path} is neither a file nor a directory; what is taken: {taken}")
    match = HUB_NAME.fullmatch(name)
    if match and (match[1] or not meant_here(path)):
        return FoundModel(name, "hub name", Path(match[2]))
    hub = f"; for the Hugging Face hub: --{flag}=hf:{name}" if match and "/" in name else ""
    raise UserError(f"--{flag}: {no_such_file(path, 'no such file or directory')}{hub}")


def meant_here(path: Path) -> bool:
    """Whether a path that does not exist means a place here and no name on the hub.

    So it is where its folder is there, or something whose first part is spelled a little differently.
    """
    if path.suffix == ".gguf" or (len(path.parts) > 1 and path.parent.is_dir()):
        return True
    near = closest_names(path.parts[0], (entry.name for entry in Path().iterdir()))
    return any(Path(name, *path.parts[1:]).exists() for name in near)


def found_in(path: Path, name: str) -> FoundModel | None:
    """The model that a directory is or holds, or None."""
    for directory in (path, path / "model"):
        if is_adapter(directory):
            return FoundModel(name, "adapter", directory)
        if (directory / "config.json").is_file():
            preset = (directory / "metadata.json").is_file()
            return FoundModel(name, "KerasHub preset" if preset else "model directory", directory)
    version = newest_version(path)
    if version is not None:
        return FoundModel(name, "export", version)
    files = sorted(path.glob("*.gguf"))
    return FoundModel(name, "GGUF file", files[0]) if len(files) == 1 else None


def newest_version(path: Path) -> Path | None:
    """The newest version of an export; a version is its own; None where there is no export."""
    if (path / "saved_model.pb").is_file():
        return path
    if not path.is_dir():
        return None
    numbered = [entry for entry in path.iterdir() if entry.name.isdecimal() and entry.name.isascii()]
    versions = [entry for entry in numbered if (entry / "saved_model.pb").is_file()]
    return max(versions, key=lambda entry: int(entry.name), default=None)


def is_gguf(path: Path) -> bool:
    """Whether a file is a GGUF file, by its name or its first bytes."""
    if path.suffix == ".gguf":
        return True
    with open(path, "rb") as file:
        return file.read(4) == b"GGUF"


def refused(path: Path, flag: str, taken: str) -> FoundModel:
    """Refuses a directory that is no model, by what it is instead.

    Raises:
        UserError: always.
    """
    files = sorted(path.glob("*.gguf"))
    run = next((parent for parent in (path, *path.parents) if (parent / "flags.cfg").is_file()), None)
    if files:
        problem = f"holds {len(files)} GGUF files ({shorten_list([file.name for file in files])}); name one of them"
    elif (path / "search.json").is_file():
        best = path / "best"
        command = shell_command("train", f"--flagfile={path / 'best.cfg'}")
        what = f"give its best run, {best}" if found_in(best, "") else f"{command} trains its best run"
        problem = f"is a search; {what}"
    elif run is not None and run != path:
        problem = f"is no model but a part of the run {run}; give that"
    elif run is not None:
        command = shell_command("train", f"--flagfile={run / 'flags.cfg'}")
        problem = f"is a run without a model, which the run's end writes; {command} goes on with it"
    else:
        entries = [*path.iterdir(), *path.glob("snapshots/*")]
        models = sorted(str(entry.relative_to(path)) for entry in entries if entry.is_dir() and found_in(entry, ""))
        problem = (
            f"is no model but a folder of models; name one of {shorten_list(models)}"
            if models
            else no_model(path, taken)
        )
    raise UserError(f"--{flag}: {path} {problem}")


def no_model(path: Path, taken: str) -> str:
    """Why a directory that may have been meant as one is no model directory."""
    if not any(path.iterdir()):
        return f"is empty; what is taken: {taken}"
    places = f"no config.json in it, nor in {path / 'model'}" if (path / "model").is_dir() else "no config.json in it"
    return f"is no model: there is {places}, no {ADAPTER_CONFIG} and no saved_model.pb; what is taken: {taken}"


def no_weights_error(found: FoundModel, flag: str) -> UserError:
    """The line for an export given where weights are needed: it names the model that it was made of."""
    origin = ""
    try:
        made_of = json.loads((found.path / EXPORT_METADATA).read_text(encoding="utf-8"))["model"]
        there = "" if Path(made_of).expanduser().exists() else ", which is not there now"
        origin = f" it was made of: {made_of}{there}"
    except (OSError, ValueError, KeyError, TypeError):
        pass  # An export of another program.
    return UserError(
        f"--{flag}: {found.name} is an export, which serve and TensorFlow Serving take; weights are needed here: give "
        f"the model{origin} ({MODEL_FORMS})"
    )


def find_export(name: str, flag: str = "model") -> Path:
    """The version of an export that a flag of `serve` means.

    Raises:
        UserError: there is none; where there is a model of another form, the line says how to export it.
    """
    found = find_model(name, flag, EXPORT_FORMS)
    if found.kind == "export":
        return found.path
    output = Path("models", (Path(name).parent if Path(name).name == "model" else Path(name)).stem or "model")
    command = shell_command("export", f"--model={name}", f"--output={output}")
    if found.kind == "hub name" and not name.startswith("hf:"):
        missing = no_such_file(name, "no such file or directory")
        raise UserError(f"--{flag}: {missing}; what is taken: {EXPORT_FORMS} ({command} makes one of the hub's model)")
    raise UserError(f"--{flag}: {name} is a {found.kind}; what is taken: {EXPORT_FORMS}; {command} makes one")
