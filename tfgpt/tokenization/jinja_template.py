"""Chat templates in Jinja: rendering as in `transformers`, and the characters that the assistant writes.

A template is code that comes with a model, so it runs in Jinja's `ImmutableSandboxedEnvironment`, configured as in
`transformers.utils.chat_template_utils` (5.x). Messages cannot spell special tokens: `ChatTemplate.escape` breaks up
their names before rendering, and `unescape` restores the text after it is split at the template's own special tokens.
The assistant's characters are those inside `{% generation %}`, or those that `assistant_spans` finds.
"""

from __future__ import annotations

import contextvars
import dataclasses
import datetime
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tfgpt.common.errors import UserError
from tfgpt.tokenization.assistant_spans import (
    MarkedConversation,
    Span,
    assistant_spans,
    has_late_system_message,
    remove_marks,
    unused_characters,
)
from tfgpt.tokenization.special_tokens import CHAT_TEMPLATE, SPECIAL_TOKENS

ROLES = ("system", "user", "assistant", "tool")
ESCAPE = "\uf8fe"
"""Begins an escape: `ESCAPE 1` breaks up the name of a special token, `ESCAPE 0` is the character ESCAPE."""

BREAK, ITSELF = f"{ESCAPE}1", f"{ESCAPE}0"
GENERATION_MARKS: contextvars.ContextVar[str] = contextvars.ContextVar("generation_marks", default="")
"""Two characters to put around the content of `{% generation %}` while this thread renders; empty for none."""

REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names of an assistant's reasoning in a message. Templates get the first two, as in `transformers`."""
MESSAGE_FIELDS = ("name", "tool_calls", "tool_call_id", *REASONING)
"""Fields of a message that templates can read, in addition to the role and the content."""

Message = Mapping[str, Any]
Tools = Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A chat template.

    Attributes:
        source: Jinja text.
        special_tokens: names of all special tokens of the tokenizer.
        variables: variables of the template in addition to the messages, such as `bos_token`.

    Example:

    >>> template = ChatTemplate("{% for m in messages %}<s>{{ m.role }}: {{ m.content }}{% endfor %}", ("<s>",))
    >>> template.render([{"role": "user", "content": "Hi"}])
    '<s>user: Hi'
    """

    source: str
    special_tokens: tuple[str, ...]
    variables: tuple[tuple[str, str], ...] = ()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ChatTemplate:
        return cls(str(values["source"]), tuple(values["special_tokens"]), tuple(sorted(values["variables"].items())))

    def to_dict(self) -> dict[str, Any]:
        variables = dict(self.variables)
        return {"source": self.source, "special_tokens": list(self.special_tokens), "variables": variables}

    def render(
        self, messages: Sequence[Message], add_generation_prompt: bool = False, tools: Tools | None = None
    ) -> str:
        """Renders a conversation to text, with special tokens by name and escaped contents.

        The `tokenize_chat` signature of a SavedModel encodes this text as `encode_messages` encodes the messages.

        Args:
            messages: `{"role": "system"|"user"|"assistant"|"tool", "content": text}` in order, with `MESSAGE_FIELDS`.
            add_generation_prompt: whether to end with the beginning of an assistant's turn.
            tools: definitions of functions that the assistant can call, as JSON schemas.
        """
        return self._render(self._prepare(messages), add_generation_prompt, tools=self.escape(tools or None))

    def render_with_spans(
        self, messages: Sequence[Message], add_generation_prompt: bool = False, tools: Tools | None = None
    ) -> tuple[str, list[Span]]:
        """Renders a conversation and finds the spans (start, end) that the assistant writes.

        Spans include the tokens that end the turns. Turns with `weight` 0 have no span.

        Raises:
            UserError: as in `render`, or the spans are ambiguous, or the template leaves out calls of tools, answers of
                tools, definitions of tools or a later system message.
        """
        prepared, escaped_tools = self._prepare(messages), self.escape(tools or None)
        weights = [message.get("weight", 1) for message in messages if message["role"] == "assistant"]
        everything = self.source + json.dumps([prepared, escaped_tools], ensure_ascii=False)
        unused = unused_characters(2 + MarkedConversation.marks_needed(prepared), everything)
        marks = unused[:2]

        def render(some: list[dict[str, Any]], prompt: bool) -> str:
            return self._render(some, prompt, tools=escaped_tools)

        try:
            text = render(prepared, add_generation_prompt)
        except UserError:
            # Some templates fail on calls without content.
            if all("content" in message for message in prepared):
                raise
            prepared = [{"content": "", **message} for message in prepared]
            text = render(prepared, add_generation_prompt)
        uses_tools = tools or any(message["role"] == "tool" or message.get("tool_calls") for message in prepared)
        check_omissions = bool(uses_tools) or has_late_system_message(prepared)
        tagged: list[Span] | None = None
        if re.search(r"\{%-?\s*generation\s*-?%\}", self.source):
            marked_text = self._render(prepared, add_generation_prompt, marks, escaped_tools)
            _, positions = remove_marks(marked_text, marks)
            tagged = list(zip(positions[marks[0]], positions[marks[1]]))
            if all(weights) and not check_omissions:
                return text, tagged
        marked = MarkedConversation(render, prepared, text, unused[2:])
        if check_omissions:
            self._check_omissions(marked, text, add_generation_prompt, bool(tools))
        if tagged is not None and (all(weights) or len(tagged) == len(weights)):
            turns = tagged
        else:  # The template has no tag, or several in a turn.
            turns = assistant_spans(render, self.special_token_pattern, marked, text)
        muted = [turn for turn, weight in zip(turns, weights) if not weight]
        spans = turns if tagged is None else tagged
        return text, [span for span in spans if not any(span[0] < end and start < span[1] for start, end in muted)]

    def _check_omissions(self, marked: MarkedConversation, text: str, prompt: bool, tools: bool) -> None:
        omitted = marked.omissions()
        if tools:
            try:
                if self._render(marked.messages, prompt) == text:
                    omitted.insert(0, "the definitions of tools")
            except UserError:
                pass  # The template requires tools.
        if omitted:
            raise UserError(f"the chat template cannot express {', '.join(omitted)}")

    def split_special_tokens(self, text: str) -> list[tuple[bool, int, int]]:
        """Returns, for each part of a rendered text, whether it is a special token, its start and its end."""
        found, position = [], 0
        for number, part in enumerate(self.special_token_pattern.split(text)):
            if part:
                found.append((number % 2 == 1, position, position + len(part)))
                position += len(part)
        return found

    @functools.cached_property
    def special_token_pattern(self) -> re.Pattern[str]:
        names = sorted((name for name in self.special_tokens if name), key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, names)) if names else '(?!)'})")

    def escape(self, value: Any) -> Any:
        """Returns JSON values in which no text contains the name of a special token; `unescape` reverses it."""
        if isinstance(value, str):
            text = value.replace(ESCAPE, ITSELF)
            return self.special_token_pattern.sub(lambda match: match[0][0] + BREAK + match[0][1:], text)
        if isinstance(value, Mapping):
            return {self.escape(name): self.escape(item) for name, item in value.items()}
        return [self.escape(item) for item in value] if isinstance(value, (list, tuple)) else value

    def _prepare(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        return [{**self.escape(template_fields(message)), "role": message["role"]} for message in messages]

    def _render(
        self,
        messages: list[dict[str, Any]],
        add_generation_prompt: bool,
        marks: str = "",
        tools: list[dict[str, Any]] | None = None,
    ) -> str:
        import jinja2

        compiled = compile_template(self.source)
        variables = {**dict(self.variables), "tools": tools, "documents": None}
        if tools and "xml_tools" in self.source:  # SmolLM3's name
            variables["xml_tools"] = tools
        token = GENERATION_MARKS.set(marks)
        try:
            return compiled.render(messages=messages, add_generation_prompt=add_generation_prompt, **variables)
        except jinja2.TemplateError as error:
            raise UserError(f"the chat template refuses the conversation: {' '.join(str(error).split())}") from error
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            raise UserError(f"the chat template fails on the conversation: {error!r}") from error
        finally:
            GENERATION_MARKS.reset(token)


DEFAULT_TEMPLATE = ChatTemplate(CHAT_TEMPLATE, SPECIAL_TOKENS, (("bos_token", SPECIAL_TOKENS[0]),))
"""The template of models that tfgpt trains."""


def unescape(text: str) -> str:
    """Reverses `ChatTemplate.escape`."""
    return text.replace(BREAK, "").replace(ITSELF, ESCAPE) if ESCAPE in text else text


def template_fields(message: Message) -> dict[str, Any]:
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise UserError(f"a message has the role {role!r}; known are {', '.join(ROLES)}")
    if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
        raise UserError(f"a message of the {role} has no text as its content")
    fields = {"role": role} | ({} if content is None else {"content": content})
    fields |= {name: message[name] for name in MESSAGE_FIELDS if message.get(name)}
    reasoning = next((fields[name] for name in REASONING if name in fields), None)
    return fields if reasoning is None else {"thinking": reasoning, **fields, "reasoning_content": reasoning}


@functools.lru_cache(maxsize=16)
def compile_template(source: str) -> Any:
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationTag(Extension):
        """`{% generation %}…{% endgeneration %}`; puts `GENERATION_MARKS` around its content."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("surrounded"), [], [], body).set_lineno(line)

        def surrounded(self, caller: Any) -> str:
            marks = GENERATION_MARKS.get()
            return f"{marks[0]}{caller()}{marks[1]}" if marks else caller()

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda format: datetime.datetime.now().strftime(format)
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"the chat template is not valid Jinja: line {error.lineno}: {error.message}") from error
