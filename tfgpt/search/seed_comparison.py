"""The best trials and the default settings trained again with several seeds: what a search was worth, with its spread.

The best of many trials looks better than it is, by luck. Here each of the settings is trained from other seeds, for
the same number of tokens, and compared with the default settings seed by seed.

    SEARCH_DIR/top/0007/seed-1/   a run directory each; killed, it goes on where it was
    SEARCH_DIR/seed_comparison.csv        one row a run
    SEARCH_DIR/seed_comparison.json       means, standard deviations, differences
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from tfgpt.common.atomic_files import write_csv, write_json
from tfgpt.common.errors import SettingError
from tfgpt.search.config import OBJECTIVES
from tfgpt.search.resumable_run import check_same_flags, finished_run
from tfgpt.search.seed_comparison_config import SeedComparisonConfig
from tfgpt.search.study import TRAIN, Study
from tfgpt.search.trials import Trials, read_trials
from tfgpt.training.train_config import TrainConfig

DEFAULT = "default"
JUDGED = ("validation_bits_per_byte", "validation_loss", "validation_accuracy")


def compare_seeds(plan: Study, config: SeedComparisonConfig) -> bool:
    """Trains what is missing, writes seed_comparison.csv and seed_comparison.json, and says what came of it.

    Returns:
        False when a signal stopped it; the same command goes on.

    Raises:
        UserError: there are no finished trials, or runs were begun with other flags.
        RunError: a run failed.
    """
    trials = read_trials(plan.directory)
    objective = plan.search.search_objective
    if objective not in JUDGED:
        raise SettingError(
            "compare_best", f"compares {', '.join(JUDGED)}; --search_objective={objective} has no seeds to compare"
        )
    best = trials.ranked()[: config.compare_best]
    if not best:
        raise SettingError("compare_best", f"{plan.directory} has no finished trial yet")
    settings = {DEFAULT: {}, **{trial.trial_id: searched_flags(plan, trials, trial.trial_id) for trial in best}}
    seeds = [plan.settings["run"].seed + 1 + number for number in range(config.compare_seeds)]
    recipes = {
        (name, seed): recipe_of(plan, config, name, flags, seed) for name, flags in settings.items() for seed in seeds
    }
    for recipe in recipes.values():
        check_same_flags("search_dir", recipe)
    results: dict[tuple[str, int], dict[str, Any]] = {}
    # Seed by seed, so that something can be compared early.
    for number, key in enumerate(sorted(recipes, key=lambda key: key[1]), 1):
        name, seed = key
        result = finished_run(recipes[key])
        if result is None:
            print("Stopped; the same command goes on where it stopped.", flush=True)
            return False
        results[key] = result
        print(f"Trained again {number} of {len(recipes)}: {name}, seed {seed}: {objective} {result[objective]:.4f}",
              flush=True)  # fmt: skip
    write_runs(plan, objective, results)
    summary = summarized(objective, results, list(settings), seeds)
    write_json(plan.directory / "seed_comparison.json", summary)
    print(in_lines(summary))
    return True


def searched_flags(plan: Study, trials: Trials, trial_id: str) -> dict[str, Any]:
    """A trial's searched flags as settings, exactly as its run had them."""
    path = plan.trial_dir(trial_id) / "flags.cfg"
    settings = TRAIN.parse([f"--flagfile={path}"])
    flat: dict[str, Any] = {}
    for part in settings.values():
        flat.update(part if isinstance(part, dict) else vars(part))
    (trial,) = [trial for trial in trials.trials if trial.trial_id == trial_id]
    return {name: flat[name] for name in trials.parameters if name in trial.flags and name in flat}


def recipe_of(plan: Study, config: SeedComparisonConfig, name: str, flags: dict[str, Any], seed: int) -> TrainConfig:
    """The recipe of one of the runs: the trial's, or the default settings', with another seed and directory."""
    recipe = default_recipe(plan) if name == DEFAULT else plan.recipe(flags, name)
    run = dataclasses.replace(recipe.run, run_dir=str(plan.directory / "top" / name / f"seed-{seed}"), seed=seed)
    if config.compare_tokens:
        steps = max(1, round(config.compare_tokens / (recipe.batch.batch_size * recipe.batch.sequence_length)))
        run = dataclasses.replace(run, max_steps=steps)
        logging = dataclasses.replace(recipe.logging, validate_every=0)
        recipe = dataclasses.replace(recipe, logging=logging)
    return dataclasses.replace(recipe, run=run)


def default_recipe(plan: Study) -> TrainConfig:
    """What would be trained without a search: the command's flags, for as many tokens as a trial."""
    recipe = plan.recipe({}, DEFAULT)
    as_given = TrainConfig(**plan.settings)
    run = dataclasses.replace(recipe.run, max_steps=plan.steps(plan.settings))
    return dataclasses.replace(as_given, run=run, logging=recipe.logging)


def summarized(
    objective: str, results: dict[tuple[str, int], dict[str, Any]], names: Sequence[str], seeds: Sequence[int]
) -> dict[str, Any]:
    """Means and standard deviations over seeds, and differences from the default with the same seed.

    The interval is Student's: 95% of such intervals hold the true mean difference, if differences are about normal.
    """
    settings = []
    base = np.array([results[DEFAULT, seed][objective] for seed in seeds])
    for name in names:
        values = np.array([results[name, seed][objective] for seed in seeds])
        each: dict[str, Any] = {
            "name": name,
            "values": values.tolist(),
            "mean": float(values.mean()),
            "standard_deviation": float(values.std(ddof=1)),
        }
        if name != DEFAULT:
            difference = values - base
            error = float(difference.std(ddof=1)) / math.sqrt(len(seeds))
            half = float(stats.t.ppf(0.975, len(seeds) - 1)) * error
            mean = float(difference.mean())
            each["difference"] = {"mean": mean, "standard_error": error, "low": mean - half, "high": mean + half}
        settings.append(each)
    tokens = sorted({result["tokens"] for result in results.values()})
    return {
        "objective": objective,
        "more_is_better": OBJECTIVES[objective],
        "seeds": list(seeds),
        "tokens": tokens[-1],
        "tokens_least": tokens[0],
        "settings": settings,
    }


def in_lines(summary: dict[str, Any]) -> str:
    """The summary for the console."""
    seeds = len(summary["seeds"])
    lines = [f"{summary['objective']} after {summary['tokens']:,} tokens, {seeds} seeds (mean ± standard deviation):"]
    for each in summary["settings"]:
        words = f"  {each['name']:<8} {each['mean']:.4f} ± {each['standard_deviation']:.4f}"
        if "difference" in each:
            found = each["difference"]
            words += f"; minus default, seed by seed: {found['mean']:+.4f} (95%: {found['low']:+.4f} to "
            words += f"{found['high']:+.4f})"
        lines.append(words)
    return "\n".join(lines)


def write_runs(plan: Study, objective: str, results: dict[tuple[str, int], dict[str, Any]]) -> None:
    """seed_comparison.csv."""
    columns = list(dict.fromkeys(name for result in results.values() for name in result))
    rows = (
        [name, seed, result[objective], *(result.get(column, "") for column in columns)]
        for (name, seed), result in results.items()
    )
    write_csv(plan.directory / "seed_comparison.csv", ["settings", "seed", "objective", *columns], rows)
