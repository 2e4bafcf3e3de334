"""The end of a search: the table, report.html, and the best trials against the default settings over several seeds.

The best of many trials looks better than it is, by luck. The comparison trains the settings with other seeds and
compares them with the default settings seed by seed.

    SEARCH_DIR/top/0007/seed-1/        the run directory of a setting and seed
    SEARCH_DIR/seed_comparison.csv     one row a run
    SEARCH_DIR/seed_comparison.json    means, standard deviations, differences
"""

from __future__ import annotations

import dataclasses
import importlib.util
import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from tfgpt.common.atomic_files import write_csv, write_json
from tfgpt.common.errors import SettingError
from tfgpt.search.cached_run import VALIDATED, check_same_flags, run_once
from tfgpt.search.config import OBJECTIVES, SeedComparisonConfig
from tfgpt.search.study import Study
from tfgpt.search.trials import Trial, read_trials
from tfgpt.training.train_config import TrainConfig

DEFAULT = "default"
REPORT_PACKAGES = {"plotly": "plotly", "sklearn": "scikit-learn"}

Results = dict[tuple[str, int], dict[str, Any]]


def conclude(study: Study, config: SeedComparisonConfig) -> int:
    """Compares and reports the trials in a search directory, also of an unfinished search; returns the exit code."""
    from tfgpt.search.report import console_table, write_report

    table = read_trials(study.directory)
    print(console_table(table))
    missing = [package for module, package in REPORT_PACKAGES.items() if importlib.util.find_spec(module) is None]
    if not missing:
        write_report(table)  # Before the trainings, which may take hours.
    if config.compare_best:
        if not compare_seeds(study, config):
            return 0
        if not missing:
            write_report(table)
    if missing:
        install = f"{missing[0]} is not installed (pip install 'tfgpt[search]')"
        print(f"No report.html: {install}; then --report_only makes it")
        return 2 if config.report_only else 0
    print(f"Report:      {study.directory / 'report.html'}")
    logs = shlex.quote(str(study.directory / "tensorboard"))
    print(f"TensorBoard: python -m tensorboard.main --logdir={logs}   (HPARAMS)")
    return 0


def compare_seeds(study: Study, config: SeedComparisonConfig) -> bool:
    """Trains what is missing, writes seed_comparison.csv and seed_comparison.json, and prints the summary.

    Returns False if a signal stopped it; the same command continues.
    """
    objective = study.search.search_objective
    if objective not in VALIDATED:
        problem = f"compares {', '.join(VALIDATED)}; --search_objective={objective} has no seeds to compare"
        raise SettingError("compare_best", problem)
    best = read_trials(study.directory).ranked()[: config.compare_best]
    if not best:
        raise SettingError("compare_best", f"{study.directory} has no finished trial yet")
    seeds = [study.settings["run"].seed + 1 + number for number in range(config.compare_seeds)]
    settings = {DEFAULT: default_config(study), **{trial.trial_id: config_of(study, trial) for trial in best}}
    # Seed by seed, so that the first comparison is possible early.
    runs = {(name, seed): with_seed(study, config, name, settings[name], seed) for seed in seeds for name in settings}
    for run in runs.values():
        check_same_flags("search_dir", run)
    results: Results = {}
    for number, ((name, seed), run) in enumerate(runs.items(), 1):
        result = run_once(run)
        if result is None:
            print("Stopped; the same command continues.", flush=True)
            return False
        results[name, seed] = {"settings": name, "seed": seed, "objective": result[objective], **result}
        print(f"Trained again {number} of {len(runs)}: {name}, seed {seed}: {objective} {result[objective]:.4f}",
              flush=True)  # fmt: skip
    columns = list(dict.fromkeys(column for result in results.values() for column in result))
    rows = ([result.get(column, "") for column in columns] for result in results.values())
    write_csv(study.directory / "seed_comparison.csv", columns, rows)
    summary = summarize(objective, results, list(settings), seeds)
    write_json(study.directory / "seed_comparison.json", summary)
    print(format_summary(summary))
    return True


def config_of(study: Study, trial: Trial) -> TrainConfig:
    flags = study.result(trial.trial_id)["request"]["flags"]
    lists = {name: tuple(value) for name, value in flags.items() if isinstance(value, list)}
    return study.train_config({**flags, **lists}, trial.trial_id)


def default_config(study: Study) -> TrainConfig:
    """Returns the configuration without the search: the command's flags, for as many tokens as a trial."""
    trial, config = study.train_config({}, DEFAULT), TrainConfig(**study.settings)
    run = dataclasses.replace(trial.run, max_steps=study.steps(study.settings))
    return dataclasses.replace(config, run=run, logging=trial.logging)


def with_seed(study: Study, comparison: SeedComparisonConfig, name: str, config: TrainConfig, seed: int) -> TrainConfig:
    directory = study.directory / "top" / name / f"seed-{seed}"
    run, logging = dataclasses.replace(config.run, run_dir=str(directory), seed=seed), config.logging
    if comparison.compare_tokens:
        steps = max(1, round(comparison.compare_tokens / (config.batch.batch_size * config.batch.sequence_length)))
        run, logging = dataclasses.replace(run, max_steps=steps), dataclasses.replace(logging, validate_every=0)
    return dataclasses.replace(config, run=run, logging=logging)


def summarize(objective: str, results: Results, names: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
    """Returns means and standard deviations over seeds, and differences from the default with the same seed.

    The interval is Student's, at 95%.
    """
    settings = []
    for name in names:
        values = np.array([results[name, seed][objective] for seed in seeds])
        row: dict[str, Any] = {
            "name": name, "values": values.tolist(), "mean": float(values.mean()),
            "standard_deviation": float(values.std(ddof=1)),
        }  # fmt: skip
        if name != DEFAULT:
            differences = values - np.array([results[DEFAULT, seed][objective] for seed in seeds])
            mean, error = float(differences.mean()), float(stats.sem(differences))
            half = float(stats.t.ppf(0.975, len(seeds) - 1)) * error
            row["difference"] = {"mean": mean, "standard_error": error, "low": mean - half, "high": mean + half}
        settings.append(row)
    tokens = sorted({result["tokens"] for result in results.values()})
    return {
        "objective": objective,
        "more_is_better": OBJECTIVES[objective],
        "seeds": list(seeds),
        "tokens": tokens[-1],
        "tokens_least": tokens[0],
        "settings": settings,
    }


def format_summary(summary: dict[str, Any]) -> str:
    seeds = len(summary["seeds"])
    lines = [f"{summary['objective']} after {summary['tokens']:,} tokens, {seeds} seeds (mean ± standard deviation):"]
    for row in summary["settings"]:
        text = f"  {row['name']:<8} {row['mean']:.4f} ± {row['standard_deviation']:.4f}"
        if "difference" in row:
            mean, low, high = (row["difference"][name] for name in ("mean", "low", "high"))
            text += f"; minus default, seed by seed: {mean:+.4f} (95%: {low:+.4f} to {high:+.4f})"
        lines.append(text)
    return "\n".join(lines)
