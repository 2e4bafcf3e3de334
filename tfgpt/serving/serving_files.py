"""Files for TensorFlow Serving: settings, command line, manifests and notes, made from `templates/`.

They are in the folder `serving/` next to the versions. A stable version of an earlier models.config stays stable; the
new version becomes the canary.
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
# Memory of a server in addition to its weights: graphs, caches, batches.
EXTRA_BYTES = 2 << 30


def check_serving_files(output: Path, overwrite: bool) -> None:
    """Raises a UserError if `serving/` holds other files, or its models.config cannot be read."""
    check_replaceable(output / SERVING_FOLDER, "serving files", "serving_files", overwrite)
    stable_version(output / SERVING_FOLDER / "models.config", output.resolve().name)


def write_serving_files(output: Path, version: Path, image: str, cores: int, overwrite: bool = False) -> Path:
    """Writes the files of a served model and returns their folder; the name of `output` is the model's name."""
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
        "memory": f"{(3 * weights + EXTRA_BYTES) // (1 << 20)}Mi",
    }
    with result_directory(folder, "serving files", "serving_files", overwrite) as temporary:
        for template in sorted(TEMPLATES.iterdir()):
            text = string.Template(template.read_text(encoding="utf-8")).substitute(values)
            (temporary / template.name).write_text(text, encoding="utf-8")
        (temporary / "serve.sh").chmod(0o755)
    return folder


def stable_version(path: Path, name: str) -> int | None:
    """Returns the version with the label "stable" in a models.config; None without such a file or label."""
    if not path.is_file():
        return None
    config = model_server_config_pb2.ModelServerConfig()
    try:
        text_format.Parse(path.read_text(encoding="utf-8"), config)
    except (text_format.ParseError, UnicodeDecodeError) as error:
        problem = str(error).splitlines()[0]
        raise UserError(f"{path}: not a model server configuration ({problem}); correct or delete it") from error
    for model in config.model_config_list.config:
        if model.name == name and "stable" in model.version_labels:
            return model.version_labels["stable"]
    return None
