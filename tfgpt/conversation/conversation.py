"""A conversation: its messages, the part of it that a model can read, and its line in a JSON Lines file."""

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
    """What was said.

    A file of conversations has one a line, `{"messages": [{"role": …, "content": …}, …]}`, as `train` reads them; the
    other shapes that `train` reads are read too.

    Args:
        messages: in order; a system message, if there is one, comes first.
        place: the file that the conversation was read from or written to last, and its line there, from 0.
        tools: definitions of functions that the model is told it may call.
    """

    def __init__(
        self,
        messages: Sequence[Message] = (),
        place: tuple[Path, int] | None = None,
        tools: Sequence[dict[str, Any]] = (),
    ):
        self.messages = list(messages)
        self.place = place
        self.tools = list(tools)

    @property
    def system(self) -> str | None:
        """What the system message says; None without one."""
        return self.messages[0]["content"] if self.messages and self.messages[0]["role"] == "system" else None

    def set_system(self, text: str | None) -> None:
        """Puts a system message before everything, in place of an earlier one; None leaves it out."""
        rest = self.messages[1:] if self.system is not None else self.messages
        self.messages = rest if text is None else [{"role": "system", "content": text}, *rest]

    def reset(self) -> None:
        """Forgets everything but the system message."""
        self.messages = self.messages[:1] if self.system is not None else []
        self.place = None

    def save(self, path: Path) -> int:
        """Writes the conversation as the last line of a file, or in place of the line that it was before.

        Returns:
            The line's number, from 1.

        Raises:
            UserError: the file's name is not one that `train` reads, or what is there cannot be added to.
        """
        if path.suffix != ".jsonl":
            raise UserError(f"{path}: give a name that ends in .jsonl, so that train reads it")
        lines = [line for _, line in read_lines(path)] if path.exists() else []
        while lines and not lines[-1].strip():
            lines.pop()
        number = self.place[1] if self.place and self.place[0] == path and self.place[1] < len(lines) else len(lines)
        content = {"messages": self.messages, **({"tools": self.tools} if self.tools else {})}
        lines[number : number + 1] = [json.dumps(content, ensure_ascii=False)]
        write_text(path, "".join(f"{line}\n" for line in lines))
        self.place = (path, number)
        return number + 1

    @classmethod
    def load(cls, path: Path, number: int | None = None) -> Conversation:
        """Reads a conversation.

        Args:
            path: a file of conversations.
            number: its line, from 1; None for the last one.

        Raises:
            UserError: there is no such line, or it holds no conversation.
        """
        lines = list(read_lines(path))
        written = [place for place, line in lines if line.strip()]
        place = number or (written[-1] if written else 1)
        if place not in written:
            words = f"{len(lines)} line{'' if len(lines) == 1 else 's'}"
            wanted = "none" if number is None else f"no line {number}"
            raise UserError(f"{path} has {words}, {wanted} with a conversation")
        where = f"{path}:{place}"
        found = parse_json(lines[place - 1][1], where)
        messages = parse_messages(found, where) if isinstance(found, dict) else None
        if messages is None:
            raise UserError(f'{where}: no object with "messages"')
        return cls(messages, (path, place - 1), parse_tools(found, where).get("tools", ()))


def readable(
    messages: Sequence[Message], length: Callable[[Sequence[Message]], int], room: int
) -> tuple[list[Message], int]:
    """The part of a conversation that fits: the system message, and as many of the last turns as there is room for.

    A turn is what the user says and everything up to what they say next; the last turn is always there.

    Args:
        messages: the conversation.
        length: how many tokens messages have.
        room: the most tokens wanted.

    Returns:
        The messages, and how many were left out.
    """
    system = list(messages[:1]) if messages and messages[0]["role"] == "system" else []
    rest = messages[len(system) :]
    starts = [place for place, message in enumerate(rest) if message["role"] == "user"] or [0]
    starts[0] = 0  # An assistant who speaks first goes with the first turn.
    # The later it starts, the shorter it is.
    first = bisect.bisect_left(starts, True, key=lambda start: length([*system, *rest[start:]]) <= room)
    start = starts[min(first, len(starts) - 1)]
    return [*system, *rest[start:]], start
