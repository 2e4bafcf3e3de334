"""What chat tuning would read, for people: how it was packed, and some rows with what is not learned dimmed."""

from __future__ import annotations

from tfgpt.diagnosis.preview import preview_learned
from tfgpt.pipeline.batches import training_batches
from tfgpt.training.objectives.supervised_fine_tuning import SupervisedFineTuning
from tfgpt.training.train_config import TrainConfig


def show(recipe: TrainConfig, rows: int, dimmed: bool) -> list[str]:
    """Prepares the conversations of a recipe; the lines that say what came of it.

    Args:
        recipe: the settings.
        rows: how many rows of the first steps to show.
        dimmed: use the terminal's faint letters.
    """
    objective = SupervisedFineTuning()
    data = objective.prepare(recipe)
    lines = ["", f"Packed: {objective.describe_data(recipe, data)}", ""]
    if rows:
        reader = objective.training_reader(recipe, data)
        batch = next(iter(training_batches(reader, batch_size=rows).as_numpy_iterator()))
        lines += [*preview_learned(batch, data.tokenizer, rows, dimmed), ""]
    return lines
