"""Encoding of conversations with the chat template of a tokenizer."""

from __future__ import annotations

import bisect
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tfgpt.common.errors import UserError
from tfgpt.tokenization.assistant_spans import Span
from tfgpt.tokenization.jinja_template import ChatTemplate, Tools, unescape
from tfgpt.tokenization.special_tokens import CHAT_TEMPLATE, token_name

if TYPE_CHECKING:
    from tfgpt.tokenization.tokenizer import Tokenizer


def encode_messages(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool = False,
    tools: Tools | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Encodes a conversation and marks the ids that are targets of training.

    The ids are those of the rendered template, provided that no content spells a special token.

    Args:
        messages: `{"role": "system"|"user"|"assistant"|"tool", "content": text}` in order. An assistant's message can
            have `tool_calls` (then its content can be None) and `weight`; a weight of 0 excludes it from training.
        add_generation_prompt, tools: see `ChatTemplate.render`.

    Returns:
        [n] int32 ids and [n] float32 weights: 1 for the assistant's text and the token that ends its turn, otherwise 0.
        An id that holds both the line end before a content and the beginning of that content has weight 0, because
        generation starts after that line end and never emits this id.

    Raises:
        UserError: a message has an unknown role or no text, or the template refuses the conversation or leaves out a
            part of it (tools, later system messages).
    """
    template = get_chat_template(tokenizer, bool(tools))
    text, spans = template.render_with_spans(messages, add_generation_prompt, tools)
    ids: list[np.ndarray] = [np.zeros(0, np.int32)]
    weights: list[np.ndarray] = [np.zeros(0, np.float32)]
    for special, start, end in template.split_special_tokens(text):
        if special:
            ids.append(np.array([tokenizer.special_tokens[text[start:end]]], np.int32))
            weights.append(np.array([_is_inside(spans, start)], np.float32))
            continue
        borders = sorted({start, end, *(edge for span in spans for edge in span if start < edge < end)})
        pieces = [unescape(text[first:last]) for first, last in itertools.pairwise(borders)]
        piece_weights = np.array([_is_inside(spans, border) for border in borders[:-1]], np.float32)
        lengths = np.array([len(piece.encode("utf-8", "surrogatepass")) for piece in pieces])
        part = tokenizer.encode("".join(pieces))
        token_lengths = tokenizer.byte_lengths()[part]
        if token_lengths.sum() == lengths.sum():
            starts = np.cumsum(token_lengths) - token_lengths
            weights.append(piece_weights[np.searchsorted(np.cumsum(lengths), starts, side="right")])
        else:  # The tokenizer normalizes text, so the positions of its tokens are unknown: encode each piece.
            parts = [tokenizer.encode(piece) for piece in pieces]
            part = np.concatenate(parts)
            weights.append(np.repeat(piece_weights, [len(piece) for piece in parts]))
        ids.append(np.asarray(part, np.int32))
    return np.concatenate(ids), np.concatenate(weights)


def get_chat_template(tokenizer: Tokenizer, with_tools: bool = False) -> ChatTemplate:
    """Returns the chat template of a tokenizer (of several, the one with or without tools); ChatML if it has none."""
    config = tokenizer.config
    source = config.get("chat_template")
    if not source:
        source = CHAT_TEMPLATE
        for mark, name in (("<|im_start|>", tokenizer.start_of_turn), ("<|im_end|>", tokenizer.end_of_turn)):
            source = source.replace(mark, name.replace("\\", "\\\\").replace("'", "\\'"))
    if isinstance(source, list):
        templates = {entry["name"]: entry["template"] for entry in source}
        wanted = [*(["tool_use"] if with_tools else []), "default", *(templates if len(templates) == 1 else ())]
        source = next((templates[name] for name in wanted if name in templates), None)
        if source is None:
            raise UserError(
                f"the model has several chat templates ({', '.join(templates)}) and none is called default; rename the "
                "right one in its tokenizer_config.json"
            )
    names = {key: token_name(config.get(key)) for key in ("bos_token", "eos_token", "pad_token", "unk_token")}
    variables = tuple((key, name) for key, name in names.items() if isinstance(name, str))
    return _cached_template(source, tuple(tokenizer.special_tokens), variables)


_cached_template = functools.lru_cache(maxsize=64)(ChatTemplate)


def _is_inside(spans: Sequence[Span], position: int) -> bool:
    number = bisect.bisect_right(spans, position, key=lambda span: span[0]) - 1
    return number >= 0 and position < spans[number][1]
