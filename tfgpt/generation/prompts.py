"""Prompts: where they are read, and how they become token ids. No TensorFlow."""

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
    """The command's prompts: --prompt, --prompt_file, or piped standard input; "" where there is none of them.

    Returns:
        Texts; a file of records and --chat also give dialogues, as lists of messages.

    Raises:
        UserError: a file is missing, empty, not UTF-8, or a line of it is no prompt; the line names it.
    """
    prompts: list[Prompt] = []
    if config.prompt_file:
        path = Path(config.prompt_file).expanduser()
        try:
            prompts += recorded_prompts(path) if is_records_file(path) else [without_last_line_break(read_text(path))]
        except UserError as error:
            raise SettingError("prompt_file", str(error)) from error
    elif config.prompt:
        prompts += [checked_utf8(prompt, "--prompt") for prompt in config.prompt]
    elif not sys.stdin.isatty():
        # What Windows pipes begins with a byte-order mark.
        piped = checked_utf8(sys.stdin.read(), "standard input").removeprefix("\ufeff")
        prompts.append(without_last_line_break(piped))
    else:
        prompts.append("")
    if config.chat:
        return [[{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt for prompt in prompts]
    return prompts


def recorded_prompts(path: Path) -> list[Prompt]:
    """The prompts of a file of records; none is left out, since each has a text to come."""
    prompts = [recorded_prompt(value, place) for place, value in read_records(path)]
    if not prompts:
        raise UserError(f"{path}: has no line with a prompt")
    return prompts


def recorded_prompt(value: Any, place: str) -> Prompt:
    """A JSON value as a prompt.

    Raises:
        UserError: it is none.
    """
    fields = value if isinstance(value, dict) else {"prompt": value}
    name = next((name for name in (*MESSAGE_FIELDS, "prompt") if fields.get(name) is not None), "prompt")
    if isinstance(fields.get(name), list) and fields[name]:
        messages, tools = (
            validate_messages(to_openai_messages(fields[name], name, place), place),
            parse_tools(fields, place),
        )
        return {"messages": messages, **tools} if tools else messages
    if not isinstance(fields.get(name), str):
        raise UserError(f'{place}: neither a JSON string nor an object with a "prompt" text or "messages"')
    return fields[name]


def without_last_line_break(text: str) -> str:
    """The text without the line break that editors and `echo` put at the end."""
    return text.removesuffix("\n").removesuffix("\r")


def checked_utf8(text: str, name: str) -> str:
    """The text, unless it holds bytes that are not UTF-8 (Python spells those as lone surrogates)."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{name}: is not UTF-8 (character {error.start})") from error
    return text


def encode_prompt(tokenizer: Tokenizer, prompt: str | np.ndarray, add_end_of_text: bool = True) -> np.ndarray:
    """A prompt's ids as the model reads them.

    Text is put behind what texts begin with in the training data (`Tokenizer.start_ids`, the end-of-text token of our
    own models); special tokens' names in it are plain letters. Ids are taken as they are. What would be empty is the
    end-of-text token.

    Args:
        tokenizer: the model's.
        prompt: text, or ids [n] of any integer type.
        add_end_of_text: False leaves what texts begin with out.

    Returns:
        [n] int32, n ≥ 1.

    Raises:
        UserError: ids outside the vocabulary.
    """
    if isinstance(prompt, str):
        ids = tokenizer.encode(prompt)
        if add_end_of_text:
            ids = np.concatenate([np.asarray(tokenizer.start_ids, np.int32), ids])
    else:
        ids = np.asarray(prompt).reshape(-1)
        if len(ids) and not (ids.min() >= 0 and ids.max() < tokenizer.vocabulary_size):
            raise UserError(f"a prompt's token ids go outside the vocabulary of {tokenizer.vocabulary_size}")
    return np.asarray(ids if len(ids) else [tokenizer.end_of_text_id], np.int32)


def encode_chat(
    tokenizer: Tokenizer,
    messages: Sequence[dict[str, Any]],
    add_end_of_text: bool = True,
    tools: Sequence[Mapping[str, Any]] = (),
) -> np.ndarray:
    """The ids of a dialogue up to where the assistant speaks next as the model's template has it.

    Args:
        tokenizer: the model's.
        messages: as `chat_template.encode_messages` takes them.
        add_end_of_text: False leaves out what texts begin with (`Tokenizer.start_ids`), where the template begins so.
        tools: definitions of functions that the assistant may call.

    Returns:
        [n] int32.
    """
    ids, _ = encode_messages(tokenizer, messages, add_generation_prompt=True, tools=tools)
    start = list(tokenizer.start_ids)
    begins = bool(start) and ids[: len(start)].tolist() == start
    return ids[len(start) :] if begins and not add_end_of_text else ids


def encode(
    tokenizer: Tokenizer, prompt: Prompt, add_end_of_text: bool = True, tools: Sequence[Mapping[str, Any]] = ()
) -> np.ndarray:
    """As `encode_prompt` for text, as `encode_chat` for messages."""
    if isinstance(prompt, str):
        return encode_prompt(tokenizer, prompt, add_end_of_text)
    if isinstance(prompt, dict):
        return encode_chat(tokenizer, prompt["messages"], add_end_of_text, prompt["tools"])
    return encode_chat(tokenizer, prompt, add_end_of_text, tools)


def check_lengths(prompts: Sequence[np.ndarray], max_sequence_length: int) -> None:
    """Refuses prompts that the model cannot read whole.

    Raises:
        UserError: naming the first such prompt.
    """
    for number, ids in enumerate(prompts, 1):
        if len(ids) > max_sequence_length:
            which = f"prompt {number}" if len(prompts) > 1 else "the prompt"
            raise UserError(f"{which} has {len(ids)} tokens, the model reads at most {max_sequence_length}; shorten it")
