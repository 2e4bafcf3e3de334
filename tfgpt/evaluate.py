"""Evaluates how well a model predicts text: loss, bits per byte and accuracy, exact and on any devices.

The shortest form is `python -m tfgpt.evaluate --model=runs/quickstart`, on the text that the run held out; --text names
other text. It prints a table, or with --json one JSON object. Bits per byte compare models with different tokenizers;
loss and perplexity only those with the same tokenizer.
"""

from __future__ import annotations

import sys

from tfgpt.common.command_line import Command
from tfgpt.common.tf_logging import import_tensorflow
from tfgpt.conversion.cached_conversion import model_directory
from tfgpt.evaluation.config import EvaluateConfig
from tfgpt.training.config import StrategyConfig


def run(evaluate: EvaluateConfig, strategy: StrategyConfig) -> None:
    """Finds the model before TensorFlow is imported, then evaluates it."""
    directory = model_directory(evaluate.model, cache_dir=evaluate.cache_dir)
    import_tensorflow()
    from tfgpt.evaluation import text_metrics

    text_metrics.evaluate(evaluate, strategy, directory)


COMMAND = Command("evaluate", __doc__, [EvaluateConfig, StrategyConfig], run)
main = COMMAND.run

if __name__ == "__main__":
    sys.exit(main())
