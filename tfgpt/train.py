"""Trains a decoder, doing whatever is missing on the way: reading text, training a tokenizer, making token shards.

The shortest form is `python -m tfgpt.train --train_text='my/*.txt'`. The run directory (default runs/NAME) receives
flags.cfg, metrics.jsonl, checkpoints/, tensorboard/, curves.png and model/. Ctrl-C and SIGTERM save and stop; the same
command goes on where it stopped.
"""

from __future__ import annotations

import sys
from typing import Any

from tfgpt.common.command import Command
from tfgpt.common.quiet import import_tensorflow
from tfgpt.training.recipe import GROUPS, Recipe


def run(**settings: Any) -> int:
    """Checks the settings together, then trains."""
    recipe = Recipe(**settings)
    import_tensorflow()
    from tfgpt.training.run import train

    return train(recipe, COMMAND.flag_file(recipe.settings()))


COMMAND = Command("train", __doc__, GROUPS, run)
main = COMMAND.run

if __name__ == "__main__":
    sys.exit(main())
