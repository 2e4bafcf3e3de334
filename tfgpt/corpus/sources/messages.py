"""Validation of a dialogue's messages, tool calls and tool definitions.

A message is `{"role": "system"|"user"|"assistant"|"tool", "content": text}`. Further fields are kept as OpenAI writes
them: `name`; the assistant's `tool_calls` (content may then be None), its `reasoning_content` and its `weight` (0 where
it is not learned); the `tool_call_id` of a tool's answer. A field that is null counts as absent. Arguments of calls
become objects, as `transformers` expects them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tfgpt.common.errors import UserError
from tfgpt.corpus.sources import base

ROLES = ("system", "user", "assistant", "tool")
TEXT_FIELDS = ("name", "tool_call_id", "reasoning_content", "thinking", "reasoning")

Message = dict[str, Any]


def validate_messages(messages: Sequence[Mapping[str, Any]], place: str) -> list[Message]:
    """Returns the messages of `chat_formats.to_openai_messages` with their known fields."""
    return [validate_message(message, f"{place}: message {number}") for number, message in enumerate(messages, start=1)]


def validate_message(message: Mapping[str, Any], place: str) -> Message:
    role = message.get("role")
    if role not in ROLES:
        problem = "has no 'role'" if role is None else f"has the role {role!r}"
        raise UserError(f"{place} {problem}; roles are {', '.join(ROLES)}")
    valid: Message = {"role": role}
    calls = message.get("tool_calls") if role == "assistant" else None
    content = message.get("content")
    if content is None and calls:
        valid["content"] = None
    elif content is None and role == "tool":
        valid["content"] = ""
    elif "content" not in message:
        raise UserError(f"{place} has no 'content'")
    else:
        valid["content"] = base.validate_text(content, place, "content")
    if calls:
        valid["tool_calls"] = validate_calls(calls, place)
    for name in TEXT_FIELDS:
        if message.get(name) is not None:
            valid[name] = base.validate_text(message[name], place, name)
    if role == "assistant" and message.get("weight") is not None:
        if message["weight"] not in (0, 1):
            raise UserError(f"{place}: 'weight' is {message['weight']!r}; it is 0 (not learned) or 1")
        valid["weight"] = int(message["weight"])
    return valid


def validate_calls(calls: Any, place: str) -> list[dict[str, Any]]:
    """Returns the calls, with arguments in JSON text parsed."""
    valid = []
    for call in calls if isinstance(calls, list) else [calls]:
        call = validate_function(call, f"{place}: 'tool_calls' holds a call without a function's name")
        base.validate_text(json.dumps(call, ensure_ascii=False), place, "tool_calls")
        arguments = call["function"].get("arguments")
        if arguments is None or arguments == "":
            arguments = {}
        elif isinstance(arguments, str) and isinstance(value := json_or_none(arguments), dict):
            arguments = value
        valid.append({**call, "function": {**call["function"], "arguments": arguments}})
    return valid


def validate_function(value: Any, problem: str) -> dict[str, Any]:
    """Returns `{"type": "function", "function": {"name": …}}` of a value in that form or of the function alone."""
    if isinstance(value, Mapping) and "function" not in value and "name" in value:
        value = {"type": "function", "function": dict(value)}
    function = value.get("function") if isinstance(value, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise UserError(problem)
    return dict(value)


def json_or_none(text: str) -> Any:
    """Returns the value of a JSON text; None where it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
