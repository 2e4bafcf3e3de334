"""The shapes in which dialogues are published, turned into messages.

- OpenAI: `{"messages": [{"role": "user", "content": "…"}, …], "tools": […]}`; content may be a list of parts
  (`{"type": "text", "text": …}`); what OpenAI calls developer is the system; a `function_call` is a call, a message of
  the role `function` what it answers, and `functions` are tools, as they were before those.
- ShareGPT: `{"conversations": [{"from": "human", "value": "…"}, {"from": "gpt", "value": "…"}, …]}`. A turn from
  `function_call` holds the JSON of a call or of several, one from `observation` what they answer; a call that names no
  function is what the assistant says. `tools` may be JSON text.
- Alpaca: `{"instruction": "…", "input": "…", "output": "…"}`, one exchange, the input below the instruction; `system`
  and `history` (pairs of earlier exchanges), where there are any.
- `{"prompt": "…", "completion": "…"}` (or `response`), `{"question": "…", "answer": "…"}`: one exchange. Either may be
  a list of messages, as trl has it; then, as there, the prompt's are not learned from.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from typing import Any

from tfgpt.common.errors import UserError
from tfgpt.corpus.sources import base
from tfgpt.corpus.sources.messages import Message, validate_messages, validate_tools

CALLS, ANSWERS = "function_call", "tool"

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
    "function_call": CALLS,
    "tool_call": CALLS,
    "observation": ANSWERS,
    "function_response": ANSWERS,
    "tool_response": ANSWERS,
    "ipython": ANSWERS,
    "function": ANSWERS,
    "tool": ANSWERS,
}
"""Who speaks, by the names that the shapes have for them, whatever the field is called."""

SPEAKER_FIELDS = ("role", "from", "speaker")
CONTENT_FIELDS = ("content", "value", "text", "utterance")
MESSAGE_FIELDS = ("messages", "conversations", "conversation", "dialogue", "dialog")
PAIRS = (
    ("instruction", ("output", "response")),
    ("prompt", ("completion", "response", "answer")),
    ("question", ("answer",)),
)


def parse_messages(value: Mapping[str, Any], place: str) -> list[Message] | None:
    """The messages of an object in one of the shapes, or None when it has none of them.

    Args:
        value: a JSON object.
        place: names it in error lines, as FILE:LINE.

    Raises:
        UserError: the object has a shape but not what belongs there.
    """
    for name in MESSAGE_FIELDS:
        turns = value.get(name)
        if turns is not None and (name == "messages" or isinstance(turns, list)):
            return validate_messages(to_openai_messages(turns, name, place), place)
    for question, answers in PAIRS:
        for answer in answers:
            if value.get(question) is not None and value.get(answer) is not None:
                return validate_messages(exchange(value, question, answer, place), place)
    return None


def parse_tools(value: Mapping[str, Any], place: str) -> dict[str, list[dict[str, Any]]]:
    """`{"tools": […]}` of an object that defines functions, else nothing.

    Raises:
        UserError: they are no functions.
    """
    tools = validate_tools(value.get("tools") or value.get("functions"), place)
    return {"tools": tools} if tools else {}


def to_openai_messages(turns: Any, name: str, place: str) -> Any:
    """Turns under OpenAI's names; what is wrong is left for `validate_messages` to say."""
    if not isinstance(turns, list):
        return turns
    converted: list[Any] = []
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, Mapping):
            converted.append(turn)
            continue
        speaker_field = first_field(turn, SPEAKER_FIELDS)
        content_field = first_field(turn, CONTENT_FIELDS)
        speaker = turn.get(speaker_field)
        if not (isinstance(speaker, str) and speaker in SPEAKERS) and speaker_field != "role":
            raise UserError(f"{place}: turn {number} of {name!r} is from {speaker!r}; known are {', '.join(SPEAKERS)}")
        fields = {field: turn[field] for field in turn if field not in (speaker_field, *CONTENT_FIELDS)}
        message = {**fields, "role": SPEAKERS.get(speaker, speaker) if isinstance(speaker, str) else speaker}
        if content_field in turn:
            message["content"] = joined(turn[content_field], message["role"], f"{place}: message {number}")
        if message.get("content") is None and isinstance(turn.get("refusal"), str):
            message["content"] = turn["refusal"]
        with_calls(message, converted)
    return converted


def with_calls(message: dict[str, Any], before: list[Any]) -> None:
    """Appends a message, calls in it as OpenAI's `tool_calls`.

    Calls that no id ties to their answers are given ids of nine letters, as some templates want them. A turn that is
    a call belongs to what the assistant says just before it.
    """
    if message["role"] == CALLS:
        calls = calls_in(message.get("content"))
        if not calls:
            before.append({**message, "role": "assistant"})
            return
        message = {**message, "role": "assistant", "content": None}
        if before and isinstance(before[-1], dict) and before[-1].get("role") == "assistant":
            message = before.pop()
            calls = [*calls_of(message), *calls]
        message["tool_calls"] = calls
    elif message["role"] == "assistant" and isinstance(message.get("function_call"), Mapping):
        message["tool_calls"] = [{"type": "function", "function": dict(message["function_call"])}]
    elif message["role"] == ANSWERS and message.get("tool_call_id") is None:
        message["tool_call_id"] = call_answered(before)
    if isinstance(message.get("tool_calls"), list):
        known = sum(len(calls_of(other)) for other in before)
        message["tool_calls"] = [
            {**call, "id": f"call{known + number:05}"} if isinstance(call, Mapping) and not call.get("id") else call
            for number, call in enumerate(message["tool_calls"], start=1)
        ]
    before.append(message)


def call_answered(before: list[Any]) -> Any:
    """The id of the call that a tool answers behind these messages: the first without an answer, or None."""
    answers = sum(1 for _ in itertools.takewhile(lambda message: role_of(message) == ANSWERS, reversed(before)))
    calls = calls_of(before[-1 - answers]) if answers < len(before) else []
    call = calls[answers] if answers < len(calls) else None
    return call.get("id") if isinstance(call, Mapping) else None


def calls_of(message: Any) -> list[Any]:
    """The calls in a message, if it is one and has a list of them."""
    calls = message.get("tool_calls") if isinstance(message, dict) else None
    return calls if isinstance(calls, list) else []


def role_of(message: Any) -> Any:
    """The role of a message, if it is one."""
    return message.get("role") if isinstance(message, dict) else None


def calls_in(content: Any) -> list[dict[str, Any]]:
    """The calls in a turn that is JSON of one or several; none where it is something else."""
    try:
        value = json.loads(content) if isinstance(content, str) else content
    except (ValueError, RecursionError):
        return []
    calls = value if isinstance(value, list) else [value]
    if not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        return []
    return [{"type": "function", "function": call} for call in calls]


def first_field(turn: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """The first of the names that a turn has, else the usual one."""
    return next((name for name in names if name in turn), names[0])


def joined(content: Any, role: Any, place: str) -> Any:
    """A content in parts as one text; what a tool answers may be any JSON.

    Raises:
        UserError: a part is no text.
    """
    parts = content if isinstance(content, list) else []
    if role == ANSWERS and (isinstance(content, Mapping) or not all(map(is_part, parts))):
        return json.dumps(content, ensure_ascii=False)
    if not isinstance(content, list):
        return content
    texts = []
    for part in parts:
        text = part.get("text", part.get("refusal")) if isinstance(part, Mapping) else None
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else base.json_type(part)
            raise UserError(f"{place}: a part of its content is {kind}, no text; only text can be learned")
        texts.append(text)
    return "".join(texts)


def is_part(part: Any) -> bool:
    """Whether a JSON value is a part of a content."""
    return isinstance(part, Mapping) and isinstance(part.get("type"), str)


def exchange(value: Mapping[str, Any], question: str, answer: str, place: str) -> list[Any]:
    """One exchange, or a conversation and how it goes on, as messages."""
    messages: list[Any] = []
    if value.get("system"):
        messages.append({"role": "system", "content": value["system"]})
    history = value.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise UserError(f"{place}: 'history' is no list of pairs")
    for said, answered in history:
        messages += [{"role": "user", "content": said}, {"role": "assistant", "content": answered}]
    asked, answered = value[question], value[answer]
    if isinstance(asked, list):
        for message in to_openai_messages(asked, question, place):
            masked = {**message, "weight": 0} if role_of(message) == "assistant" else message
            messages.append(masked)
    else:
        more = value.get("input") if question == "instruction" else None
        if more:
            asked = base.validate_text(asked, place, question) + "\n\n" + base.validate_text(more, place, "input")
        messages.append({"role": "user", "content": asked})
    if isinstance(answered, list):
        return [*messages, *to_openai_messages(answered, answer, place)]
    return [*messages, {"role": "assistant", "content": answered}]
