"""Generates text with a trained model: continues prompts, or replies to them as a chat model.

The shortest form is `python -m tfgpt.generate --model=runs/quickstart --prompt="Once upon a time"`. A single text is
printed while it is generated; with --json each text is one line of JSON with prompt, text, token_ids, finish_reason
("stop" or "length") and log_probability. The same seed gives the same text. A text that fills the model's context
continues from its last half.
"""

from __future__ import annotations

import io
import json
import sys
from typing import TYPE_CHECKING

from tfgpt.common.command_line import Command
from tfgpt.common.tf_logging import import_tensorflow
from tfgpt.conversion.cached_conversion import model_directory
from tfgpt.corpus.sources.base import message_text
from tfgpt.generation.config import GenerateConfig, SamplingConfig
from tfgpt.generation.prompts import Prompt, check_lengths, encode, read_prompts
from tfgpt.tokenization.load import load_tokenizer

if TYPE_CHECKING:
    from tfgpt.generation.generator import Completion

# The texts of a batch are printed before the next batch starts.
BATCH_SIZE = 32


def run(generate: GenerateConfig, sampling: SamplingConfig) -> None:
    """Checks the inputs without TensorFlow, then generates."""
    for caution in sampling.cautions():
        print(caution, file=sys.stderr)
    directory = model_directory(generate.model)
    prompts = read_prompts(generate)
    tokenizer = load_tokenizer(directory)
    encoded = [encode(tokenizer, prompt, sampling.add_end_of_text) for prompt in prompts]
    from tfgpt.model.checkpoints.huggingface import load_config

    check_lengths(encoded, load_config(directory).max_sequence_length)

    import_tensorflow()
    from tfgpt.generation.generator import Generator

    generator = Generator.load(directory, dtype=generate.dtype)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # In every locale, because a text may contain any character.
    if len(prompts) == sampling.num_samples == 1 and not generate.json:
        for chunk in generator.stream(encoded[0], sampling):
            print(chunk.text, end="", flush=True)
        print()
        return
    print_completion = print_json if generate.json else print_text
    num_prompts = max(1, BATCH_SIZE // sampling.num_samples)
    for start in range(0, len(prompts), num_prompts):
        batch = generator.generate(encoded[start : start + num_prompts], sampling)
        for number, completions in enumerate(batch, start):
            for sample, completion in enumerate(completions):
                print_completion(prompts[number], number, sample, completion)


def print_json(prompt: Prompt, number: int, sample: int, completion: Completion) -> None:
    fields = {
        "prompt": prompt,
        "sample": sample,
        "text": completion.text,
        "token_ids": completion.token_ids,
        "finish_reason": completion.finish_reason,
        "log_probability": completion.log_probability,
    }
    print(json.dumps(fields, ensure_ascii=False), flush=True)


def print_text(prompt: Prompt, number: int, sample: int, completion: Completion) -> None:
    messages = prompt["messages"] if isinstance(prompt, dict) else prompt
    text = messages if isinstance(messages, str) else message_text(messages[-1])
    first_line = text.splitlines()[0] if text.strip() else ""
    print(f"--- prompt {number + 1}, sample {sample + 1}: {first_line[:60]}")
    print(completion.text, flush=True)


COMMAND = Command("generate", __doc__, [GenerateConfig, SamplingConfig], run)
main = COMMAND.run

if __name__ == "__main__":
    sys.exit(main())
