#!/usr/bin/env python
"""Writes pairs of answers from conversations: what was really said, and what was said in another conversation.

    python scripts/make_preferences.py preferences.jsonl --text=sample:chitchat --pairs=2000

writes lines {"prompt": [messages], "chosen": text, "rejected": text}. To tell them apart a model must read the
conversation. From each conversation comes one pair, at a turn of the assistant's that is chosen by its hash.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tfgpt.common.atomic_files import write_text
from tfgpt.corpus.sources import open_sources


def main() -> None:
    """Reads the conversations and writes the pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--text", default="sample:chitchat", help="conversations, as tfgpt.train's --train_text")
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--longest", type=int, default=400, help="characters of a prompt and its answer, at most")
    arguments = parser.parse_args()
    choices = random.Random(0)
    begun = []
    for source in open_sources([arguments.text]):
        for document in source.documents():
            messages = document.get("messages", [])
            turns = [place for place, message in enumerate(messages) if place and message["role"] == "assistant"]
            fitting = [place for place in turns if size(messages[: place + 1]) <= arguments.longest]
            if fitting:
                place = choices.choice(fitting)
                begun.append((messages[:place], messages[place]["content"]))
    choices.shuffle(begun)
    # Half of the conversations give prompts with their replies, the other half what is rejected: a reply that were
    # chosen in one pair and rejected in another would teach the opposite of what the next pair asks.
    half = len(begun) // 2
    pairs = [
        {"prompt": prompt, "chosen": reply, "rejected": other}
        for (prompt, reply), (_, other) in zip(begun[:half], begun[half:])
        if reply != other and len(other) <= arguments.longest
    ][: arguments.pairs]
    write_text(arguments.output, "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs))
    print(f"{len(pairs):,} pairs in {arguments.output}")


def size(messages: list[dict[str, str]]) -> int:
    """Characters of the messages."""
    return sum(len(message["content"]) for message in messages)


if __name__ == "__main__":
    main()
