"""Does the best learning rate carry over to wider models? Coordinate check and sweep, with plots.

    python scripts/learning_rate_transfer.py --flagfile=configs/transfer.cfg --output=transfer

trains the model of the flags at several widths, in the standard and the maximal update parametrization
(arXiv:2203.03466), and writes coordinate_check.png, learning_rate_transfer.png and learning_rate_transfer.csv into the
output directory. It takes every flag of `tfgpt.train`. The last line is JSON.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tfgpt.common.command_line import Command
from tfgpt.common.errors import SettingError
from tfgpt.common.settings import Settings, setting
from tfgpt.common.tf_logging import import_tensorflow
from tfgpt.training.train_config import GROUPS, TrainConfig


@dataclasses.dataclass(frozen=True)
class TransferConfig(Settings):
    """What is compared."""

    title: ClassVar[str] = "Transfer"

    output: str = setting("transfer", "Directory of the plots and the table.")
    widths: str = setting("64,128,256", "Values of --hidden_dim, the tuned model's first.")
    learning_rates: str = setting(
        "0.004,0.008,0.016,0.032,0.064", "Learning rates of the sweep; empty: the coordinate check alone."
    )
    seeds: int = setting(1, "Runs of each point of the sweep.", minimum=1)
    check_steps: int = setting(4, "Updates of the coordinate check.", minimum=1)

    def check(self) -> None:
        self.numbers("widths", int)
        self.numbers("learning_rates", float)
        if len(self.numbers("widths", int)) < 2:
            raise SettingError("widths", "two or more are needed to compare")

    def numbers(self, name: str, kind: type) -> list[Any]:
        """A flag's comma-separated numbers."""
        try:
            found = [kind(word) for word in getattr(self, name).split(",") if word]
        except ValueError as error:
            raise SettingError(name, f"{getattr(self, name)!r} is not numbers with commas between them") from error
        if any(number <= 0 for number in found):
            raise SettingError(name, "must be above 0")
        return found


def run(transfer: TransferConfig, **settings: Any) -> None:
    """Checks, prepares the text, compares, draws."""
    recipe = TrainConfig(**settings)
    widths = transfer.numbers("widths", int)
    from tfgpt.search.scale_width import at_width

    for width in widths:
        at_width(recipe, width).check()
    import_tensorflow()
    from tfgpt.pipeline.prepare import prepare
    from tfgpt.search import coordinate_check, learning_rate_transfer

    output, started = Path(transfer.output), time.perf_counter()
    data = prepare(recipe.corpus, recipe.tokenizer_config())
    changes = coordinate_check.coordinate_check(recipe, data, widths, steps=transfer.check_steps)
    coordinate_check.draw(changes, output / "coordinate_check.png")
    print(coordinate_check.table(changes), flush=True)
    kinds = list(dict.fromkeys(change.parametrization for change in changes))
    names = list(dict.fromkeys(change.activation for change in changes))
    slopes = {
        kind: {name: coordinate_check.slope(changes, kind, name, transfer.check_steps) for name in names}
        for kind in kinds
    }
    result: dict[str, Any] = {"slopes": slopes, "best_learning_rate": {}}
    rates = transfer.numbers("learning_rates", float)
    if rates:

        def report(point: learning_rate_transfer.Point) -> None:
            words = f"width {point.width}, learning rate {point.learning_rate:g}: {point.loss:.4f} nats per token"
            print(f"{point.parametrization}, {words}", flush=True)

        points = learning_rate_transfer.sweep(
            recipe, data, widths, rates, kinds, range(recipe.run.seed, recipe.run.seed + transfer.seeds), report
        )
        learning_rate_transfer.write(points, output / "learning_rate_transfer.csv")
        learning_rate_transfer.draw(points, output / "learning_rate_transfer.png")
        print(learning_rate_transfer.table(points))
        for kind in kinds:
            best = {width: learning_rate_transfer.best_learning_rate(points, kind, width) for width in widths}
            result["best_learning_rate"][kind] = best
    print(json.dumps({**result, "seconds": round(time.perf_counter() - started, 1)}))


COMMAND = Command("learning_rate_transfer", __doc__, (TransferConfig, *GROUPS), run)

if __name__ == "__main__":
    sys.exit(COMMAND.run())
