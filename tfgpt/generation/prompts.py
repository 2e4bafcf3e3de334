"""Prompts: how they are read and encoded to token ids. No TensorFlow."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfgpt.common.errors import SettingError, UserError
from tfgpt.corpus.sources.chat_formats import MESSAGE_FIELDS, parse_tools, to_openai_messages
from tfgpt.corpus.sources.json_records import is_records_file, read_records, read_text
from tfgpt.corpus.sources.messages import validate_messages
from tfgpt.generation.config import GenerateConfig
from tfgpt.tokenization.chat_template import encode_messages
from tfgpt.tokenization.tokenizer import Tokenizer

Messages = list[dict[str, Any]]
Prompt = str | Messages | dict[str, Any]
"""Text, messages, or `{"messages": …, "tools": …}`."""


def read_prompts(config: GenerateConfig) -> list[Prompt]:
    """Reads --prompt, --prompt_file or piped standard input; without them the prompt is "".

    Returns texts, and messages for --chat and for records with messages.
    """
    prompts: list[Prompt] = [""]
    if config.prompt_file:
        path = Path(config.prompt_file).expanduser()
        try:
            if is_records_file(path):
                prompts = [parse_prompt(value, place) for place, value in read_records(path)]
                if not prompts:
                    raise UserError(f"{path}: has no line with a prompt")
            else:
                prompts = [strip_line_break(read_text(path))]
        except UserError as error:
            raise SettingError("prompt_file", str(error)) from error
    elif config.prompt:
        prompts = [check_utf8(prompt, "--prompt") for prompt in config.prompt]
    elif not sys.stdin.isatty():
        # Pipes of Windows begin with a byte-order mark.
        prompts = [strip_line_break(check_utf8(sys.stdin.read(), "standard input").removeprefix("\ufeff"))]
    if config.chat:
        return [[{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt for prompt in prompts]
    return prompts


def parse_prompt(value: Any, place: str) -> Prompt:
    """Returns a JSON value as a prompt; `place` names it in errors."""
    fields = value if isinstance(value, dict) else {"prompt": value}
    name = next((name for name in (*MESSAGE_FIELDS, "prompt") if fields.get(name) is not None), "prompt")
    if isinstance(fields.get(name), list) and fields[name]:
        messages = validate_messages(to_openai_messages(fields[name], name, place), place)
        tools = parse_tools(fields, place)
        return {"messages": messages, **tools} if tools else messages
    if not isinstance(fields.get(name), str):
        raise UserError(f'{place}: neither a JSON string nor an object with a "prompt" text or "messages"')
    return fields[name]


def strip_line_break(text: str) -> str:
    return text.removesuffix("\n").removesuffix("\r")


def check_utf8(text: str, name: str) -> str:
    """Returns the text; raises a UserError if it contains the lone surrogates of bytes that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{name}: is not UTF-8 (character {error.start})") from error
    return text


def encode(
    tokenizer: Tokenizer, prompt: Prompt, add_end_of_text: bool = True, tools: Sequence[Mapping[str, Any]] = ()
) -> np.ndarray:
    if isinstance(prompt, str):
        return encode_prompt(tokenizer, prompt, add_end_of_text)
    if isinstance(prompt, dict):
        return encode_chat(tokenizer, prompt["messages"], add_end_of_text, prompt["tools"])
    return encode_chat(tokenizer, prompt, add_end_of_text, tools)


def encode_prompt(tokenizer: Tokenizer, prompt: str | np.ndarray, add_end_of_text: bool = True) -> np.ndarray:
    """Returns the ids of a prompt, [n] int32, n ≥ 1; an empty prompt becomes the end-of-text token.

    Args:
        prompt: text, in which names of special tokens are plain text, or ids [n], which are not changed.
        add_end_of_text: whether text begins with `Tokenizer.start_ids`, as texts of the training data do.
    """
    if isinstance(prompt, str):
        ids = tokenizer.encode(prompt)
        if add_end_of_text:
            ids = np.concatenate([np.asarray(tokenizer.start_ids, np.int32), ids])
    else:
        ids = np.asarray(prompt).reshape(-1)
        if len(ids) and not (ids.min() >= 0 and ids.max() < tokenizer.vocabulary_size):
            raise UserError(f"a prompt has token ids outside the vocabulary of {tokenizer.vocabulary_size}")
    return np.asarray(ids if len(ids) else [tokenizer.end_of_text_id], np.int32)


def encode_chat(
    tokenizer: Tokenizer,
    messages: Sequence[dict[str, Any]],
    add_end_of_text: bool = True,
    tools: Sequence[Mapping[str, Any]] = (),
) -> np.ndarray:
    """Returns the ids of a conversation up to the start of the assistant's reply, [n] int32.

    `add_end_of_text` False removes `Tokenizer.start_ids` if the template begins with them.
    """
    ids, _ = encode_messages(tokenizer, messages, add_generation_prompt=True, tools=tools)
    start = list(tokenizer.start_ids)
    has_start = bool(start) and ids[: len(start)].tolist() == start
    return ids[len(start) :] if has_start and not add_end_of_text else ids


def check_lengths(prompts: Sequence[np.ndarray], max_sequence_length: int) -> None:
    """Raises a UserError that names the first prompt longer than the context."""
    for number, ids in enumerate(prompts, 1):
        if len(ids) > max_sequence_length:
            which = f"prompt {number}" if len(prompts) > 1 else "the prompt"
            raise UserError(f"{which} has {len(ids)} tokens, the model reads at most {max_sequence_length}; shorten it")
