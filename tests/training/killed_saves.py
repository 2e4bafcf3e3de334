"""`killed_saves.py FOLDER STEP BEST_STEP` saves a checkpoint and is killed at each call to the file system.

Of the checkpoints 10, the best, and 20 only the newest is kept otherwise. Whenever the save is killed, the next start
finds the checkpoints of before or of after, whole. Prints the kills.
"""

import sys
from pathlib import Path

import numpy as np

from tests.kills import killed_at_every_call
from tfgpt.training.checkpoints import Checkpoints


class Value:
    def __init__(self, step: int):
        self.step = step

    def numpy(self) -> np.ndarray:
        return np.full([300], self.step, np.float32)


def save(folder: Path, step: int, best_step: int, note: str) -> None:
    store = Checkpoints(folder, kept=1)
    store.save(step, {"kernel": Value(step)}, {"note": note}, best_step)
    store.close()


def main(folder: Path, step: int, best_step: int) -> None:
    before, work = folder / "before", folder / "work"
    for made in (10, 20):
        save(before, made, 10, "before")
    found: list[str] = []

    def check(number: int) -> None:
        store, lines = Checkpoints(work, kept=1), []
        newest = store.newest(lines.append)
        best = store.open_if_complete(newest.metadata["best_step"], lines.append, "")
        note = newest.metadata["note"]
        expected = {"before": (20, 10), "after": (step, best_step)}[note]
        assert (newest.step, best.step) == expected, number
        assert all(np.all(one.arrays()["kernel"] == one.step) for one in (newest, best)), number
        assert not lines and not list(work.glob(".*")), (number, lines)
        found.append(note)

    kills = killed_at_every_call(before, work, lambda: save(work, step, best_step, "after"), check)
    # Once the new one counts, it counts for good; it is there when the process ends by itself.
    assert found == sorted(found, reverse=True) and found[-1] == "after", found
    print(kills, found.count("before"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
