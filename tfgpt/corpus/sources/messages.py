"""A dialogue's messages, checked: who says what, which functions the assistant calls, what those answer.

A message is `{"role": "system"|"user"|"assistant"|"tool", "content": text}`. What else it may have is kept as OpenAI
writes it: `name`; the assistant's `tool_calls`, with None as content where nothing is said beside them, its thoughts
(`reasoning_content`) and its `weight`, 0 where it is not to be learned from; the `tool_call_id` that a tool answers.
Null is not given. Arguments of calls are objects, as `transformers` wants them, whether they come so or as JSON text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tfgpt.common.errors import UserError
from tfgpt.corpus.sources import base

ROLES = ("system", "user", "assistant", "tool")

TEXTS = ("name", "tool_call_id", "reasoning_content", "thinking", "reasoning")
"""Further fields of a message that are texts."""

Message = dict[str, Any]


def validate_messages(messages: Any, place: str) -> list[Message]:
    """The messages with what is known of them only.

    Args:
        messages: a JSON value.
        place: names it in error lines, as FILE:LINE.

    Raises:
        UserError: it is no list of messages; the line says which is wrong, and how.
    """
    if not isinstance(messages, list):
        raise UserError(f"{place}: 'messages' is {base.json_type(messages)}, not a list")
    return [checked_message(message, f"{place}: message {number}") for number, message in enumerate(messages, start=1)]


def checked_message(message: Any, place: str) -> Message:
    """One of them."""
    if not isinstance(message, Mapping):
        raise UserError(f"{place} is {base.json_type(message)}, not an object with role and content")
    role = message.get("role")
    if role not in ROLES:
        words = "has no 'role'" if role is None else f"has the role {role!r}"
        raise UserError(f"{place} {words}; roles are {', '.join(ROLES)}")
    made: Message = {"role": role}
    calls = checked_calls(message["tool_calls"], place) if role == "assistant" and message.get("tool_calls") else None
    content = message.get("content")
    if content is None and calls:
        made["content"] = None
    elif content is None and role == "tool":
        made["content"] = ""
    elif "content" not in message:
        raise UserError(f"{place} has no 'content'")
    else:
        made["content"] = base.validate_text(content, place, "content")
    if calls:
        made["tool_calls"] = calls
    for name in TEXTS:
        if message.get(name) is not None:
            made[name] = base.validate_text(message[name], place, name)
    if role == "assistant" and message.get("weight") is not None:
        if message["weight"] not in (0, 1):
            raise UserError(f"{place}: 'weight' is {message['weight']!r}; it is 0 (not learned) or 1")
        made["weight"] = int(message["weight"])
    return made


def checked_calls(calls: Any, place: str) -> list[dict[str, Any]]:
    """Calls of functions, their arguments as objects where they are JSON.

    Raises:
        UserError: one of them names no function.
    """
    made = []
    for call in calls if isinstance(calls, list) else [calls]:
        if isinstance(call, Mapping) and "function" not in call and "name" in call:
            call = {"type": "function", "function": dict(call)}
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
            raise UserError(f"{place}: 'tool_calls' holds a call of no named function")
        base.validate_text(json.dumps(call, ensure_ascii=False), place, "tool_calls")
        made.append({**call, "function": {**function, "arguments": as_object(function.get("arguments"))}})
    return made


def as_object(arguments: Any) -> Any:
    """A call's arguments as an object: none of them, JSON text; other text is left as it is."""
    if arguments is None or arguments == "":
        return {}
    if isinstance(arguments, str):
        try:
            value = json.loads(arguments)
        except (ValueError, RecursionError):
            return arguments
        return value if isinstance(value, dict) else arguments
    return arguments


def validate_tools(tools: Any, place: str) -> list[dict[str, Any]]:
    """Definitions of functions, from a list or its JSON text; bare ones as OpenAI has them; none for null.

    Raises:
        UserError: it is no list of named functions.
    """
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError):
            raise UserError(f"{place}: 'tools' is no JSON, nor a list of functions") from None
    if not tools:
        return []
    if not isinstance(tools, list):
        raise UserError(f"{place}: 'tools' is {base.json_type(tools)}, not a list of functions")
    base.validate_text(json.dumps(tools, ensure_ascii=False), place, "tools")
    made = []
    for tool in tools:
        if isinstance(tool, Mapping) and "function" not in tool and "name" in tool:
            tool = {"type": "function", "function": dict(tool)}
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise UserError(f"{place}: 'tools' holds something that is no named function")
        made.append(dict(tool))
    return made
