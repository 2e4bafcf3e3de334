"""Searches for better settings: trains many short runs and leaves a flag file that `train` takes as it is.

The shortest form is `python -m tfgpt.tune --train_text='my/*.txt' --search_space=configs/search/learning_rate.toml`.
Every flag of `train` is a flag here, the setting of whatever is not searched. The search directory receives trials.csv,
best.cfg, search.json, report.html, tensorboard/ (HParams) and a run directory for each trial. Ctrl-C and SIGTERM save
and stop; the same command goes on where it stopped, also after a kill or a power cut.
"""

from __future__ import annotations

import sys
from typing import Any

from tfgpt.common.command_line import Command
from tfgpt.search.conclusion import check_begun, conclude
from tfgpt.search.config import SearchConfig
from tfgpt.search.seed_comparison_config import SeedComparisonConfig
from tfgpt.search.study import make_study
from tfgpt.training.train_config import GROUPS, relocate_run_dir


def run(search: SearchConfig, seed_comparison: SeedComparisonConfig, **settings: Any) -> int:
    """Checks space and flags together, then searches, judges and reports."""
    plan = make_study(search, settings)
    if seed_comparison.report_only:
        check_begun(plan)
    plan.claim()
    if not seed_comparison.report_only:
        from tfgpt.search.workers import has_the_results, launch

        exit_code = launch(plan)
        if exit_code or not has_the_results():
            return exit_code
    return conclude(plan, seed_comparison)


COMMAND = Command("tune", __doc__, (SearchConfig, SeedComparisonConfig, *GROUPS), run, relocate_run_dir, resumable=True)
main = COMMAND.run

if __name__ == "__main__":
    sys.exit(main())
