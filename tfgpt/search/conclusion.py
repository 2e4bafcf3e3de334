"""The end of a search: the table, the best settings trained again, report.html and TensorBoard's HParams page."""

from __future__ import annotations

import importlib.util
import shlex

from tfgpt.common.errors import UserError
from tfgpt.search.seed_comparison_config import SeedComparisonConfig
from tfgpt.search.study import Study

REPORT_NEEDS = {"plotly": "plotly", "sklearn": "scikit-learn"}


def check_begun(plan: Study) -> None:
    """Refuses to report on nothing.

    Raises:
        UserError: there is no search in the directory.
    """
    if not (plan.directory / "trials.csv").is_file():
        raise UserError(f"--search_dir: {plan.directory} holds no search (trials.csv is missing)")


def conclude(plan: Study, config: SeedComparisonConfig) -> int:
    """Judges and reports what the search directory holds; also a search that was stopped halfway.

    Returns:
        The exit code.

    Raises:
        UserError: the table is damaged, or there is nothing to judge.
        RunError: a training failed.
    """
    if not (plan.directory / "trials.csv").is_file():
        # A worker of a cluster: the chief has the table.
        return 0
    from tfgpt.common.tf_logging import import_tensorflow

    import_tensorflow()
    from tfgpt.search.report import console_table, write_report
    from tfgpt.search.seed_comparison import compare_seeds
    from tfgpt.search.trials import read_trials

    trials = read_trials(plan.directory)
    print(console_table(trials))
    missing = [package for module, package in REPORT_NEEDS.items() if importlib.util.find_spec(module) is None]
    if not missing:
        # Before the trainings, which may take hours.
        write_report(trials)
    if config.compare_best:
        if not compare_seeds(plan, config):
            return 0
        if not missing:
            write_report(trials)
    if missing:
        print(
            f"No report.html: {missing[0]} is not installed (pip install 'tfgpt[search]'); then --report_only makes it"
        )
        return 2 if config.report_only else 0
    print(f"Report:      {plan.directory / 'report.html'}")
    logs = shlex.quote(str(plan.directory / "tensorboard"))
    print(f"TensorBoard: python -m tensorboard.main --logdir={logs}   (HPARAMS)")
    return 0
