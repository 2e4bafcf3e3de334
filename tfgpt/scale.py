"""Fits a scaling law to a handful of small runs, checks it on a run held out, and says which size a budget is best for.

The law is Chinchilla's, L(N, D) = E + A / N^a + B / D^b (arXiv:2203.15556). Every flag of `train` is a flag here: the
model that is made wider and narrower. With --parametrization=maximal_update one learning rate is right for all widths.
Finished runs are not trained again; the same command continues a stopped or killed one.
"""

from __future__ import annotations

import sys
from typing import Any

from tfgpt.common.command_line import Command
from tfgpt.search.scaling import ScalingConfig, scale
from tfgpt.training.train_config import GROUPS, relocate_run_dir


def run(scaling: ScalingConfig, **settings: Any) -> int:
    """Trains, fits, predicts."""
    return scale(scaling, settings)


COMMAND = Command("scale", __doc__, (ScalingConfig, *GROUPS), run, relocate_run_dir, resumable=True)
main = COMMAND.run

if __name__ == "__main__":
    sys.exit(main())
