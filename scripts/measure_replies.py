"""Counts the replies of a model that end by themselves, on held-out conversations of the sample dialogues.

    python scripts/measure_replies.py --model=runs/chat/model [--replies=200] [--tokens=64] [--train_text=…]

The first turns of each held-out conversation, up to where the assistant speaks, are answered at temperature 0.8. A
reply ends by itself when the model writes the end of its turn within the tokens allowed. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from tfgpt.common.tf_logging import import_tensorflow


def main() -> None:
    """Prints a few replies, the share, and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a model directory")
    parser.add_argument("--replies", type=int, default=200, help="how many (default: 200)")
    parser.add_argument("--tokens", type=int, default=64, help="within so many tokens (default: 64)")
    parser.add_argument("--train_text", action="append", help="dialogues (default: the sample dialogues)")
    parser.add_argument("--validation_fraction", type=float, default=0.02, help="held-out share, as in training")
    arguments = parser.parse_args()
    import_tensorflow()
    from tfgpt.corpus.build import build_documents
    from tfgpt.corpus.config import CorpusConfig
    from tfgpt.generation.config import SamplingConfig
    from tfgpt.generation.generator import Generator
    from tfgpt.generation.prompts import encode_chat

    texts = arguments.train_text or ["sample:chitchat", "sample:chatterbot"]
    documents = build_documents(
        CorpusConfig(train_text=tuple(texts), validation_fraction=arguments.validation_fraction)
    )
    generator = Generator.load(Path(arguments.model))
    prompts, said = [], []
    for document in documents.documents("validation"):
        messages = document["messages"]
        last = max(number for number, message in enumerate(messages) if message["role"] == "assistant")
        # The longest beginning that leaves room for the reply.
        for end in range(last, 0, -2):
            ids = encode_chat(generator.tokenizer, messages[:end])
            if len(ids) + arguments.tokens <= generator.context:
                prompts.append(ids)
                said.append(messages[end - 1]["content"])
                break
    if not prompts:
        raise SystemExit(f"{arguments.model}: no held-out conversation fits its context of {generator.context}")
    sampling = [
        SamplingConfig(max_new_tokens=arguments.tokens, temperature=0.8, seed=number)
        for number in range(arguments.replies)
    ]
    asked = [prompts[number % len(prompts)] for number in range(arguments.replies)]
    replies = [found[0] for found in generator.generate(asked, sampling)]
    ended = np.array([reply.finish_reason == "stop" for reply in replies])
    for number in range(min(5, len(replies))):
        print(
            f"> {' '.join(said[number % len(prompts)].split())[:100]}\n  {' '.join(replies[number].text.split())[:160]}"
        )
    print(f"{ended.sum()} of {len(replies)} replies ended by themselves within {arguments.tokens} tokens")
    length = float(np.mean([len(reply.token_ids) for reply in replies]))
    print(json.dumps({"model": arguments.model, "ended": float(ended.mean()), "mean_tokens": length}))


if __name__ == "__main__":
    main()
