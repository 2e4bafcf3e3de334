"""Says how well a model predicts text: loss, bits per byte and accuracy, exact and on any devices.

The shortest form is `python -m tfgpt.evaluate --model=runs/quickstart`, on what the run held out; --text names other
text. Prints a table, or with --json one JSON object. Bits per byte compare models whatever their tokenizers; loss and
perplexity only those of one tokenizer.
"""

from __future__ import annotations

import sys

from tfgpt.common.command_line import Command
from tfgpt.common.tf_logging import import_tensorflow
from tfgpt.conversion.cached_conversion import model_directory
from tfgpt.evaluation.config import EvaluateConfig
from tfgpt.training.config import StrategyConfig


def run(evaluate: EvaluateConfig, strategy: StrategyConfig) -> None:
    """Checks what can be checked without TensorFlow, then measures."""
    directory = model_directory(evaluate.model, cache_dir=evaluate.cache_dir)
    import_tensorflow()
    from tfgpt.evaluation import text_metrics

    text_metrics.evaluate(evaluate, strategy, directory)


COMMAND = Command("evaluate", __doc__, [EvaluateConfig, StrategyConfig], run)
main = COMMAND.run

if __name__ == "__main__":
    sys.exit(main())
