"""Exports a trained model as a SavedModel for TensorFlow Serving: from text to text, with core TensorFlow operations.

The shortest form is `python -m tfgpt.export --model=runs/quickstart --output=models/chat`. It writes a new version and
renames it into place after verification: the server's loader opens it and runs every signature, and its tokens equal
those of `python -m tfgpt.generate`. The sampling flags are the defaults of requests.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import sys
from typing import Any

from tfgpt.common.command_line import Command
from tfgpt.common.errors import UserError
from tfgpt.common.flags import Overrides
from tfgpt.common.tf_logging import import_tensorflow
from tfgpt.conversion.cached_conversion import model_directory
from tfgpt.generation.config import SamplingConfig
from tfgpt.serving.export_config import NOT_IN_EXPORTS, ExportConfig
from tfgpt.serving.export_metadata import check_export_root
from tfgpt.tokenization.load import load_tokenizer


def run(export: ExportConfig, sampling: dict[str, Any]) -> None:
    """Checks the inputs without TensorFlow, then writes."""
    defaults = SamplingConfig(**sampling)
    if defaults.max_new_tokens > export.max_new_tokens_limit:
        raise UserError(
            f"--max_new_tokens: {defaults.max_new_tokens} is above --max_new_tokens_limit={export.max_new_tokens_limit}"
        )
    check_export_root(export.output)
    directory = model_directory(export.model)
    tokenizer = load_tokenizer(directory)
    if tokenizer.in_graph_limitation:
        raise UserError(f"{tokenizer.origin}: cannot run in the TensorFlow graph: {tokenizer.in_graph_limitation}")
    if importlib.util.find_spec("tensorflow_serving") is None:
        raise UserError("tensorflow-serving-api is missing, which warm-up records need; pip install 'tfgpt[serve]'")
    import_tensorflow()
    from tfgpt.serving.export import export as write_export

    version = write_export(export, defaults, directory, tokenizer, lambda line: print(line, flush=True))
    size = sum(path.stat().st_size for path in version.rglob("*") if path.is_file())
    print(f"Written: {version} ({size / 1e6:.1f} MB)")
    root = os.path.abspath(version.parent)
    flags = [f"--model_name={os.path.basename(root)}", f"--model_base_path={root}"]
    print(f"Serve:   tensorflow_model_server --port=8500 --rest_api_port=8501 {shlex.join(flags)}")


SAMPLING = Overrides(SamplingConfig, "sampling", "default: as generate's", NOT_IN_EXPORTS)
COMMAND = Command("export", __doc__, [ExportConfig, SAMPLING], run)
main = COMMAND.run

if __name__ == "__main__":
    sys.exit(main())
