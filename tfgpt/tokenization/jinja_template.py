"""Chat templates in Jinja: rendered as `transformers` renders them, in a sandbox, and read for what the assistant says.

A template is code that comes with a model, so it runs in Jinja's `ImmutableSandboxedEnvironment`, configured as
`transformers.utils.chat_template_utils` does (5.x): blocks trimmed, `break` and `continue`, `raise_exception`,
`strftime_now`, a plain `tojson`, and the `{% generation %}` tag.

Nobody can speak a special token. The name of one in what somebody says is broken up before the template sees it
(`shielded`), and put together again when the rendered text has been cut at the special tokens that are left: those are
the template's own. So the rendered text is the one of `transformers`, and its ids differ exactly where a content
spells a special token.

What the assistant writes is what `{% generation %}` surrounds, where a template has that tag. Otherwise it is found by
rendering again. It begins where the prompt ends that generation starts from: the template over the messages before
it, with the generation prompt. It ends with the first special token behind its content, the end of the turn. The
content itself is found by marks, characters of the private-use area put around it (inside its white space, which
templates trim). In the rare case that the prompt is no beginning of the whole (templates that treat the last turn in
another way), the assistant begins behind the same last characters, or with its content.
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

ROLES = ("system", "user", "assistant")
"""Who may speak."""

ESCAPE = "\uf8fe"
"""Begins an escape in a rendered content: `ESCAPE 1` breaks up a special token's name, `ESCAPE 0` is ESCAPE itself."""

BREAK, ITSELF = f"{ESCAPE}1", f"{ESCAPE}0"

GENERATION_MARKS: contextvars.ContextVar[str] = contextvars.ContextVar("generation_marks", default="")
"""What stands around the content of `{% generation %}` while a template is rendered in this thread; usually nothing."""

TAILS = (24, 12, 6, 3)
"""So many of a prompt's last characters are looked for where it is no beginning of the whole, the most first."""

Message = Mapping[str, Any]
Span = tuple[int, int]


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

    def shielded(self, content: str) -> str:
        """A content in which no special token's name is left, for `unshielded` to undo."""
        if ESCAPE in content:
            content = content.replace(ESCAPE, ITSELF)
        return self.names.sub(lambda match: match[0][0] + BREAK + match[0][1:], content)

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        """The template's text with shielded contents.

        Args:
            messages: `{"role": "system"|"user"|"assistant", "content": text}` in order.
            add_generation_prompt: end with what stands before an assistant's turn.

        Raises:
            UserError: a message without a known role or without text, or the template refuses the conversation.
        """
        return self.rendered(self.checked(messages), add_generation_prompt)

    def checked(self, messages: Sequence[Message]) -> list[dict[str, str]]:
        """Role and shielded content of each message."""
        pairs = map(checked_message, messages)
        return [{"role": role, "content": self.shielded(content)} for role, content in pairs]

    def rendered(self, messages: list[dict[str, str]], add_generation_prompt: bool, marks: str = "") -> str:
        """The template's text over messages as they are; with marks, around what `{% generation %}` surrounds."""
        import jinja2

        compiled = compiled_template(self.source)
        token = GENERATION_MARKS.set(marks)
        try:
            return compiled.render(
                messages=messages, add_generation_prompt=add_generation_prompt, **dict(self.variables)
            )
        except jinja2.TemplateError as error:
            raise UserError(f"the chat template refuses the conversation: {' '.join(str(error).split())}") from error
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            raise UserError(f"the chat template fails on the conversation: {error!r}") from error
        finally:
            GENERATION_MARKS.reset(token)

    def written(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> tuple[str, list[Span]]:
        """The rendered text, and which characters of it the assistant writes (its turns' ends included), in order.

        Raises:
            UserError: as `render`, or what the assistant writes cannot be told.
        """
        checked = self.checked(messages)
        marks = unused_characters(self.source, *(message["content"] for message in checked))
        if self.has_generation_tag:
            text, (opens, closes, _) = without_marks(self.rendered(checked, add_generation_prompt, marks), marks)
            return text, list(zip(opens, closes))
        text = self.rendered(checked, add_generation_prompt)
        return text, self.assistant_spans(checked, text, marks)

    @functools.cached_property
    def has_generation_tag(self) -> bool:
        """Whether the template says itself what the assistant writes."""
        return re.search(r"\{%-?\s*generation\s*-?%\}", self.source) is not None

    def assistant_spans(self, messages: list[dict[str, str]], text: str, marks: str) -> list[Span]:
        """What the assistant writes in `text`, for a template that does not say; see the module's docstring."""
        turns = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        contents, others = self.contents(messages, turns, text, marks)
        # Where the same stands between somebody else's words and the assistant's, it begins at the same place in that.
        known: dict[str, int] = {}
        starts = []
        for turn in turns:
            content = contents.get(turn)
            before = bisect.bisect_right(others, content[0]) - 1 if content else -1
            between = text[others[before] : content[0]] if content and before >= 0 else ""
            if between not in known:
                start = self.start_of_turn(messages, turn, text, content)
                if content and before >= 0 and others[before] <= start:
                    known[between] = content[0] - start
            else:
                start = content[0] - known[between] if content else 0
            starts.append(start)
        spans = []
        for turn, start, following in zip(turns, starts, [*starts[1:], len(text)]):
            content_end = contents[turn][1] if turn in contents else None
            spans.append((start, self.end_of_turn(text, start, content_end, following)))
        return spans

    def contents(
        self, messages: list[dict[str, str]], turns: list[int], text: str, marks: str
    ) -> tuple[dict[int, Span], list[int]]:
        """Where in `text` the assistant's contents stand and where those of others end, without white space around.

        As far as that can be told: a turn may be missing, or all of them.
        """
        marked, wrapped = [], []
        for turn, message in enumerate(messages):
            content = message["content"]
            core = content.strip()
            assistant = message["role"] == "assistant"
            if core:
                before = content.index(core)
                core = marks[0] + core + marks[1] if assistant else core + marks[2]
                content = content[:before] + core + content[before + len(core) - (2 if assistant else 1) :]
                wrapped += [turn] if assistant else []
            marked.append({"role": message["role"], "content": content})
        if not wrapped:
            return {}, []
        bare, (opens, closes, others) = without_marks(self.rendered(marked, False, ""), marks)
        if len(closes) != len(wrapped) or not text.startswith(bare):
            return {}, []
        if len(opens) != len(closes):
            opens = closes  # a template that drops the beginning of some contents (thoughts): their ends are known
        return dict(zip(wrapped, zip(opens, closes))), others

    def start_of_turn(self, messages: list[dict[str, str]], turn: int, text: str, content: Span | None) -> int:
        """Where in `text` the assistant begins to write."""
        prompt = None
        try:
            prompt = self.rendered(messages[:turn], True)
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
        return content[0]

    def end_of_turn(self, text: str, start: int, content_end: int | None, following: int) -> int:
        """Where in `text` the turn ends that begins at `start`, before `following`."""
        otherwise = following if content_end is None else content_end
        found = self.names.search(text, start if content_end is None else content_end)
        if found is None or found.end() > following:
            return otherwise
        if content_end is not None and text[content_end : found.start()].strip():
            return otherwise
        return found.end()

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


def checked_message(message: Message) -> tuple[str, str]:
    """The role and the content of a message, or a UserError."""
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise UserError(f"a message has the role {role!r}; known are {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise UserError(f"a message of the {role} has no text as its content")
    return role, content


def unused_characters(*texts: str) -> str:
    """Three private-use characters that occur nowhere in the texts."""
    found = ""
    for code in range(0xE000, 0xF8FE):
        if not any(chr(code) in text for text in texts):
            found += chr(code)
            if len(found) == 3:
                return found
    raise UserError(
        "a conversation uses all of Unicode's private-use characters; three must be free to mark turns with"
    )


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
