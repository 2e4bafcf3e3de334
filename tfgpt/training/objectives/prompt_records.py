"""Records of prompts with answers in JSON Lines: reading, splitting, encoding. Does not import TensorFlow."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from tfgpt.common.errors import SettingError, UserError
from tfgpt.common.formatting import pluralize
from tfgpt.corpus.config import CorpusConfig
from tfgpt.corpus.sources.chat_formats import MESSAGE_FIELDS, parse_tools, to_openai_messages
from tfgpt.corpus.sources.find_files import find_files
from tfgpt.corpus.sources.json_records import SkippedRecords, is_records_file
from tfgpt.corpus.sources.json_records import read_records as read_json_records
from tfgpt.corpus.sources.messages import Message, validate_messages
from tfgpt.corpus.split import hash_side, hash_value
from tfgpt.generation.prompts import encode
from tfgpt.pipeline.prepare import PreparedData
from tfgpt.tokenization.chat_template import encode_messages
from tfgpt.tokenization.tokenizer import Tokenizer

Prompt = str | list[dict[str, Any]]
Side = TypeVar("Side")
Example = TypeVar("Example")


@dataclasses.dataclass(frozen=True)
class PromptRecord:
    """One line.

    Attributes:
        where: FILE:LINE, for messages.
        content: the whole JSON object.
        prompt: plain text, or a conversation up to the assistant's next message.
        tools: definitions of functions that the assistant may call.

    Example:

    >>> parse_record({"prompt": "2+2=", "answer": "4"}, "sums.jsonl:1").prompt
    '2+2='
    """

    where: str
    content: dict[str, Any]
    prompt: Prompt
    tools: Sequence[Mapping[str, Any]] = ()


class Unusable(NamedTuple):
    """The reason why a record is left out, and the tokens that it takes, if it is too long."""

    reason: str
    tokens: int = 0


def read_sides(
    corpus: CorpusConfig, check: Callable[[PromptRecord], Any] = lambda record: None
) -> tuple[list[PromptRecord], list[PromptRecord]]:
    """Returns the training records and the held-out ones, by a hash of the prompt or from --validation_text.

    `check` raises `UserError` for a record that cannot be used. `UserError` is also raised if a file is missing, if
    most of its records cannot be used, or if a side has none.
    """
    given = {
        flag: list(read_records(getattr(corpus, flag), flag, corpus.strict, check))
        for flag in ("train_text", "validation_text")
        if getattr(corpus, flag)
    }
    for flag, side in given.items():
        if not side:
            raise SettingError(flag, f"no record in {', '.join(getattr(corpus, flag))}")
    records = given["train_text"]
    if "validation_text" in given:
        return records, given["validation_text"]
    documents = [
        {"id": hashlib.sha256(json.dumps(record.prompt, sort_keys=True).encode()).hexdigest()} for record in records
    ]
    sides: dict[str, list[PromptRecord]] = {"train": [], "validation": []}
    for record, document in zip(records, documents):
        sides[hash_side(document, corpus.validation_fraction)].append(record)
    for side_name, purpose in (("train", "to learn from"), ("validation", "held out")):
        if not sides[side_name]:
            refuse_split(corpus, len(records), purpose, sorted({hash_value(one) / 2**64 for one in documents}))
    return sides["train"], sides["validation"]


def side_flags(corpus: CorpusConfig) -> tuple[str, str]:
    """Returns the flags that decide the training side and the held-out side."""
    return "train_text", "validation_text" if corpus.validation_text else "validation_fraction"


def refuse_split(corpus: CorpusConfig, records: int, purpose: str, positions: Sequence[float]) -> None:
    # The positions of different prompts are in [0, 1), sorted; a fraction holds out those below it.
    better = [round(math.ceil(position * 100 + 1e-9) / 100, 2) for position in positions[:-1]]
    better = [fraction for position, fraction in zip(positions[1:], better) if fraction <= min(position, 0.9)]
    advice = f", or --validation_fraction={better[0]}" if better else ""
    raise SettingError(
        "validation_fraction",
        f"{corpus.validation_fraction} leaves none of {pluralize(records, 'record')} {purpose} "
        f"({pluralize(len(positions), 'different prompt')}; a hash of the prompt says on which side it is); give "
        f"more records, --validation_text{advice}",
    )


def read_records(
    specs: Sequence[str], flag: str, strict: bool = False, check: Callable[[PromptRecord], Any] = lambda record: None
) -> Iterator[PromptRecord]:
    """Yields the records of files, folders of records and globs, each also compressed.

    A record that cannot be used is left out with a line on standard error. With `strict`, or if it is more than half of
    a file's records, it raises `UserError`.
    """
    for spec in specs:
        notes: list[str] = []
        for file in find_files(spec, flag, notes, is_records_file):
            skipped = SkippedRecords(strict)
            for place, value in read_json_records(file, skipped):
                try:
                    record = parse_record(value, place)
                    check(record)
                except UserError as error:
                    skipped.skip(error)
                else:
                    yield record
            skipped.raise_if_most(str(file))
            notes += [words] if (words := skipped.describe(str(file))) else []
        for note in notes:
            print(note, file=sys.stderr)


def encode_records(
    records: Sequence[PromptRecord],
    flag: str,
    unit: str,
    encode_record: Callable[[PromptRecord], Example | Unusable],
    log: Callable[[str], None],
) -> list[Example]:
    """Returns the examples of records, and logs how many are left out and why; raises `SettingError` if all are.

    `flag` is the flag of this side, `unit` the plural of an example, such as "pairs".
    """
    examples: list[Example] = []
    tokens: dict[str, list[int]] = {}
    for record in records:
        example = encode_record(record)
        if isinstance(example, Unusable):
            tokens.setdefault(example.reason, []).append(example.tokens)
        else:
            examples.append(example)
    reasons = ", ".join(
        f"{len(counts)} {reason}{f' (the shortest takes {min(counts)})' if any(counts) else ''}"
        for reason, counts in tokens.items()
    )
    if not examples:
        raise SettingError(flag, f"none of {len(records)} {unit} is left: {reasons}")
    if tokens:
        log(f"{flag}: {len(records) - len(examples)} of {len(records)} {unit} are left out: {reasons}")
    return examples


def prepared_records(
    corpus: CorpusConfig,
    unit: str,
    counts: tuple[int, int],
    train: Side,
    validation: Side,
    tokenizer: Tokenizer,
    fingerprint: str,
) -> PreparedData[Side]:
    """Returns the data of a run on records; `counts` are the sizes of its sides in `unit`."""
    manifest = {
        "fingerprint": fingerprint,
        "corpus": corpus.to_dict(),
        "train": {unit: counts[0]},
        "validation": {unit: counts[1]},
    }
    return PreparedData(train, validation, tokenizer, fingerprint, manifest)


def are_conversations(records: Sequence[PromptRecord]) -> bool:
    return all(not isinstance(record.prompt, str) for record in records)


def parse_record(content: Any, where: str) -> PromptRecord:
    """Returns the record of a JSON value.

    `prompt` is text or messages; `messages` and similar names are other names for it. If both `chosen` and `rejected`
    are whole conversations, the prompt is their common beginning (trl's "implicit prompt"), even if `prompt` has text.
    """
    if not isinstance(content, dict):
        raise UserError(f"{where}: should be a JSON object")
    named = next((name for name in ("prompt", *MESSAGE_FIELDS) if content.get(name) is not None), "prompt")
    prompt, tools = content.get(named), parse_tools(content, where).get("tools", [])
    answers = [content.get(name) for name in ("chosen", "rejected")]
    lists = [answer for answer in answers if isinstance(answer, list)]
    if not isinstance(prompt, list) and len(lists) == 2 and max(map(len, lists)) > 1:
        prompt, other = (parse_messages(answer[:-1], "chosen", where) for answer in lists)
        if prompt != other:
            raise UserError(f"{where}: chosen and rejected should differ in their last message only, or give a prompt")
        content = {**content, "chosen": lists[0][-1:], "rejected": lists[1][-1:]}
    elif isinstance(prompt, list) and prompt:
        prompt = parse_messages(prompt, named, where)
    elif not isinstance(prompt, str):
        raise UserError(f'{where}: has neither a "prompt" (text or messages) nor "messages"')
    return PromptRecord(where, content, prompt, tools)


def parse_messages(turns: list[Any], name: str, where: str) -> list[Message]:
    return validate_messages(to_openai_messages(turns, name, where), where)


def parse_answer(record: PromptRecord, name: str) -> str | Message:
    """Returns an answer, given as a string, a message or a list of one; a message without tool calls as its text."""
    answer = record.content.get(name)
    if isinstance(answer, str):
        return answer
    turns = [answer] if isinstance(answer, Mapping) else answer
    if not isinstance(turns, list) or len(turns) != 1:
        raise UserError(f'{record.where}: "{name}" should be a text, or a list of one message')
    [message] = parse_messages(turns, name, record.where)
    if message["role"] != "assistant":
        raise UserError(f'{record.where}: "{name}" is a message of the {message["role"]}, not of the assistant')
    message.pop("weight", None)
    return message if set(message) > {"role", "content"} else message["content"]


def encode_answer(
    tokenizer: Tokenizer, prompt: Prompt, answer: str | Message, tools: Sequence[Mapping[str, Any]] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Returns [n] int32 ids of a prompt and its answer, and [n] float32 weights: 1 on the answer and on its end.

    The end is that of the turn after messages, and that of the text after plain text.
    """
    if isinstance(prompt, str) and isinstance(answer, str):
        start, said = encode(tokenizer, prompt), tokenizer.encode(answer)
        ids = np.concatenate([start, said, [tokenizer.end_of_text_id]]).astype(np.int32)
        return ids, (np.arange(len(ids)) >= len(start)).astype(np.float32)
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    reply = {"role": "assistant", "content": answer} if isinstance(answer, str) else answer
    ids, weights = encode_messages(tokenizer, [*messages, reply], tools=tools)
    # Earlier turns of the assistant belong to the prompt.
    return ids, weights * (np.arange(len(ids)) >= len(encode(tokenizer, messages, tools=tools)))


def to_row(ids: np.ndarray, weights: np.ndarray, length: int, padding_id: int) -> dict[str, np.ndarray] | None:
    """Returns `token_ids`, `targets` int32 and `weights` float32, each [length], padded on the right, or None."""
    count = len(ids) - 1
    if count > length:
        return None
    row = np.full(length + 1, padding_id, np.int32)
    row[: len(ids)] = ids
    row_weights = np.zeros(length, np.float32)
    row_weights[:count] = weights[1:]
    return {"token_ids": row[:-1], "targets": row[1:], "weights": row_weights}


def hash_arrays(arrays: Mapping[str, np.ndarray], *more: str) -> str:
    """Returns the hexadecimal SHA-256 of arrays and strings."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.shape} {array.dtype}".encode())
        digest.update(array.view(np.uint8).data if array.size else b"")
    for text in more:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()
