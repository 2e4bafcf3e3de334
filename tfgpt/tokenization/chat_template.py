"""ChatML: how a dialogue becomes ids, as Jinja text for other programs and as code that cannot be talked into specials.

`<|im_start|>role\\ncontent<|im_end|>\\n` a message (OpenAI's ChatML, as Qwen and SmolLM2 use it). A user who types
`<|im_end|>` gets its letters, not the special token; rendering the template to a string and parsing that cannot tell
them apart, so training and generation use `encode_messages`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tfgpt.common.errors import UserError

if TYPE_CHECKING:
    from tfgpt.tokenization.tokenizer import Tokenizer

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""The template of `tokenizer_config.json`."""

START_OF_TURN, END_OF_TURN = "<|im_start|>", "<|im_end|>"
"""ChatML's marks, as a conversation rendered by `render_messages` spells them whatever the tokenizer calls them."""

MARK = re.compile(r"<(\\*)\|")
"""What a mark begins with, perhaps with backslashes between."""

ESCAPED = r"<\1\\|"
"""What stands for it in a rendered message."""

ROLES = ("system", "user", "assistant")
"""Who may speak."""


def encode_messages(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Encodes a dialogue, and says which ids are to be learned.

    The ids are those of the rendered template, as long as no content spells a special token.

    Args:
        tokenizer: the tokenizer.
        messages: `{"role": "system"|"user"|"assistant", "content": text}` in order.
        add_generation_prompt: end with the start of an assistant's turn.

    Returns:
        [n] int32 ids and [n] float32 weights: 1 on what an assistant says and on the token that ends its turn, 0 on
        everything else. An id that holds both the line end before the content and its first characters (content that
        starts with white space) has weight 0: generation starts behind that line end and can never emit it.

    Raises:
        UserError: a message without a known role or without text.
    """
    byte_lengths = tokenizer.byte_lengths()
    line_end = tokenizer.encode("\n")
    ids: list[np.ndarray] = []
    weights: list[np.ndarray] = []

    def append(part: np.ndarray | Sequence[int], part_weights: np.ndarray | float) -> None:
        ids.append(np.asarray(part, np.int32))
        weights.append(np.broadcast_to(np.asarray(part_weights, np.float32), ids[-1].shape))

    for message in messages:
        role, content = checked_message(message)
        learned = role == "assistant"
        said = tokenizer.encode(f"{role}\n{content}")
        starts = np.cumsum(byte_lengths[said]) - byte_lengths[said]
        append([tokenizer.start_of_turn_id], 0)
        append(said, (starts > len(role)) & learned)
        append([tokenizer.end_of_turn_id], float(learned))
        append(line_end, 0)
    if add_generation_prompt:
        append([tokenizer.start_of_turn_id], 0)
        append(tokenizer.encode("assistant\n"), 0)
    if not ids:
        return np.zeros(0, np.int32), np.zeros(0, np.float32)
    return np.concatenate(ids), np.concatenate(weights)


def render_messages(messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True) -> str:
    """A dialogue as one ChatML text that a SavedModel's `chat` reads as `encode_messages` reads the messages.

    In what somebody says, `<|` is written `<\\|` (and `<\\|` with one backslash more, and so on), which the reader
    takes back: so nobody can end a turn by typing its mark, and nothing is lost.

    Args:
        messages, add_generation_prompt: as `encode_messages`'.

    Raises:
        UserError: a message without a known role or without text.
    """
    turns = []
    for message in messages:
        role, content = checked_message(message)
        turns.append(f"{START_OF_TURN}{role}\n{MARK.sub(ESCAPED, content)}{END_OF_TURN}\n")
    return "".join(turns) + (f"{START_OF_TURN}assistant\n" if add_generation_prompt else "")


def checked_message(message: Mapping[str, Any]) -> tuple[str, str]:
    """The role and the content of a message, or a UserError."""
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise UserError(f"a message has the role {role!r}; known are {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise UserError(f"a message of the {role} has no text as its content")
    return role, content
