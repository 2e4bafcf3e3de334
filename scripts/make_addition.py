#!/usr/bin/env python
"""Writes the two-digit additions: texts for supervised training, prompts with answers for learning from rewards.

    python scripts/make_addition.py addition

takes all 8,100 sums of two numbers from 10 to 99 in a random order. addition/held_out.jsonl has 500 of them
({"prompt": "12+34=", "answer": "46"}), addition/prompts.jsonl the others. addition/texts.jsonl has those others too, as
a careless person would work them out ({"text": "12+34=46"}, {"text": "15+27=32"}): where the units carry, the carry is
forgotten two times in three. So supervised training alone cannot learn to add, and rewards have something to teach.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

HELD_OUT, FORGOTTEN_CARRIES = 500, 0.65


def main() -> None:
    """Writes the three files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    directory = parser.parse_args().directory
    pairs = [(left, right) for left in range(10, 100) for right in range(10, 100)]
    random.Random(0).shuffle(pairs)
    prompts = [{"prompt": f"{left}+{right}=", "answer": str(left + right)} for left, right in pairs]
    slips = random.Random(1)

    def worked_out(left: int, right: int) -> int:
        forgotten = left % 10 + right % 10 > 9 and slips.random() < FORGOTTEN_CARRIES
        return left + right - 10 * forgotten

    texts = [{"text": f"{left}+{right}={worked_out(left, right)}"} for left, right in pairs[HELD_OUT:]]
    held_out, tried = prompts[:HELD_OUT], prompts[HELD_OUT:]
    directory.mkdir(parents=True, exist_ok=True)
    for name, records in (("texts", texts), ("prompts", tried), ("held_out", held_out)):
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (directory / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    print(f"{len(tried):,} sums to learn from and {len(held_out)} others in {directory}")


if __name__ == "__main__":
    main()
