"""Trains a decoder, after reading the text, training a tokenizer and making token shards where these are missing.

The shortest form is `python -m tfgpt.train --train_text='my/*.txt'`. The run directory (default runs/NAME) receives
flags.cfg, metrics.jsonl, checkpoints/, tensorboard/, curves.png and model/. Ctrl-C and SIGTERM save and stop; the same
command continues where it stopped.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from tfgpt.common.command_line import Command
from tfgpt.common.output_directories import check_not_in_use, check_working_directory
from tfgpt.common.tf_logging import import_tensorflow
from tfgpt.training.distribution.restarts import run_with_restarts
from tfgpt.training.train_config import GROUPS, TrainConfig, relocate_run_dir


def run(**settings: Any) -> int:
    """Checks the settings together, then trains."""
    recipe = TrainConfig(**settings)
    if recipe.run.restarts:
        # The same training without restarts, in another process.
        command = [sys.executable, "-m", "tfgpt.train", *COMMAND.arguments(recipe.settings()), "--restarts=0"]
        return run_with_restarts(command, recipe.run.restarts)
    check_working_directory(recipe.run_dir, "run", "run_dir")
    if recipe.strategy.strategy != "multiworker" and "TF_CONFIG" not in os.environ:
        # On a cluster only the chief writes, and only TensorFlow knows which worker that is.
        check_not_in_use(recipe.run_dir, "run_dir")
    import_tensorflow()
    from tfgpt.training.run import train

    return train(recipe, COMMAND.flag_file(recipe.settings()))


COMMAND = Command("train", __doc__, GROUPS, run, relocate_run_dir, resumable=True)
main = COMMAND.run

if __name__ == "__main__":
    sys.exit(main())
