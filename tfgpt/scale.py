"""Fits a scaling law to several small runs, checks it on a held-out run, and finds the best model size of a budget.

The law is Chinchilla's, L(N, D) = E + A / N^a + B / D^b (arXiv:2203.15556). Every flag of `train` is a flag here and
describes the model whose width varies. With --parametrization=maximal_update one learning rate fits all widths. After a
stop or a kill the same command continues; finished runs are not trained again.
"""

from __future__ import annotations

import sys
from typing import Any

from tfgpt.common.command_line import Command
from tfgpt.search.scaling import ScalingConfig, scale
from tfgpt.training.train_config import GROUPS, relocate_run_dir


def run(scaling: ScalingConfig, **settings: Any) -> int:
    """Trains the runs, fits the law and predicts."""
    return scale(scaling, settings)


COMMAND = Command("scale", __doc__, (ScalingConfig, *GROUPS), run, relocate_run_dir, resumable=True)
main = COMMAND.run

if __name__ == "__main__":
    sys.exit(main())
