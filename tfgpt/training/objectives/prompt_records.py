"""JSON Lines of prompts with answers: reading, splitting, and turning them into rows of ids. No TensorFlow."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tfgpt.common.errors import SettingError, UserError
from tfgpt.common.progress import format_count
from tfgpt.corpus.config import CorpusConfig
from tfgpt.corpus.sources.chat_formats import MESSAGE_FIELDS, parse_tools, to_openai_messages
from tfgpt.corpus.sources.find_files import find_files
from tfgpt.corpus.sources.json_records import SkippedRecords, is_records_file
from tfgpt.corpus.sources.json_records import read_records as file_records
from tfgpt.corpus.sources.messages import Message, validate_messages
from tfgpt.corpus.split import hash_side, hash_value
from tfgpt.generation.prompts import encode
from tfgpt.tokenization.chat_template import encode_messages
from tfgpt.tokenization.tokenizer import Tokenizer

Prompt = str | list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class PromptRecord:
    """One line.

    Attributes:
        where: FILE:LINE, for messages.
        content: the whole JSON object.
        prompt: plain text, or a conversation up to where the assistant speaks next.
        tools: definitions of functions that the assistant may call.
    """

    where: str
    content: dict[str, Any]
    prompt: Prompt
    tools: Sequence[Mapping[str, Any]] = ()


def read_sides(
    corpus: CorpusConfig, check: Callable[[PromptRecord], Any] = lambda record: None
) -> tuple[list[PromptRecord], list[PromptRecord]]:
    """The records to learn from and those held out: by a hash of the prompt, or from --validation_text.

    Args:
        corpus: which files, how split, and whether an odd record is refused or left out.
        check: raises `UserError` for a record that cannot be used.

    Raises:
        UserError: a file is missing, most of its records cannot be used, or a side has none; the line names it.
    """
    records = list(read_records(corpus.train_text, "train_text", corpus.strict, check))
    if corpus.validation_text:
        held_out = list(read_records(corpus.validation_text, "validation_text", corpus.strict, check))
        for flag, side in (("train_text", records), ("validation_text", held_out)):
            if not side:
                raise SettingError(flag, f"no record in {', '.join(getattr(corpus, flag))}")
        return records, held_out
    documents = [
        {"id": hashlib.sha256(json.dumps(record.prompt, sort_keys=True).encode()).hexdigest()} for record in records
    ]
    sides: dict[str, list[PromptRecord]] = {"train": [], "validation": []}
    for record, document in zip(records, documents):
        sides[hash_side(document, corpus.validation_fraction)].append(record)
    refuse_empty_side(corpus, sides, sorted({hash_value(document) / 2**64 for document in documents}))
    return sides["train"], sides["validation"]


def refuse_empty_side(corpus: CorpusConfig, sides: Mapping[str, list[PromptRecord]], places: Sequence[float]) -> None:
    """Refuses a split that leaves a side without a record, and names a fraction that does not.

    Args:
        corpus: the settings.
        sides: the records of "train" and "validation".
        places: of each different prompt, between 0 and 1: a fraction holds out those below it; sorted.
    """
    what = "to learn from" if not sides["train"] else "held out" if not sides["validation"] else ""
    if not what:
        return
    records = [*sides["train"], *sides["validation"]]
    if not records:
        raise SettingError("train_text", f"no record in {', '.join(corpus.train_text)}")
    better = [round(math.ceil(place * 100 + 1e-9) / 100, 2) for place in places[:-1]]
    better = [fraction for place, fraction in zip(places[1:], better) if fraction <= place and fraction <= 0.9]
    advice = f", or --validation_fraction={better[0]}" if better else ""
    raise SettingError(
        "validation_fraction",
        f"{corpus.validation_fraction} leaves none of {format_count(len(records), 'record')} {what} "
        f"({format_count(len(places), 'different prompt')}; a hash of the prompt says on which side it is); give more "
        f"records, --validation_text{advice}",
    )


def are_conversations(records: Sequence[PromptRecord]) -> bool:
    """Whether the model is asked in messages, in all of them."""
    return all(not isinstance(record.prompt, str) for record in records)


def read_records(
    specs: Sequence[str], flag: str, strict: bool = False, check: Callable[[PromptRecord], Any] = lambda record: None
) -> Iterator[PromptRecord]:
    """The records of the files that the flag names: files, folders of records, globs, each also compressed.

    A record that cannot be used is left out and said, unless `strict`.

    Raises:
        UserError: a spec stands for nothing, or more than half of a file's records cannot be used.
    """
    for spec in specs:
        notes: list[str] = []
        for file in find_files(spec, flag, notes, is_records_file):
            odd = SkippedRecords(strict)
            for place, value in file_records(file, odd):
                try:
                    record = record_of(value, place)
                    check(record)
                except UserError as error:
                    odd.skip(error)
                else:
                    yield record
            odd.raise_if_most(str(file))
            notes += [words] if (words := odd.describe(str(file))) else []
        for note in notes:
            print(note, file=sys.stderr)


def record_of(content: Any, where: str) -> PromptRecord:
    """One line's value as a record.

    `prompt` is text or messages; `messages` and its like are other names for it. Where both `chosen` and `rejected` are
    whole conversations, it is what they begin with alike (trl's "implicit prompt"), whatever text `prompt` has.
    """
    if not isinstance(content, dict):
        raise UserError(f"{where}: should be a JSON object")
    named = next((name for name in ("prompt", *MESSAGE_FIELDS) if content.get(name) is not None), "prompt")
    prompt, tools = content.get(named), parse_tools(content, where).get("tools", [])
    answers = [content.get(name) for name in ("chosen", "rejected")]
    lists = [answer for answer in answers if isinstance(answer, list)]
    if not isinstance(prompt, list) and len(lists) == 2 and max(map(len, lists)) > 1:
        prompt, other = (messages_of(answer[:-1], "chosen", where) for answer in lists)
        if prompt != other:
            raise UserError(f"{where}: chosen and rejected should differ in their last message only, or give a prompt")
        content = {**content, "chosen": lists[0][-1:], "rejected": lists[1][-1:]}
    elif isinstance(prompt, list) and prompt:
        prompt = messages_of(prompt, named, where)
    elif not isinstance(prompt, str):
        raise UserError(f'{where}: has neither a "prompt" (text or messages) nor "messages"')
    return PromptRecord(where, content, prompt, tools)


def messages_of(turns: list[Any], name: str, where: str) -> list[Message]:
    """A field's turns as messages, whoever they call the speakers."""
    return validate_messages(to_openai_messages(turns, name, where), where)


def answer_of(record: PromptRecord, name: str) -> str | Message:
    """An answer: a string, a message or a list of one. A message without calls of tools is its text.

    Raises:
        UserError: it is none of them.
    """
    answer = record.content.get(name)
    if isinstance(answer, str):
        return answer
    turns = [answer] if isinstance(answer, Mapping) else answer
    if not isinstance(turns, list) or len(turns) != 1:
        raise UserError(f'{record.where}: "{name}" should be a text, or a list of one message')
    [message] = messages_of(turns, name, record.where)
    if message["role"] != "assistant":
        raise UserError(f'{record.where}: "{name}" is a message of the {message["role"]}, not of the assistant')
    message.pop("weight", None)
    return message if set(message) > {"role", "content"} else message["content"]


def encoded(
    tokenizer: Tokenizer, prompt: Prompt, answer: str | Message, tools: Sequence[Mapping[str, Any]] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """A prompt and its answer as a model reads them.

    Returns:
        [n] int32 ids and [n] float32 weights: 1 on the answer and on what ends it (the end of the turn behind messages,
        the end of the text behind plain text).
    """
    if isinstance(prompt, str) and isinstance(answer, str):
        start, said = encode(tokenizer, prompt), tokenizer.encode(answer)
        ids = np.concatenate([start, said, [tokenizer.end_of_text_id]]).astype(np.int32)
        return ids, (np.arange(len(ids)) >= len(start)).astype(np.float32)
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    spoken = {"role": "assistant", "content": answer} if isinstance(answer, str) else answer
    ids, weights = encode_messages(tokenizer, [*asked, spoken], tools=tools)
    # Earlier turns of the assistant are the prompt's.
    return ids, weights * (np.arange(len(ids)) >= len(encode(tokenizer, asked, tools=tools)))


def as_row(ids: np.ndarray, weights: np.ndarray, length: int, padding_id: int) -> dict[str, np.ndarray] | None:
    """`token_ids`, `targets` int32 and `weights` float32, each [length], padded on the right; None: it is too long."""
    count = len(ids) - 1
    if count > length:
        return None
    row = np.full(length + 1, padding_id, np.int32)
    row[: len(ids)] = ids
    row_weights = np.zeros(length, np.float32)
    row_weights[:count] = weights[1:]
    return {"token_ids": row[:-1], "targets": row[1:], "weights": row_weights}


def fingerprint_of(arrays: dict[str, np.ndarray], *more: str) -> str:
    """Hexadecimal SHA-256 of arrays and strings."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.shape} {array.dtype}".encode())
        digest.update(array.view(np.uint8).data if array.size else b"")
    for text in more:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()
