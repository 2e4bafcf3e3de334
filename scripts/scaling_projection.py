"""Projects data-parallel training from 1 to 256 TPU chips, from what the compiler said of the step on one.

    python scripts/scaling_projection.py results.json [more.json …] [--utilization=0.4] [--global_tokens=524288]

Reads the results of `tpu_compile.sh --json`: operations of a token, bytes that are all-reduced. Prints a table for each
result and at the end one line of JSON. NOTHING OF IT WAS MEASURED ON A TPU. What is assumed:

- the matrix units reach --utilization of the chip's peak (40%: what well-tuned trainers publish for such models; the
  compiler says how many operations there are, not how long they take);
- the update moves 28 bytes a parameter through the chip's memory at its full rate (AdamW: weight, two slots and
  gradient read, weight and two slots written, float32), 20 for lion, 12 for adafactor;
- the all-reduce starts when all gradients are there and nothing is computed meanwhile (so the step does it, once an
  update, in float32), and moves 2 (N - 1) / N of the gradients' bytes through each chip's links, at half of their rate
  in slices too small to be closed into a ring (under 16 x 16 chips of v5e and v6e, under 4 x 4 x 4 of v4 and v5p),
  and 1 microsecond a hop there and back along each side of the slice;
- the hosts feed the chips in time.

Two ways to grow: "same batch a chip" lets the global batch grow with the chips; "same global batch" keeps it at
--global_tokens and stops at one row a chip. Efficiency is tokens a second and chip over those of the single chip in the
same table. Below it: the number of chips where the all-reduce takes as long as the computing, above which more chips
bring less than half of what they cost.

Figures of the chips: cloud.google.com/tpu/docs/v4, …/v5e, …/v5p, …/v6e (read 2026-11): peak bfloat16, memory
bandwidth, and what a chip's links carry in one direction: the all-reduce bandwidth of a pod over its chips (v4 1.1 PB/s
of 4096, v5e 51.2 TB/s of 256, v6e 102.4 TB/s of 256), for v5p half of its 1200 GB/s in both directions.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

HOP_SECONDS = 1e-6
UPDATE_BYTES = {"adamw": 28, "muon": 28, "lion": 20, "adafactor": 12}


@dataclasses.dataclass(frozen=True)
class Chip:
    """A chip's public figures.

    Attributes:
        peak: bfloat16 FLOP/s.
        memory: bytes/s of its memory.
        link: bytes/s that all its links carry in one direction.
        axes: dimensions of the torus.
        ring: chips from which on a slice is closed into rings.
    """

    peak: float
    memory: float
    link: float
    axes: int
    ring: int


CHIPS = {
    "v4": Chip(275e12, 1200e9, 268e9, 3, 64),
    "v5e": Chip(197e12, 819e9, 200e9, 2, 256),
    "v5p": Chip(459e12, 2765e9, 600e9, 3, 64),
    "v6e": Chip(918e12, 1600e9, 400e9, 2, 256),
}


def main() -> int:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path, help="files that tpu_compile.sh --json wrote")
    parser.add_argument("--utilization", type=float, default=0.4, help="of the peak, while computing (default: 0.4)")
    parser.add_argument("--global_tokens", type=int, default=1 << 19, help="of a step (default: 524288)")
    options = parser.parse_args()
    if not 0 < options.utilization <= 1:
        print("scaling_projection: --utilization must be above 0 and at most 1", file=sys.stderr)
        return 2
    projected = []
    for path in options.results:
        for result in json.loads(path.read_text()):
            if result["chip"] in CHIPS and "flops_per_token" in result:
                projection = project(result, options.utilization, options.global_tokens)
                print(table(projection))
                projected.append(projection)
            else:
                print(f"{path}: nothing to project for {result['chip']} (no operations counted, or a core)")
    print(json.dumps(projected))
    return 0


def project(result: dict[str, Any], utilization: float, global_tokens: int) -> dict[str, Any]:
    """The projection of one result of the compiler.

    Args:
        result: with the batch of one chip; `largest`, if there, gives the micro-batch.
        utilization: fraction of the peak that computing reaches.
        global_tokens: of a step, where the global batch stays the same.
    """
    chip = CHIPS[result["chip"]]
    length, rows = result["sequence_length"], result["rows"] * result["micro_batches"]
    update = UPDATE_BYTES[result["optimizer"]] * result["parameters"] / chip.memory

    def compute(tokens: float) -> float:
        return tokens * result["flops_per_token"] / (chip.peak * utilization)

    def line(chips: int, chip_rows: int) -> dict[str, Any]:
        work, reduce = compute(chip_rows * length), all_reduce_seconds(chip, chips, result["all_reduce_bytes"])
        return {
            "chips": chips,
            "rows": chip_rows,
            "compute_ms": work * 1e3,
            "update_ms": update * 1e3,
            "all_reduce_ms": reduce * 1e3,
            "tokens_per_second": chips * chip_rows * length / (work + update + reduce),
        }

    def column(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        one = lines[0]["tokens_per_second"]
        return [{**line, "efficiency": line["tokens_per_second"] / line["chips"] / one} for line in lines]

    counts = [2**power for power in range(9)]
    global_rows = global_tokens // length
    return {
        "chip": result["chip"],
        "parameters": result["parameters"],
        "rows": rows,
        "sequence_length": length,
        "flops_per_token": result["flops_per_token"],
        "all_reduce_bytes": result["all_reduce_bytes"],
        "utilization": utilization,
        "global_tokens": global_rows * length,
        "same_batch_a_chip": column([line(chips, rows) for chips in counts]),
        "same_global_batch": column([line(chips, global_rows // chips) for chips in counts if chips <= global_rows]),
        "global_rows": global_rows,
        "ends": round(compute(global_rows * length) / all_reduce_seconds(chip, 256, result["all_reduce_bytes"])),
    }


def all_reduce_seconds(chip: Chip, chips: int, size: int) -> float:
    """The time to sum `size` bytes over so many chips of a slice that is as near to a cube or square as can be."""
    if chips == 1:
        return 0.0
    bandwidth = chip.link if chips >= chip.ring else chip.link / 2
    side = math.ceil(chips ** (1 / chip.axes))
    return 2 * (chips - 1) / chips * size / bandwidth + 2 * chip.axes * side * HOP_SECONDS


def table(projection: dict[str, Any]) -> str:
    """Returns the projection as text."""
    lines = [
        f"== TPU {projection['chip']}: {projection['parameters'] / 1e6:,.0f} M parameters, rows of "
        f"{projection['sequence_length']}; {projection['flops_per_token'] / 1e9:.2f} GFLOP a token, all-reduce "
        f"{projection['all_reduce_bytes'] / 1e6:,.0f} MB; {projection['utilization']:.0%} of peak assumed ==",
        f"{'':>6} | {'same batch a chip':^41} | {'same global batch':^41}",
        f"{'chips':>6} | {'rows':>5} {'compute':>9} {'reduce':>9} {'tok/s':>9} {'eff.':>5} "
        f"| {'rows':>5} {'compute':>9} {'reduce':>9} {'tok/s':>9} {'eff.':>5}",
    ]
    fixed = projection["same_global_batch"]
    for place, weak in enumerate(projection["same_batch_a_chip"]):
        strong = columns(fixed[place]) if place < len(fixed) else " less than one row a chip"
        lines.append(f"{weak['chips']:>6} | {columns(weak)} | {strong}")
    lines.append(
        f"with {projection['global_tokens']:,} tokens a step the all-reduce takes as long as computing at about "
        f"{projection['ends']:,} chips; at {projection['global_rows']:,} each has one row left"
    )
    return "\n".join(lines)


def columns(line: dict[str, Any]) -> str:
    """Rows, compute, reduce, tokens a second, efficiency."""
    return (
        f"{line['rows']:>5} {line['compute_ms']:>6.1f} ms {line['all_reduce_ms']:>6.2f} ms "
        f"{line['tokens_per_second'] / 1e6:>7.3f} M {line['efficiency']:>5.0%}"
    )


if __name__ == "__main__":
    sys.exit(main())
