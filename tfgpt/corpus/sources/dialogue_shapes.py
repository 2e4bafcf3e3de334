"""The shapes in which dialogues are published, turned into messages.

- OpenAI: `{"messages": [{"role": "user", "content": "…"}, …]}`; content may be a list of `{"type": "text", "text": …}`;
  what OpenAI calls developer is the system.
- ShareGPT: `{"conversations": [{"from": "human", "value": "…"}, {"from": "gpt", "value": "…"}, …]}`.
- Alpaca: `{"instruction": "…", "input": "…", "output": "…"}`, one exchange, the input below the instruction; `system`
  and `history` (pairs of earlier exchanges), where there are any.
- `{"prompt": "…", "completion": "…"}` (or `response`), `{"question": "…", "answer": "…"}`: one exchange.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tfgpt.common.errors import UserError
from tfgpt.corpus.sources import base

SPEAKERS = {
    "developer": "system",
    "system": "system",
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "assistant": "assistant",
}
"""Who speaks, by the names that ShareGPT and its kin have for them."""

SPEAKER_FIELDS = ("role", "from", "speaker")
CONTENT_FIELDS = ("content", "value", "text", "utterance")
LISTS = ("messages", "conversations", "conversation", "dialogue", "dialog")
PAIRS = (
    ("instruction", ("output", "response")),
    ("prompt", ("completion", "response")),
    ("question", ("answer",)),
)


def messages_in(value: Mapping[str, Any], place: str) -> list[dict[str, str]] | None:
    """The messages of an object in one of the shapes, or None when it has none of them.

    Args:
        value: a JSON object.
        place: names it in error lines, as FILE:LINE.

    Raises:
        UserError: the object has a shape but not what belongs there.
    """
    for name in LISTS:
        turns = value.get(name)
        if turns is not None and (name == "messages" or isinstance(turns, list)):
            return base.checked_messages(as_openai(turns, name, place), place)
    for question, answers in PAIRS:
        for answer in answers:
            if value.get(question) is not None and value.get(answer) is not None:
                return base.checked_messages(exchange(value, question, answer, place), place)
    return None


def as_openai(turns: Any, name: str, place: str) -> Any:
    """ShareGPT's turns under OpenAI's names; what is wrong is left for `checked_messages` to say."""
    if not isinstance(turns, list):
        return turns
    converted = []
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, Mapping):
            converted.append(turn)
            continue
        speaker_field = first_field(turn, SPEAKER_FIELDS)
        content_field = first_field(turn, CONTENT_FIELDS)
        speaker, content = turn.get(speaker_field), turn.get(content_field)
        if speaker_field != "role":
            if speaker not in SPEAKERS:
                known = ", ".join(SPEAKERS)
                raise UserError(f"{place}: turn {number} of {name!r} is from {speaker!r}; known are {known}")
            speaker = SPEAKERS[speaker]
        elif speaker == "developer":
            speaker = "system"
        message = {"role": speaker}
        if content_field in turn:
            message["content"] = joined(content, f"{place}: message {number}")
        converted.append(message)
    return converted


def first_field(turn: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """The first of the names that a turn has, else the usual one."""
    return next((name for name in names if name in turn), names[0])


def joined(content: Any, place: str) -> Any:
    """A content in parts as one text.

    Raises:
        UserError: a part is no text.
    """
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, Mapping) else base.kind_of(part)
            raise UserError(f"{place}: a part of its content is {kind}, no text; only text can be learned")
        texts.append(part["text"])
    return "".join(texts)


def exchange(value: Mapping[str, Any], question: str, answer: str, place: str) -> list[dict[str, Any]]:
    """Alpaca's object as messages."""
    messages: list[dict[str, Any]] = []
    if value.get("system"):
        messages.append({"role": "system", "content": value["system"]})
    history = value.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise UserError(f"{place}: 'history' is no list of pairs")
    for said, answered in history:
        messages += [{"role": "user", "content": said}, {"role": "assistant", "content": answered}]
    asked = value[question]
    more = value.get("input") if question == "instruction" else None
    if more:
        asked = base.checked_text(asked, place, question) + "\n\n" + base.checked_text(more, place, "input")
    return [*messages, {"role": "user", "content": asked}, {"role": "assistant", "content": value[answer]}]
