"""Finds the characters that the assistant writes in a rendered conversation, without `{% generation %}` tags.

A turn begins where the generation prompt of the messages before it ends. It ends with the first special token after its
content, or, after calls of tools, as it does where the conversation ends with this turn. Contents and calls are located
by marks: unused private-use characters around them, inside the white space that templates trim. If the prompt is not a
prefix of the text (in templates that treat the last turn differently), the turn begins after the same last characters,
or with its content. The marks also show what a template leaves out.
"""

from __future__ import annotations

import bisect
import collections
import re
from collections.abc import Callable, Sequence
from typing import Any

from tfgpt.common.errors import UserError

Span = tuple[int, int]
Render = Callable[[list[dict[str, Any]], bool], str]
"""Renders messages, with or without the generation prompt."""

SUFFIX_LENGTHS = (24, 12, 6, 3)
"""Numbers of last characters of a prompt to search for if the prompt is not a prefix of the text."""

PRIVATE_USE = (range(0xE000, 0xF8FE), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
"""Characters without a meaning; U+F8FE is `jinja_template.ESCAPE`."""

OTHER_ROLES = ("user", "system", "tool")
MARKS_PER_TURN = 4
"""Around the content, before the name of the first call, and after the name of each call."""


class MarkedConversation:
    """A conversation rendered with marks.

    Args:
        messages, text: the conversation and its rendered text.
        marks: `marks_needed` unused characters.

    Attributes:
        turns: indices of the assistant's messages.
        usable: whether the template writes the same text with the marks; otherwise there are no positions.
        positions: positions of each mark in the text, in order.
        message_ends: positions of the ends of all other messages.
    """

    def __init__(self, render: Render, messages: list[dict[str, Any]], text: str, marks: str):
        self.messages, self.marks = messages, marks
        self.turns = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        self.mark_of_role = dict(zip(OTHER_ROLES, marks))
        rest = iter(marks[len(OTHER_ROLES) :])
        self.marks_of_turn = {turn: [next(rest) for _ in range(MARKS_PER_TURN)] for turn in self.turns}
        self.marked = [self._with_marks(number, message) for number, message in enumerate(messages)]
        self.positions: dict[str, list[int]] = collections.defaultdict(list)
        try:
            bare, positions = remove_marks(render(self.marked, False), marks)
            self.usable = text.startswith(bare)
        except UserError:  # The template refuses the marks.
            self.usable = False
        if self.usable:
            self.positions = positions
        self.message_ends = sorted(position for mark in self.mark_of_role.values() for position in self.positions[mark])

    @staticmethod
    def marks_needed(messages: Sequence[dict[str, Any]]) -> int:
        return len(OTHER_ROLES) + MARKS_PER_TURN * sum(message["role"] == "assistant" for message in messages)

    def _with_marks(self, number: int, message: dict[str, Any]) -> dict[str, Any]:
        content = message.get("content", "")
        if message["role"] != "assistant":
            return {**message, "content": surround(content, "", self.mark_of_role[message["role"]])}
        opening, closing, first, after = self.marks_of_turn[number]
        marked = {**message, "content": surround(content, opening, closing)} if content else dict(message)
        if message.get("tool_calls"):
            marked["tool_calls"] = []
        for call in message.get("tool_calls") or ():
            function = call.get("function", call)  # It may be nested or the call itself.
            function = {**function, "name": first + function["name"] + after}
            marked["tool_calls"].append({**call, "function": function} if "function" in call else function)
            first = ""
        return marked

    def omissions(self) -> list[str]:
        """Describes the calls, answers and system messages that the template leaves out."""
        if not self.usable:
            return []
        found = []
        calls = {turn: len(self.messages[turn].get("tool_calls", ())) for turn in self.turns}
        if any(len(self.positions[self.marks_of_turn[turn][3]]) < count for turn, count in calls.items()):
            found.append("calls of tools")
        names = {"tool": "answers of tools"}
        if has_late_system_message(self.messages):
            names["system"] = "a system message after the first message"
        for role, name in names.items():
            contents = [message["content"] or "" for message in self.messages if message["role"] == role]
            if len(self.positions[self.mark_of_role[role]]) < sum(bool(content.strip()) for content in contents):
                found.append(name)
        return found

    def content_span(self, turn: int) -> Span | None:
        """Returns the span from the first to the last mark of a turn; None if the template drops the turn."""
        opening, closing, first, after = (self.positions[mark] for mark in self.marks_of_turn[turn])
        # Answers of tools may repeat the names.
        after = after[: len(self.messages[turn].get("tool_calls", ()))]
        # A template may drop the beginning of a content (reasoning), or a content next to calls.
        starts, ends = [*opening[:1], *first[:1]], [*closing[-1:], *after[-1:]]
        return (min(starts or ends), max(ends)) if ends else None


def assistant_spans(render: Render, specials: re.Pattern[str], marked: MarkedConversation, text: str) -> list[Span]:
    """Returns the span of each of the assistant's turns in `text`."""
    messages, turns, message_ends = marked.messages, marked.turns, marked.message_ends
    # Text between the previous message and the content → the distance of the turn's start from the content.
    known: dict[str, int] = {}
    starts = []
    for turn in turns:
        content = marked.content_span(turn)
        before = bisect.bisect_right(message_ends, content[0]) - 1 if content else -1
        between = text[message_ends[before] : content[0]] if content and before >= 0 else ""
        if between not in known:
            start = _turn_start(render, messages, turn, text, content, message_ends[before] if before >= 0 else 0)
            if content and before >= 0 and message_ends[before] <= start:
                known[between] = content[0] - start
        else:
            start = content[0] - known[between] if content else 0
        starts.append(start)
    spans = []
    for turn, start, following in zip(turns, starts, [*starts[1:], len(text)]):
        content = marked.content_span(turn)
        if content and messages[turn].get("tool_calls"):
            # The text after the last mark of the turn in a conversation that ends with it.
            after, count = marked.marks_of_turn[turn][3], len(messages[turn]["tool_calls"])
            ending = render(marked.marked[: turn + 1], False).split(after, count)[-1]
            ending = remove_marks(ending, marked.marks)[0].rstrip()
            if text.startswith(ending, content[1]):
                spans.append((start, content[1] + len(ending)))
                continue
        spans.append((start, _turn_end(specials, text, start, content[1] if content else None, following)))
    return spans


def _turn_start(
    render: Render, messages: list[dict[str, Any]], turn: int, text: str, content: Span | None, previous_end: int
) -> int:
    prompt = ""
    try:
        prompt = render(messages[:turn], True)
        if text.startswith(prompt):
            return len(prompt)
    except UserError:
        if content is None:
            raise
    if content is None:
        raise UserError("the assistant's part of the chat template is ambiguous; use a template with {% generation %}")
    before = text[: content[0]]
    blank = len(before) - len(before.rstrip())
    if prompt:
        for count in SUFFIX_LENGTHS:
            for length in range(blank + 1):
                if before[: len(before) - length].endswith(prompt[-count:]):
                    return len(before) - length
        # The assistant writes something else before the content: reasoning, or the beginning of a call.
        for count in SUFFIX_LENGTHS[:-1]:
            position = before.rfind(prompt[-count:], max(0, previous_end - count))
            if position >= 0:
                return position + min(count, len(prompt))
    return content[0]


def _turn_end(specials: re.Pattern[str], text: str, start: int, content_end: int | None, following: int) -> int:
    default = following if content_end is None else content_end
    found = specials.search(text, start if content_end is None else content_end)
    if found is None or found.end() > following:
        return default
    if content_end is not None and text[content_end : found.start()].strip():
        return default
    return found.end()


def unused_characters(count: int, text: str) -> str:
    used = set(text)
    free = (chr(code) for codes in PRIVATE_USE for code in codes if chr(code) not in used)
    found = "".join(character for character, _ in zip(free, range(count)))
    if len(found) < count:
        raise UserError("a conversation uses the private-use characters of Unicode, which are needed to mark its turns")
    return found


def remove_marks(text: str, marks: str) -> tuple[str, dict[str, list[int]]]:
    """Returns the text without marks, and the positions of each mark in it."""
    pieces: list[str] = []
    positions: dict[str, list[int]] = collections.defaultdict(list)
    length = 0
    for number, piece in enumerate(re.split(f"([{marks}])", text)):
        if number % 2:
            positions[piece].append(length)
        else:
            pieces.append(piece)
            length += len(piece)
    return "".join(pieces), positions


def surround(content: str, opening: str, closing: str) -> str:
    """Returns a content with marks inside its outer white space; a blank content gets none."""
    core = content.strip()
    before, after = content.split(core, 1) if core else (content, "")
    return before + opening + core + closing + after if core else content


def has_late_system_message(messages: Sequence[dict[str, Any]]) -> bool:
    return any(message["role"] == "system" for message in messages[1:])
