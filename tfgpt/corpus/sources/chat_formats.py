"""Parsers of the common dialogue formats.

- OpenAI: `{"messages": [{"role": "user", "content": "…"}, …], "tools": […]}`. Content may be a list of parts
  (`{"type": "text", "text": …}`); the role developer is system; the older `function_call`, messages of the role
  `function` and `functions` are accepted.
- ShareGPT: `{"conversations": [{"from": "human", "value": "…"}, {"from": "gpt", "value": "…"}, …]}`. A turn from
  `function_call` holds the JSON of one or more calls, a turn from `observation` the answer; a call without a function's
  name is a message of the assistant. `tools` may be JSON text.
- Alpaca: `{"instruction": "…", "input": "…", "output": "…"}`, one exchange with the input below the instruction;
  optionally `system` and `history` (pairs of earlier exchanges).
- `{"prompt": "…", "completion": "…"}` (or `response`), `{"question": "…", "answer": "…"}`: one exchange. Either may be
  a list of messages, as in trl; the assistant's messages in the prompt are then not learned, as in trl.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from typing import Any

from tfgpt.common.errors import UserError
from tfgpt.corpus.sources import base
from tfgpt.corpus.sources.messages import Message, json_or_none, validate_function, validate_messages

CALL, ANSWER = "function_call", "tool"

# The role of each speaker, in all formats.
SPEAKERS = {
    **dict.fromkeys(("developer", "system"), "system"),
    **dict.fromkeys(("human", "user", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "bot", "model", "assistant"), "assistant"),
    **dict.fromkeys(("function_call", "tool_call"), CALL),
    **dict.fromkeys(("observation", "function_response", "tool_response", "ipython", "function", "tool"), ANSWER),
}
SPEAKER_FIELDS = ("role", "from", "speaker")
CONTENT_FIELDS = ("content", "value", "text", "utterance")
MESSAGE_FIELDS = ("messages", "conversations", "conversation", "dialogue", "dialog")
PAIRS = (
    ("instruction", ("output", "response")),
    ("prompt", ("completion", "response", "answer")),
    ("question", ("answer",)),
)


def parse_messages(value: Mapping[str, Any], place: str) -> list[Message] | None:
    """Returns the messages of an object in one of the formats, or None when it is in none of them."""
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
    """Returns `{"tools": […]}` of an object that defines functions, else `{}`."""
    tools = value.get("tools") or value.get("functions")
    if isinstance(tools, str) and tools.strip():
        tools = json_or_none(tools)
        if tools is None:
            raise UserError(f"{place}: 'tools' is neither JSON nor a list of functions")
    if not tools:
        return {}
    if not isinstance(tools, list):
        raise UserError(f"{place}: 'tools' is {base.json_type(tools)}, not a list of functions")
    base.validate_text(json.dumps(tools, ensure_ascii=False), place, "tools")
    problem = f"{place}: 'tools' holds something other than a named function"
    return {"tools": [validate_function(tool, problem) for tool in tools]}


def to_openai_messages(turns: Any, name: str, place: str) -> list[dict[str, Any]]:
    """Returns the turns of the field `name` with OpenAI's field names and roles, for `validate_messages`."""
    if not isinstance(turns, list):
        raise UserError(f"{place}: {name!r} is {base.json_type(turns)}, not a list")
    messages: list[dict[str, Any]] = []
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, Mapping):
            kind = base.json_type(turn)
            raise UserError(f"{place}: message {number} is {kind}, not an object with role and content")
        speaker_field, content_field = first_field(turn, SPEAKER_FIELDS), first_field(turn, CONTENT_FIELDS)
        speaker = turn.get(speaker_field)
        role = SPEAKERS.get(speaker, speaker) if isinstance(speaker, str) else speaker
        if speaker_field != "role" and not (isinstance(speaker, str) and speaker in SPEAKERS):
            raise UserError(f"{place}: turn {number} of {name!r} is from {speaker!r}; known are {', '.join(SPEAKERS)}")
        message = {field: turn[field] for field in turn if field not in (speaker_field, *CONTENT_FIELDS)}
        message["role"] = role
        if content_field in turn:
            message["content"] = join_parts(turn[content_field], message["role"], f"{place}: message {number}")
        if message.get("content") is None and isinstance(turn.get("refusal"), str):
            message["content"] = turn["refusal"]
        append_message(messages, message)
    return messages


def first_field(turn: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """Returns the first of the names that a turn has, else the first name."""
    return next((name for name in names if name in turn), names[0])


def append_message(messages: list[dict[str, Any]], message: dict[str, Any]) -> None:
    """Appends a message with calls as `tool_calls`; ids get nine letters, as some templates require."""
    if message["role"] == CALL:
        content = message.get("content")
        value = json_or_none(content) if isinstance(content, str) else content
        functions = value if isinstance(value, list) else [value]
        are_calls = all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in functions)
        if not functions or not are_calls:
            messages.append({**message, "role": "assistant"})
            return
        calls: list[Any] = [{"type": "function", "function": call} for call in functions]
        if messages and messages[-1]["role"] == "assistant":
            message = messages.pop()
            calls = [*calls_of(message), *calls]
        else:
            message = {**message, "role": "assistant", "content": None}
        message["tool_calls"] = calls
    elif message["role"] == "assistant" and isinstance(message.get("function_call"), Mapping):
        message["tool_calls"] = [{"type": "function", "function": dict(message["function_call"])}]
    elif message["role"] == ANSWER and message.get("tool_call_id") is None:
        # The first call without an answer at the end of the messages.
        answers = sum(1 for _ in itertools.takewhile(lambda message: message["role"] == ANSWER, reversed(messages)))
        calls = calls_of(messages[-1 - answers]) if answers < len(messages) else []
        call = calls[answers] if answers < len(calls) else None
        message["tool_call_id"] = call.get("id") if isinstance(call, Mapping) else None
    if isinstance(message.get("tool_calls"), list):
        known = sum(len(calls_of(other)) for other in messages)
        message["tool_calls"] = [
            {**call, "id": f"call{known + number:05}"} if isinstance(call, Mapping) and not call.get("id") else call
            for number, call in enumerate(message["tool_calls"], start=1)
        ]
    messages.append(message)


def calls_of(message: Mapping[str, Any]) -> list[Any]:
    calls = message.get("tool_calls")
    return calls if isinstance(calls, list) else []


def join_parts(content: Any, role: Any, place: str) -> Any:
    """Returns a content in parts as one text; the answer of a tool may be any JSON."""
    parts = content if isinstance(content, list) else []
    are_parts = all(isinstance(part, Mapping) and isinstance(part.get("type"), str) for part in parts)
    if role == ANSWER and (isinstance(content, Mapping) or not are_parts):
        return json.dumps(content, ensure_ascii=False)
    if not isinstance(content, list):
        return content
    texts = []
    for part in parts:
        text = part.get("text", part.get("refusal")) if isinstance(part, Mapping) else None
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else base.json_type(part)
            raise UserError(f"{place}: a part of its content is {kind}, not text; only text can be learned")
        texts.append(text)
    return "".join(texts)


def exchange(value: Mapping[str, Any], question: str, answer: str, place: str) -> list[dict[str, Any]]:
    """Returns the messages of an exchange, or of a conversation and its continuation."""
    messages: list[dict[str, Any]] = []
    if value.get("system"):
        messages.append({"role": "system", "content": value["system"]})
    history = value.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise UserError(f"{place}: 'history' is not a list of pairs")
    for request, reply in history:
        messages += [{"role": "user", "content": request}, {"role": "assistant", "content": reply}]
    request, reply = value[question], value[answer]
    if isinstance(request, list):
        for message in to_openai_messages(request, question, place):
            messages.append({**message, "weight": 0} if message["role"] == "assistant" else message)
    else:
        more = value.get("input") if question == "instruction" else None
        if more:
            request = base.validate_text(request, place, question) + "\n\n" + base.validate_text(more, place, "input")
        messages.append({"role": "user", "content": request})
    if isinstance(reply, list):
        return [*messages, *to_openai_messages(reply, answer, place)]
    return [*messages, {"role": "assistant", "content": reply}]
