#!/usr/bin/env python
"""Writes the two-digit additions: texts for supervised training, prompts with answers for learning from rewards.

    python scripts/make_addition.py addition

writes, of all 8,100 sums of two numbers from 10 to 99 in a random order: addition/texts.jsonl ({"text": "12+34=46"}),
addition/prompts.jsonl ({"prompt": "12+34=", "answer": "46"}) and addition/held_out.jsonl, the same of sums that are in
neither of the others. Texts and prompts are the same sums.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

HELD_OUT = 500


def main() -> None:
    """Writes the three files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    directory = parser.parse_args().directory
    pairs = [(left, right) for left in range(10, 100) for right in range(10, 100)]
    random.Random(0).shuffle(pairs)
    prompts = [{"prompt": f"{left}+{right}=", "answer": str(left + right)} for left, right in pairs]
    held_out, known = prompts[:HELD_OUT], prompts[HELD_OUT:]
    directory.mkdir(parents=True, exist_ok=True)
    texts = [{"text": record["prompt"] + record["answer"]} for record in known]
    for name, records in (("texts", texts), ("prompts", known), ("held_out", held_out)):
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (directory / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    print(f"{len(known):,} sums to learn from and {len(held_out)} others in {directory}")


if __name__ == "__main__":
    main()
