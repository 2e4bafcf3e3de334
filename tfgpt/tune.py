"""Searches for better settings: trains many short runs and writes a flag file for `train`.

The shortest form is `python -m tfgpt.tune --train_text='my/*.txt' --search_space=configs/search/learning_rate.toml`.
Every flag of `train` is a flag here and sets a value that is not searched. The search directory receives trials.csv,
best.cfg, search.json, report.html, tensorboard/ (HParams) and a run directory for each trial. Ctrl-C and SIGTERM save
and stop; the same command continues, also after a kill or a power cut.
"""

from __future__ import annotations

import sys
from typing import Any

from tfgpt.common.command_line import Command
from tfgpt.search.config import SearchConfig, SeedComparisonConfig
from tfgpt.search.study import make_study
from tfgpt.search.trials import read_trials
from tfgpt.training.train_config import GROUPS, relocate_run_dir


def run(search: SearchConfig, seed_comparison: SeedComparisonConfig, **settings: Any) -> int:
    """Checks space and flags together, then searches, compares and reports."""
    study = make_study(search, settings)
    if seed_comparison.report_only:
        read_trials(study.directory)
    study.claim()
    if not seed_comparison.report_only:
        from tfgpt.search.worker_pool import has_the_results, run_search

        run_search(study)
        if not has_the_results():
            return 0
    from tfgpt.search.seed_comparison import conclude

    return conclude(study, seed_comparison)


COMMAND = Command("tune", __doc__, (SearchConfig, SeedComparisonConfig, *GROUPS), run, relocate_run_dir, resumable=True)
main = COMMAND.run

if __name__ == "__main__":
    sys.exit(main())
