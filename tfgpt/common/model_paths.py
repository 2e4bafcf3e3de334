"""Finds the model of a flag: a run, a model directory, an adapter, an export, a GGUF file or a hub name."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from pathlib import Path

from tfgpt.common.adapters import ADAPTER_CONFIG, is_adapter
from tfgpt.common.command_line import shell_command
from tfgpt.common.did_you_mean import closest_names, no_such_file
from tfgpt.common.errors import UserError
from tfgpt.common.output_directories import check_format, shorten_list

# What a flag for a model with weights takes; for `--help` and messages.
MODEL_FORMS = "a run, a model directory, an adapter, a .gguf file, a KerasHub preset or a name on the Hugging Face hub"
MODEL_HELP = f"The model: {MODEL_FORMS}. Other formats than tfgpt's are converted into the cache, once."
EXPORT_FORMS = "an export, such as models/chat, or one version of it, models/chat/1"
# A repository's name; the prefix `hf:` tells it from a path.
HUB_NAME = re.compile(r"(hf:)?([\w.-]{1,96}(?:/[\w.-]{1,96})?)", re.ASCII)
EXPORT_METADATA = Path("assets.extra", "tfgpt.json")


@dataclasses.dataclass(frozen=True)
class FoundModel:
    """A model that a flag names.

    Attributes:
        name: the flag's value.
        kind: "model directory", "adapter", "export", "GGUF file", "KerasHub preset" or "hub name".
        path: the directory (of an export its newest version) or file; of a hub name the name without `hf:`.

    Example:

    >>> find_model("hf:HuggingFaceTB/SmolLM2-135M").kind
    'hub name'
    """

    name: str
    kind: str
    path: Path


def find_model(name: str, flag: str = "model", forms: str = MODEL_FORMS) -> FoundModel:
    """Returns the model of a flag; opens no file of weights.

    Args:
        name: a run directory (for its `model/`), a model directory, an adapter, an export or one version of it, a
            GGUF file or the folder of a single one, a KerasHub preset, or the name of a model on the Hugging Face hub.
    """
    if not name.strip():
        raise UserError(f"--{flag}: is empty; what is taken: {forms}")
    path = Path(name)
    try:
        path = path.expanduser()
        if path.is_dir():
            found = model_in(path, name)
            if found is None:
                raise UserError(f"--{flag}: {path} {directory_problem(path, forms)}")
            if found.path == path / "model":
                check_format(path, "run")
            return found
        if path.is_file() and is_gguf(path):
            return FoundModel(name, "GGUF file", path)
        if path.is_file():
            hint = f"; give its folder, {path.parent}" if model_in(path.parent, name) else ""
            raise UserError(f"--{flag}: {path} is a file, but not a GGUF file{hint}; what is taken: {forms}")
        if path.exists():
            raise UserError(f"--{flag}: {path} is neither a file nor a directory; what is taken: {forms}")
        match = HUB_NAME.fullmatch(name)
        if match and (match[1] or not is_meant_as_path(path)):
            return FoundModel(name, "hub name", Path(match[2]))
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no such home folder.
        problem = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"--{flag}: {name[:200]}: cannot be read ({problem})") from error
    hub = f"; for the Hugging Face hub: --{flag}=hf:{name}" if match and "/" in name else ""
    raise UserError(f"--{flag}: {no_such_file(path, 'no such file or directory')}{hub}")


def no_weights_error(found: FoundModel, flag: str) -> UserError:
    """Returns the error for an export given where weights are needed, with the model of the export."""
    origin = ""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # An export of another program.
        model = json.loads((found.path / EXPORT_METADATA).read_text(encoding="utf-8"))["model"]
        missing = "" if Path(model).expanduser().exists() else ", which does not exist any more"
        origin = f" it was made of: {model}{missing}"
    return UserError(
        f"--{flag}: {found.name} is an export, which serve and TensorFlow Serving take; weights are needed here: give "
        f"the model{origin} ({MODEL_FORMS})"
    )


def find_export(name: str, flag: str = "model") -> Path:
    """Returns the version of an export that a flag of `serve` names."""
    found = find_model(name, flag, EXPORT_FORMS)
    if found.kind == "export":
        return found.path
    output = Path("models", (Path(name).parent if Path(name).name == "model" else Path(name)).stem or "model")
    command = shell_command("export", f"--model={name}", f"--output={output}")
    if found.kind == "hub name" and not name.startswith("hf:"):
        missing = no_such_file(name, "no such file or directory")
        raise UserError(f"--{flag}: {missing}; what is taken: {EXPORT_FORMS} ({command} makes one of the hub's model)")
    raise UserError(f"--{flag}: {name} is a {found.kind}; what is taken: {EXPORT_FORMS}; {command} makes one")


def is_meant_as_path(path: Path) -> bool:
    """Returns whether a missing path means a file here: its folder, or one with a similar name, exists."""
    if path.suffix == ".gguf" or (len(path.parts) > 1 and path.parent.is_dir()):
        return True
    close = closest_names(path.parts[0], (entry.name for entry in Path().iterdir()))
    return any(Path(name, *path.parts[1:]).exists() for name in close)


def model_in(path: Path, name: str = "") -> FoundModel | None:
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
    if (path / "saved_model.pb").is_file():
        return path
    entries = path.iterdir() if path.is_dir() else ()
    numbered = [entry for entry in entries if entry.name.isdecimal() and entry.name.isascii()]
    versions = [entry for entry in numbered if (entry / "saved_model.pb").is_file()]
    return max(versions, key=lambda entry: int(entry.name), default=None)


def is_gguf(path: Path) -> bool:
    if path.suffix == ".gguf":
        return True
    with open(path, "rb") as file:
        return file.read(4) == b"GGUF"


def directory_problem(path: Path, forms: str) -> str:
    files = sorted(path.glob("*.gguf"))
    if files:
        return f"holds {len(files)} GGUF files ({shorten_list([file.name for file in files])}); name one of them"
    if (path / "search.json").is_file():
        command = shell_command("train", f"--flagfile={path / 'best.cfg'}")
        best = path / "best"
        return "is a search; " + (f"give its best run, {best}" if model_in(best) else f"{command} trains its best run")
    run = next((parent for parent in (path, *path.parents) if (parent / "flags.cfg").is_file()), None)
    if run is not None and run != path:
        return f"is not a model but a part of the run {run}; give that"
    if run is not None:
        command = shell_command("train", f"--flagfile={run / 'flags.cfg'}")
        return f"is a run without a model, which is written at the run's end; {command} continues it"
    entries = [*path.iterdir(), *path.glob("snapshots/*")]
    models = sorted(str(entry.relative_to(path)) for entry in entries if entry.is_dir() and model_in(entry))
    if models:
        return f"is not a model but a folder of models; name one of {shorten_list(models)}"
    if not entries:
        return f"is empty; what is taken: {forms}"
    folders = f"in it, nor in {path / 'model'}" if (path / "model").is_dir() else "in it"
    missing = f"there is no config.json {folders}, no {ADAPTER_CONFIG} and no saved_model.pb"
    return f"is not a model: {missing}; what is taken: {forms}"
