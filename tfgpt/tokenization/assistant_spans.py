"""Which characters of a rendered conversation the assistant writes, for templates without `{% generation %}`.

It is found by rendering again. A turn begins where the prompt ends that generation starts from: the template over the
messages before it, with the generation prompt. It ends with the first special token behind its content, the end of the
turn; behind calls of tools, which may hold special tokens of their own, it ends as it does where the turn is the last.
The contents and the calls are found by marks, unused characters of Unicode's private-use areas put around them (inside
white space, which templates trim). In the rare case that the prompt is no beginning of the whole (templates that treat
the last turn, or the last user, in another way), the turn begins behind the same last characters, or with its content.

By the same marks it is seen what a template leaves out that it cannot say: calls, what tools answer, a system message
that is not the first.
"""

from __future__ import annotations

import bisect
import collections
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tfgpt.common.errors import UserError

Span = tuple[int, int]
Render = Callable[[list[dict[str, Any]], bool], str]
"""The template over messages, with or without the generation prompt."""

TAILS = (24, 12, 6, 3)
"""So many of a prompt's last characters are looked for where it is no beginning of the whole, the most first."""

PRIVATE_USE = (range(0xE000, 0xF8FE), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
"""Characters that mean nothing by themselves; U+F8FE is `jinja_template.ESCAPE`."""

OTHERS = ("user", "system", "tool")
MARKS_OF_A_TURN = 4
"""Around the assistant's content, before the name of its first call, behind the name of each."""


def unused_characters(count: int, text: str) -> str:
    """Private-use characters that do not occur in a text.

    Raises:
        UserError: there are not as many.
    """
    used = set(text)
    free = (chr(code) for codes in PRIVATE_USE for code in codes if chr(code) not in used)
    found = "".join(character for character, _ in zip(free, range(count)))
    if len(found) < count:
        raise UserError("a conversation uses Unicode's private-use characters, which must be free to mark turns with")
    return found


class Marked:
    """A conversation rendered with marks.

    Args:
        render: the template.
        messages: as it takes them.
        text: what it made of them.
        unused: characters for marks; see `marks_needed`.

    Attributes:
        turns: numbers of the assistant's messages.
        usable: whether the template wrote the same with the marks; without them nothing is known.
        positions: where in the text each mark stands, in order.
    """

    def __init__(self, render: Render, messages: list[dict[str, Any]], text: str, unused: str):
        self.messages = messages
        self.turns = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        self.of_role = dict(zip(OTHERS, unused))
        rest = unused[len(OTHERS) :]
        self.of_turn = {
            turn: tuple(rest[place * MARKS_OF_A_TURN : (place + 1) * MARKS_OF_A_TURN])
            for place, turn in enumerate(self.turns)
        }
        self.pattern = re.compile(f"([{unused}])")
        self.marked = [self.with_marks(number, message) for number, message in enumerate(messages)]
        self.positions: dict[str, list[int]] = collections.defaultdict(list)
        try:
            bare, self.positions = self.taken_out(render(self.marked, False))
            self.usable = text.startswith(bare)
        except UserError:  # a template that looks closely at what is said
            self.usable = False
        if not self.usable:
            self.positions.clear()
        self.others = sorted(place for mark in self.of_role.values() for place in self.positions[mark])

    @staticmethod
    def marks_needed(messages: Sequence[dict[str, Any]]) -> int:
        """How many unused characters are needed."""
        return len(OTHERS) + MARKS_OF_A_TURN * sum(message["role"] == "assistant" for message in messages)

    def with_marks(self, number: int, message: dict[str, Any]) -> dict[str, Any]:
        """A message with marks; whoever is not the assistant gets one behind what they say."""
        content = message.get("content", "")
        core = content.strip()
        if message["role"] != "assistant":
            return {**message, "content": around(content, core, "", self.of_role[message["role"]])} if core else message
        opening, closing, first, behind = self.of_turn[number]
        made = {**message, "content": around(content, core, opening, closing)} if core else dict(message)
        if message.get("tool_calls"):
            made["tool_calls"] = [
                renamed(call, (first if place == 0 else "") + function_of(call)["name"] + behind)
                for place, call in enumerate(message["tool_calls"])
            ]
        return made

    def taken_out(self, text: str) -> tuple[str, dict[str, list[int]]]:
        """A text without marks, and where they stood."""
        pieces: list[str] = []
        places: dict[str, list[int]] = collections.defaultdict(list)
        length = 0
        for number, piece in enumerate(self.pattern.split(text)):
            if number % 2:
                places[piece].append(length)
            else:
                pieces.append(piece)
                length += len(piece)
        return "".join(pieces), places

    def unsaid(self) -> Iterator[str]:
        """What the template leaves out, in words."""
        if not self.usable:
            return
        calls = {turn: len(self.messages[turn].get("tool_calls", ())) for turn in self.turns}
        if any(len(self.positions[self.of_turn[turn][3]]) < count for turn, count in calls.items()):
            yield "calls of tools"
        for role, words in (("tool", "what tools answer"), ("system", "a system message that is not the first")):
            said = [
                message for message in self.messages if message["role"] == role and (message["content"] or "").strip()
            ]
            if len(self.positions[self.of_role[role]]) < len(said) and (role == "tool" or late_system(self.messages)):
                yield words

    def extent(self, turn: int) -> Span | None:
        """Where what a turn says stands, from the first of its marks to the last."""
        opening, closing, first, behind = (self.positions[mark] for mark in self.of_turn[turn])
        # Answers of tools may name them again.
        behind = behind[: len(self.messages[turn].get("tool_calls", ()))]
        # A template may drop the beginning of a content (thoughts), or the whole of one beside calls.
        starts, ends = [*opening[:1], *first[:1]], [*closing[-1:], *behind[-1:]]
        return (min(starts or ends), max(ends)) if ends else None

    def tail(self, render: Render, turn: int) -> str:
        """What stands behind the last of a turn's marks where the conversation ends with it."""
        text = render(self.marked[: turn + 1], False)
        behind, count = self.of_turn[turn][3], len(self.messages[turn]["tool_calls"])
        return self.pattern.sub("", text.split(behind, count)[-1]).rstrip()


def around(content: str, core: str, opening: str, closing: str) -> str:
    """A content with marks around what is left without its white space."""
    before = content.index(core)
    return content[:before] + opening + core + closing + content[before + len(core) :]


def function_of(call: dict[str, Any]) -> dict[str, Any]:
    """The function's name and arguments in a call, which may stand in it or be it."""
    return call.get("function", call)


def renamed(call: dict[str, Any], name: str) -> dict[str, Any]:
    """A call with another name."""
    function = {**function_of(call), "name": name}
    return {**call, "function": function} if "function" in call else function


def late_system(messages: Sequence[dict[str, Any]]) -> bool:
    """Whether a system message is not the first."""
    return any(message["role"] == "system" for message in messages[1:])


def assistant_spans(render: Render, names: re.Pattern[str], marked: Marked, text: str) -> list[Span]:
    """What the assistant writes in `text`, a span a turn.

    Args:
        render: the template.
        names: finds special tokens.
        marked: the conversation with marks.
        text: the conversation.

    Raises:
        UserError: it cannot be told.
    """
    messages, turns, others = marked.messages, marked.turns, marked.others
    # Where the same stands between somebody else's words and the assistant's, it begins at the same place in that.
    known: dict[str, int] = {}
    starts = []
    for turn in turns:
        content = marked.extent(turn)
        before = bisect.bisect_right(others, content[0]) - 1 if content else -1
        between = text[others[before] : content[0]] if content and before >= 0 else ""
        if between not in known:
            start = start_of_turn(render, messages, turn, text, content, others[before] if before >= 0 else 0)
            if content and before >= 0 and others[before] <= start:
                known[between] = content[0] - start
        else:
            start = content[0] - known[between] if content else 0
        starts.append(start)
    spans = []
    for turn, start, following in zip(turns, starts, [*starts[1:], len(text)]):
        content = marked.extent(turn)
        if content and messages[turn].get("tool_calls"):
            tail = marked.tail(render, turn)
            if text.startswith(tail, content[1]):
                spans.append((start, content[1] + len(tail)))
                continue
        spans.append((start, end_of_turn(names, text, start, content[1] if content else None, following)))
    return spans


def start_of_turn(
    render: Render, messages: list[dict[str, Any]], turn: int, text: str, content: Span | None, others_end: int
) -> int:
    """Where in `text` the assistant begins to write."""
    prompt = None
    try:
        prompt = render(messages[:turn], True)
    except UserError:
        if content is None:
            raise
    if prompt is not None and text.startswith(prompt):
        return len(prompt)
    if content is None:
        raise UserError(
            "the chat template does not let us tell what the assistant writes; one with {% generation %} does"
        )
    before = text[: content[0]]
    blank = len(before) - len(before.rstrip())
    for tail in TAILS:
        for length in range(blank + 1):
            if prompt and before[: len(before) - length].endswith(prompt[-tail:]):
                return len(before) - length
    # Something else that the assistant writes stands before it: thoughts, how a call begins.
    for tail in TAILS[:-1]:
        place = before.rfind(prompt[-tail:], max(0, others_end - tail)) if prompt else -1
        if place >= 0:
            return place + min(tail, len(prompt or ""))
    return content[0]


def end_of_turn(names: re.Pattern[str], text: str, start: int, content_end: int | None, following: int) -> int:
    """Where in `text` the turn ends that begins at `start`, before `following`."""
    otherwise = following if content_end is None else content_end
    found = names.search(text, start if content_end is None else content_end)
    if found is None or found.end() > following:
        return otherwise
    if content_end is not None and text[content_end : found.start()].strip():
        return otherwise
    return found.end()
