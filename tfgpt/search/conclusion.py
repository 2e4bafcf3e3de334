"""The end of a search: the table, the best settings trained again, report.html and TensorBoard's HParams page."""

from __future__ import annotations

import importlib.util

from tfgpt.common.errors import UserError
from tfgpt.search.judging_config import JudgingConfig
from tfgpt.search.plan import Plan


def conclude(plan: Plan, config: JudgingConfig) -> int:
    """Judges and reports what the search directory holds; also a search that was stopped halfway.

    Returns:
        The exit code.

    Raises:
        UserError: there is no search, or what the report is drawn with is not installed.
        RunError: a training failed.
    """
    path = plan.directory / "trials.csv"
    if not path.is_file():
        if config.report_only:
            raise UserError(f"--search_dir: {plan.directory} holds no search ({path.name} is missing)")
        # A worker of a cluster: the chief has the table.
        return 0
    for module, package in (("plotly", "plotly"), ("sklearn", "scikit-learn")):
        if importlib.util.find_spec(module) is None:
            print(f"No report: {package} is not installed (pip install 'tfgpt[search]'); then --report_only makes it")
            return 2 if config.report_only else 0
    from tfgpt.common.quiet import import_tensorflow

    import_tensorflow()
    from tfgpt.search.judging import judge
    from tfgpt.search.report import console_table, write_report
    from tfgpt.search.trials import read_trials

    trials = read_trials(plan.directory)
    print(console_table(trials))
    write_report(trials)
    if config.top:
        if not judge(plan, config):
            return 0
        write_report(trials)
    print(f"Report:      {plan.directory / 'report.html'}")
    print(f"TensorBoard: python -m tensorboard.main --logdir={plan.directory / 'tensorboard'}   (HPARAMS)")
    return 0
