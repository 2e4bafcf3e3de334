"""Conversations: their messages, truncation to a model's context, and their lines in JSON Lines files."""

from __future__ import annotations

import bisect
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tfgpt.common.atomic_files import write_text
from tfgpt.common.errors import UserError
from tfgpt.corpus.sources.chat_formats import parse_messages, parse_tools
from tfgpt.corpus.sources.json_records import parse_json, read_lines
from tfgpt.corpus.sources.messages import Message


class Conversation:
    """A conversation, which is a line `{"messages": [{"role": …, "content": …}, …]}` in a file for `train`.

    Args:
        messages: in order; a system message comes first.
        location: the file that has the conversation and its line in it, from 0.
        tools: definitions of functions that the model may call.

    Example:

    >>> conversation = Conversation([{"role": "user", "content": "Hello"}])
    >>> conversation.set_system("Be brief.")
    >>> conversation.system, len(conversation.messages)
    ('Be brief.', 2)
    """

    def __init__(
        self,
        messages: Sequence[Message] = (),
        location: tuple[Path, int] | None = None,
        tools: Sequence[dict[str, Any]] = (),
    ):
        self.messages = list(messages)
        self.location = location
        self.tools = list(tools)

    @property
    def system(self) -> str | None:
        """The text of the system message, or None."""
        return self.messages[0]["content"] if self.messages and self.messages[0]["role"] == "system" else None

    def set_system(self, text: str | None) -> None:
        """Sets the system message; None removes it."""
        rest = self.messages[1:] if self.system is not None else self.messages
        self.messages = rest if text is None else [{"role": "system", "content": text}, *rest]

    def reset(self) -> None:
        """Removes all messages except the system message."""
        self.messages = self.messages[:1] if self.system is not None else []
        self.location = None

    def save(self, path: Path) -> int:
        """Writes the conversation to its line of a file or to a new last line; returns the line's number from 1."""
        if path.suffix != ".jsonl":
            raise UserError(f"{path}: give a name that ends in .jsonl, so that train reads it")
        lines = [line for _, line in read_lines(path)] if path.exists() else []
        while lines and not lines[-1].strip():
            lines.pop()
        number = len(lines)
        if self.location and self.location[0] == path and self.location[1] < len(lines):
            number = self.location[1]
        content = {"messages": self.messages, **({"tools": self.tools} if self.tools else {})}
        lines[number : number + 1] = [json.dumps(content, ensure_ascii=False)]
        write_text(path, "".join(f"{line}\n" for line in lines))
        self.location = (path, number)
        return number + 1

    @classmethod
    def load(cls, path: Path, number: int | None = None) -> Conversation:
        """Reads a conversation.

        Args:
            path: a file of conversations in a format that `train` reads.
            number: the line, from 1; None for the last conversation.
        """
        lines = list(read_lines(path))
        written = [place for place, line in lines if line.strip()]
        place = number or (written[-1] if written else 1)
        if place not in written:
            num_lines = f"{len(lines)} line{'' if len(lines) == 1 else 's'}"
            wanted = "none" if number is None else f"no line {number}"
            raise UserError(f"{path} has {num_lines}, {wanted} with a conversation")
        where = f"{path}:{place}"
        found = parse_json(lines[place - 1][1], where)
        messages = parse_messages(found, where) if isinstance(found, dict) else None
        if messages is None:
            raise UserError(f'{where}: no object with "messages"')
        return cls(messages, (path, place - 1), parse_tools(found, where).get("tools", ()))


def truncate_messages(
    messages: Sequence[Message], length: Callable[[list[Message]], int], room: int
) -> tuple[list[Message], int]:
    """Drops the oldest turns of a conversation that does not fit; keeps the system message and the last turn.

    A turn is a message of the user and all messages up to the user's next one.

    Args:
        length: returns the number of tokens of messages.
        room: the most tokens.

    Returns:
        The messages and the number of dropped ones.
    """
    system = list(messages[:1]) if messages and messages[0]["role"] == "system" else []
    rest = messages[len(system) :]
    starts = [place for place, message in enumerate(rest) if message["role"] == "user"] or [0]
    starts[0] = 0  # Messages before the first one of the user belong to the first turn.
    # A later start is shorter.
    first = bisect.bisect_left(starts, True, key=lambda start: length([*system, *rest[start:]]) <= room)
    start = starts[min(first, len(starts) - 1)]
    return [*system, *rest[start:]], start
