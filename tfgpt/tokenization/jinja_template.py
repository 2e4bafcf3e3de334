"""Chat templates in Jinja: rendered as `transformers` renders them, in a sandbox, and read for what the assistant says.

A template is code that comes with a model, so it runs in Jinja's `ImmutableSandboxedEnvironment`, configured as
`transformers.utils.chat_template_utils` does (5.x): blocks trimmed, `break` and `continue`, `raise_exception`,
`strftime_now`, a plain `tojson`, and the `{% generation %}` tag.

Nobody can speak a special token. The name of one in what somebody says is broken up before the template sees it
(`shielded`), and put together again when the rendered text has been cut at the special tokens that are left: those are
the template's own. So the rendered text is the one of `transformers`, and its ids differ exactly where a content
spells a special token.

What the assistant writes is what `{% generation %}` surrounds, where a template has that tag; otherwise it is found by
rendering again (`tfgpt.tokenization.assistant_spans`). A message with `weight` 0 is not learned from.

Tools are given as `transformers` gives them: their definitions as `tools` (and as `xml_tools` to templates that ask for
that, as SmolLM3's), calls in an assistant's `tool_calls`, with the arguments as an object, and what tools answer in
messages of the role `tool`. A conversation of which a template would leave out something that it cannot say is refused.
"""

from __future__ import annotations

import bisect
import contextvars
import dataclasses
import datetime
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tfgpt.common.errors import UserError
from tfgpt.tokenization.assistant_spans import Marked, Span, assistant_spans, late_system, unused_characters

ROLES = ("system", "user", "assistant", "tool")
"""Who may speak."""

ESCAPE = "\uf8fe"
"""Begins an escape in a rendered content: `ESCAPE 1` breaks up a special token's name, `ESCAPE 0` is ESCAPE itself."""

BREAK, ITSELF = f"{ESCAPE}1", f"{ESCAPE}0"

GENERATION_MARKS: contextvars.ContextVar[str] = contextvars.ContextVar("generation_marks", default="")
"""What stands around the content of `{% generation %}` while a template is rendered in this thread; usually nothing."""

REASONING = ("reasoning_content", "thinking", "reasoning")
"""What a message's thoughts are called; templates are given the first two, as by `transformers`."""

PASSED = ("name", "tool_calls", "tool_call_id", *REASONING)
"""What a template may read of a message besides the role and the content."""

CANNOT_EXPRESS = "the chat template cannot express"
"""Begins the line about a conversation of which a template would leave something out."""

Message = Mapping[str, Any]
Tools = Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A template and the names it may use.

    Attributes:
        source: Jinja text.
        special_tokens: the names of all special tokens of the tokenizer.
        variables: what the template may name besides the messages, such as `bos_token`.
    """

    source: str
    special_tokens: tuple[str, ...]
    variables: tuple[tuple[str, str], ...] = ()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ChatTemplate:
        """The reverse of `to_dict`."""
        return cls(str(values["source"]), tuple(values["special_tokens"]), tuple(sorted(values["variables"].items())))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "source": self.source,
            "special_tokens": list(self.special_tokens),
            "variables": dict(self.variables),
        }

    @functools.cached_property
    def names(self) -> re.Pattern[str]:
        """Finds the name of a special token; of two that begin alike, the longer."""
        names = sorted((name for name in self.special_tokens if name), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, names)) if names else r"(?!)")

    def shielded(self, content: Any) -> Any:
        """Plain JSON values in which no special token's name is left, for `unshielded` to undo."""
        if isinstance(content, str):
            if ESCAPE in content:
                content = content.replace(ESCAPE, ITSELF)
            return self.names.sub(lambda match: match[0][0] + BREAK + match[0][1:], content)
        if isinstance(content, Mapping):
            return {self.shielded(name): self.shielded(value) for name, value in content.items()}
        return [self.shielded(value) for value in content] if isinstance(content, (list, tuple)) else content

    def render(
        self, messages: Sequence[Message], add_generation_prompt: bool = False, tools: Tools | None = None
    ) -> str:
        """The template's text with shielded contents.

        Args:
            messages: `{"role": "system"|"user"|"assistant"|"tool", "content": text}` in order, with `PASSED`.
            add_generation_prompt: end with what stands before an assistant's turn.
            tools: definitions of functions that the assistant may call, as JSON schemas.

        Raises:
            UserError: a message without a known role or without text, or the template refuses the conversation.
        """
        return self.rendered(self.checked(messages), add_generation_prompt, tools=self.shielded(tools or None))

    def checked(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """Each message as the template reads it, shielded but for its role."""
        return [{**self.shielded(message), "role": message["role"]} for message in map(checked_message, messages)]

    def rendered(
        self,
        messages: list[dict[str, Any]],
        add_generation_prompt: bool,
        marks: str = "",
        tools: list[dict[str, Any]] | None = None,
    ) -> str:
        """The template's text over messages as they are; with marks, around what `{% generation %}` surrounds."""
        import jinja2

        compiled = compiled_template(self.source)
        variables = {**dict(self.variables), "tools": tools, "documents": None}
        if tools and "xml_tools" in self.source:
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

    def written(
        self, messages: Sequence[Message], add_generation_prompt: bool = False, tools: Tools | None = None
    ) -> tuple[str, list[Span]]:
        """The rendered text, and which characters of it the assistant writes (its turns' ends included), in order.

        Turns of weight 0 are left out of the spans.

        Raises:
            UserError: as `render`, what the assistant writes cannot be told, or the template leaves something out that
                it cannot say.
        """
        checked, shielded_tools = self.checked(messages), self.shielded(tools or None)
        weights = [message.get("weight", 1) for message in messages if message["role"] == "assistant"]
        all_text = self.source + json.dumps([checked, shielded_tools], ensure_ascii=False)
        unused = unused_characters(3 + Marked.marks_needed(checked), all_text)
        marks, special = unused[:3], uses_tools(checked, tools) or late_system(checked)

        def render(some: list[dict[str, Any]], prompt: bool) -> str:
            return self.rendered(some, prompt, tools=shielded_tools)

        try:
            text = render(checked, add_generation_prompt)
        except UserError:
            # Some templates stumble over calls without words.
            if all("content" in message for message in checked):
                raise
            checked = [{"content": "", **message} for message in checked]
            text = render(checked, add_generation_prompt)
        tagged: list[Span] | None = None
        if self.has_generation_tag:
            marked_text = self.rendered(checked, add_generation_prompt, marks, shielded_tools)
            tagged = list(zip(*without_marks(marked_text, marks)[1][:2]))
            if all(weights) and not special:
                return text, tagged
        marked = Marked(render, checked, text, unused[3:])
        if special:
            self.check_everything_is_said(marked, text, add_generation_prompt, bool(tools))
        if tagged is not None and (all(weights) or len(tagged) == len(weights)):
            turns = tagged
        else:  # also where a template has several tags a turn
            turns = assistant_spans(render, self.names, marked, text)
        muted = [turn for turn, weight in zip(turns, weights) if not weight]
        spans = turns if tagged is None else tagged
        return text, [span for span in spans if not any(span[0] < end and start < span[1] for start, end in muted)]

    def check_everything_is_said(self, marked: Marked, text: str, add_generation_prompt: bool, tools: bool) -> None:
        """Refuses a conversation of which the template leaves something out.

        Raises:
            UserError: it does; the line says what.
        """
        unsaid = list(marked.unsaid())
        if tools:
            try:
                if self.rendered(marked.messages, add_generation_prompt) == text:
                    unsaid.insert(0, "the definitions of tools")
            except UserError:
                pass  # a template for conversations with tools only
        if unsaid:
            raise UserError(f"{CANNOT_EXPRESS} {', '.join(unsaid)}")

    @functools.cached_property
    def has_generation_tag(self) -> bool:
        """Whether the template says itself what the assistant writes."""
        return re.search(r"\{%-?\s*generation\s*-?%\}", self.source) is not None

    def parts(self, text: str) -> list[tuple[bool, int, int]]:
        """A rendered text cut at its special tokens: whether it is one, where it begins and ends; nothing empty."""
        found, position = [], 0
        for match in self.names.finditer(text):
            if match.start() > position:
                found.append((False, position, match.start()))
            found.append((True, match.start(), match.end()))
            position = match.end()
        if position < len(text):
            found.append((False, position, len(text)))
        return found


def unshielded(text: str) -> str:
    """What was said."""
    return text.replace(BREAK, "").replace(ITSELF, ESCAPE) if ESCAPE in text else text


def checked_message(message: Message) -> dict[str, Any]:
    """What a template reads of a message; as with `transformers`, nothing in it is None.

    Raises:
        UserError: its role is not known, or it has no text and no calls.
    """
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise UserError(f"a message has the role {role!r}; known are {', '.join(ROLES)}")
    if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
        raise UserError(f"a message of the {role} has no text as its content")
    said = {} if content is None else {"content": content}
    made = {"role": role, **said, **{name: message[name] for name in PASSED if message.get(name)}}
    thoughts = next((made[name] for name in REASONING if name in made), None)
    return made if thoughts is None else {"thinking": thoughts, **made, "reasoning_content": thoughts}


def uses_tools(messages: Sequence[Message], tools: Tools | None) -> bool:
    """Whether tools are defined, called or heard."""
    return bool(tools) or any(message["role"] == "tool" or message.get("tool_calls") for message in messages)


def without_marks(text: str, marks: str) -> tuple[str, tuple[list[int], list[int], list[int]]]:
    """The text without the three marks, and where each of them stood."""
    pieces: list[str] = []
    places: tuple[list[int], list[int], list[int]] = ([], [], [])
    length = 0
    for piece in re.split(f"([{marks}])", text):
        if piece and piece in marks:
            places[marks.index(piece)].append(length)
        else:
            pieces.append(piece)
            length += len(piece)
    return "".join(pieces), places


def inside(spans: Sequence[Span], position: int) -> bool:
    """Whether a position lies in one of the spans, which are in order."""
    number = bisect.bisect_right(spans, (position, len(spans) and spans[-1][1])) - 1
    return number >= 0 and spans[number][0] <= position < spans[number][1]


@functools.lru_cache(maxsize=16)
def compiled_template(source: str) -> Any:
    """The compiled template.

    Raises:
        UserError: it is no Jinja template.
    """
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationTag(Extension):
        """`{% generation %}…{% endgeneration %}`; its content between marks while there are any."""

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
        raise UserError(f"the chat template is no Jinja text: line {error.lineno}: {error.message}") from error
