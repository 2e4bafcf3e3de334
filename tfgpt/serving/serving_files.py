"""The files with which TensorFlow Serving runs an exported model: settings, command line, manifests, notes.

They are made from `templates/`, into `serving/` beside the versions. What is there of models.config is kept: the
version that was stable stays so, the new one becomes the canary.
"""

from __future__ import annotations

import re
import string
from pathlib import Path

from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from tfgpt.common.errors import UserError
from tfgpt.common.output_directories import check_replaceable, result_directory
from tfgpt.serving.export_metadata import SERVING_FOLDER

TEMPLATES = Path(__file__).with_name("templates")
# Memory of a server beside its weights: graphs, caches, batches.
SPARE_BYTES = 2 << 30


def check_serving_files(output: Path, overwrite: bool) -> None:
    """Refuses, before any work, a `serving/` that holds other files, or a models.config that cannot be read."""
    check_replaceable(output / SERVING_FOLDER, "serving files", "serving_files", overwrite)
    stable_version(output / SERVING_FOLDER / "models.config", output.resolve().name)


def write_serving_files(output: Path, version: Path, image: str, cores: int, overwrite: bool = False) -> Path:
    """Writes the files for a served model.

    Args:
        output: the served model's directory, whose name is the model's.
        version: the newest version's directory.
        image: the container image of TensorFlow Serving.
        cores: CPUs that the server gets.
        overwrite: replace `serving/` whatever it holds.

    Returns:
        The folder.

    Raises:
        UserError: `serving/` holds other files, or its models.config cannot be read.
    """
    name, canary, folder = output.resolve().name, int(version.name), output / SERVING_FOLDER
    stable = stable_version(folder / "models.config", name)
    if stable is None or not (output / str(stable)).is_dir():
        stable = canary
    weights = sum(path.stat().st_size for path in version.rglob("*") if path.is_file())
    values = {
        "name": name,
        # Kubernetes names are lower-case letters, digits and hyphens.
        "service": "tfgpt-" + (re.sub("[^a-z0-9]+", "-", name.lower()).strip("-") or "model"),
        "base_path": f"/models/{name}",
        "settings_path": "/settings",
        "versions": " ".join(f"versions: {number}" for number in sorted({stable, canary})),
        "stable": stable,
        "canary": canary,
        "image": image,
        "cores": cores,
        # Two versions, each read from a copy in the file cache.
        "memory": f"{(3 * weights + SPARE_BYTES) // (1 << 20)}Mi",
    }
    with result_directory(folder, "serving files", "serving_files", overwrite) as temporary:
        for template in sorted(TEMPLATES.iterdir()):
            text = string.Template(template.read_text(encoding="utf-8")).substitute(values)
            (temporary / template.name).write_text(text, encoding="utf-8")
        (temporary / "serve.sh").chmod(0o755)
    return folder


def stable_version(path: Path, name: str) -> int | None:
    """The version that a models.config calls stable; None where there is no such file or label.

    Raises:
        UserError: it is no model server configuration.
    """
    if not path.is_file():
        return None
    config = model_server_config_pb2.ModelServerConfig()
    try:
        text_format.Parse(path.read_text(encoding="utf-8"), config)
    except (text_format.ParseError, UnicodeDecodeError) as error:
        problem = str(error).splitlines()[0]
        raise UserError(f"{path}: is no model server configuration ({problem}); mend it or delete it") from error
    for model in config.model_config_list.config:
        if model.name == name and "stable" in model.version_labels:
            return model.version_labels["stable"]
    return None
