"""How a dialogue becomes ids: by the model's own chat template, which no content can talk into special tokens.

A model directory's `tokenizer_config.json` holds its template; ours is ChatML (OpenAI's, as Qwen and SmolLM2 use it)
behind the token that begins every text: `<|im_start|>role\\ncontent<|im_end|>\\n` a message. Training, generation and
serving all read it through `encode_messages` and `render_messages`; `tfgpt.tokenization.jinja_template` says how.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tfgpt.common.errors import UserError
from tfgpt.tokenization.assistant_spans import Span
from tfgpt.tokenization.jinja_template import ROLES, ChatTemplate, Tools, checked_message, inside, unshielded
from tfgpt.tokenization.special_tokens import token_name

if TYPE_CHECKING:
    from tfgpt.tokenization.tokenizer import Tokenizer

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""The template of `tokenizer_config.json`."""

OURS = ChatTemplate(
    CHAT_TEMPLATE, ("<|endoftext|>", "<|padding|>", "<|im_start|>", "<|im_end|>"), (("bos_token", "<|endoftext|>"),)
)
"""The template of models that we train ourselves."""


def encode_messages(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool = False,
    tools: Tools | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Encodes a dialogue, and says which ids are to be learned.

    The ids are those of the rendered template, as long as no content spells a special token.

    Args:
        tokenizer: the tokenizer, whose template it is.
        messages: `{"role": "system"|"user"|"assistant"|"tool", "content": text}` in order; the assistant's may have
            `tool_calls` (and None as content beside them), and `weight` 0 not to be learned.
        add_generation_prompt: end with the start of an assistant's turn.
        tools: definitions of functions that the assistant may call, as JSON schemas.

    Returns:
        [n] int32 ids and [n] float32 weights: 1 on what an assistant says and on the token that ends its turn, 0 on
        everything else. An id that holds both the line end before the content and its first characters (content that
        starts with white space) has weight 0: generation starts behind that line end and can never emit it.

    Raises:
        UserError: a message without a known role or without text, or the template refuses the conversation or would
            leave something out that it cannot say (tools, a system message that is not the first).
    """
    template = template_of(tokenizer, bool(tools))
    text, spans = template.written(messages, add_generation_prompt, tools)
    return encoded_text(tokenizer, template, text, spans)


def encode_rendered(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """The ids [n] int32 of a conversation as `render_messages` writes it."""
    return encoded_text(tokenizer, template_of(tokenizer), text, [])[0]


def encoded_text(
    tokenizer: Tokenizer, template: ChatTemplate, text: str, spans: Sequence[Span]
) -> tuple[np.ndarray, np.ndarray]:
    """Ids [n] int32 of a rendered text, and weights [n] float32, 1 for what begins within a span."""
    ids: list[np.ndarray] = [np.zeros(0, np.int32)]
    weights: list[np.ndarray] = [np.zeros(0, np.float32)]
    for special, start, end in template.parts(text):
        if special:
            ids.append(np.array([tokenizer.special_tokens[text[start:end]]], np.int32))
            weights.append(np.array([inside(spans, start)], np.float32))
            continue
        borders = sorted({start, end, *(edge for span in spans for edge in span if start < edge < end)})
        pieces = [unshielded(text[first:last]) for first, last in itertools.pairwise(borders)]
        learned = np.array([inside(spans, border) for border in borders[:-1]])
        lengths = np.array([len(piece.encode("utf-8", "surrogatepass")) for piece in pieces])
        part = tokenizer.encode("".join(pieces))
        token_lengths = tokenizer.byte_lengths()[part]
        if token_lengths.sum() == lengths.sum():
            starts = np.cumsum(token_lengths) - token_lengths
            chosen = learned[np.searchsorted(np.cumsum(lengths), starts, side="right")]
        else:
            # A tokenizer that writes text in another way: its tokens cannot be laid over the text, so cut it.
            parts = [tokenizer.encode(piece) for piece in pieces]
            part = np.concatenate(parts)
            chosen = np.repeat(learned, [len(piece) for piece in parts])
        ids.append(np.asarray(part, np.int32))
        weights.append(chosen.astype(np.float32))
    return np.concatenate(ids), np.concatenate(weights)


def render_messages(
    messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, template: ChatTemplate = OURS
) -> str:
    """A dialogue as one text that a SavedModel's `chat` reads as `encode_messages` reads the messages.

    Special tokens stand in it by their names. Where somebody says such a name, it is broken up by an escape that the
    reader takes out: so nobody can end a turn by typing its mark, and nothing is lost.

    Args:
        messages, add_generation_prompt: as `encode_messages`'.
        template: the model's; an export tells it in `assets.extra/tfgpt.json`.

    Raises:
        UserError: a message without a known role or without text, or the template refuses the conversation.
    """
    return template.render(messages, add_generation_prompt)


def template_of(tokenizer: Tokenizer, with_tools: bool = False) -> ChatTemplate:
    """The template of a tokenizer, with the names of its special tokens; ChatML for one that comes without.

    Args:
        tokenizer: whose.
        with_tools: take the one for conversations with tools, where there are several.
    """
    config = tokenizer.config
    source = config.get("chat_template")
    if not source:
        turns = {"<|im_start|>": tokenizer.start_of_turn, "<|im_end|>": tokenizer.end_of_turn}
        source = CHAT_TEMPLATE
        for mark, name in turns.items():
            source = source.replace(mark, name.replace("\\", "\\\\").replace("'", "\\'"))
    if isinstance(source, list):
        source = of_several(source, with_tools)
    variables = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = token_name(config.get(name))
        if isinstance(value, str):
            variables[name] = value
    return known_template(source, tuple(tokenizer.special_tokens), tuple(sorted(variables.items())))


def of_several(named: Sequence[Mapping[str, str]], with_tools: bool) -> str:
    """The template among several with names that transformers takes too: "default", with tools "tool_use".

    Raises:
        UserError: none is called so.
    """
    by_name = {entry["name"]: entry["template"] for entry in named}
    wanted = ["tool_use", "default"] if with_tools else ["default"]
    wanted += list(by_name) if len(by_name) == 1 else []
    source = next((by_name[name] for name in wanted if name in by_name), None)
    if source is None:
        raise UserError(
            f"the model has several chat templates ({', '.join(by_name)}) and none is called default; call the one "
            "that is meant so in its tokenizer_config.json"
        )
    return source


@functools.lru_cache(maxsize=64)
def known_template(source: str, specials: tuple[str, ...], variables: tuple[tuple[str, str], ...]) -> ChatTemplate:
    """One object a template, so that what it has worked out is kept."""
    return ChatTemplate(source, specials, variables)


__all__ = [
    "CHAT_TEMPLATE",
    "OURS",
    "ROLES",
    "ChatTemplate",
    "checked_message",
    "encode_messages",
    "encode_rendered",
    "render_messages",
    "template_of",
]
