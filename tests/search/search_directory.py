"""A search directory as `tune` leaves it, written by hand: 24 trials whose objective is known."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

HEAD = "trial_id,status,rung,bracket,continues,learning_rate,schedule,decay_fraction,dropout,objective,"
HEAD += "validation_bits_per_byte,validation_loss,validation_accuracy,tokens,tokens_per_second,peak_memory_bytes,"
HEAD += "seconds,parameters,error"


def write_search(directory: Path) -> None:
    """learning_rate decides nearly everything, the schedule a little, dropout nothing; trial 0003 failed."""
    random = np.random.default_rng(0)
    lines = [HEAD]
    for number in range(24):
        rate, dropout = 10 ** random.uniform(-3.0, -1.0), random.uniform(0.0, 0.3)
        schedule = ["wsd", "cosine"][number % 2]
        decay = f"{random.uniform(0.1, 0.9):.3f}" if schedule == "wsd" else ""
        bits = 2.0 + 0.3 * (math.log10(rate) + 2.0) ** 2 + (0.03 if schedule == "cosine" else 0.0)
        row = [f"{number:04d}", "completed", "", "", "", f"{rate:.6f}", schedule, decay, f"{dropout:.4f}"]
        if number == 3:
            row[1] = "failed"
            lines.append(",".join([*row, "", "", "", "", "4096", "", "", "2.5", "", '"diverged: <loss> is ""nan"""']))
            continue
        measured = [bits, bits, 2 * bits, 0.3, 4096, 900 + number, 500 << 20, 2.5, 12345]
        lines.append(",".join([*row, *map(str, measured), ""]))
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "trials.csv").write_text("\n".join(lines) + "\n")
    about = {"search": {"search_objective": "validation_bits_per_byte"}}
    (directory / "search.json").write_text(json.dumps(about))
