"""Prompts as token ids, checked against the model before TensorFlow is imported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tfgpt.common.errors import UserError
from tfgpt.tokenization.chat_template import encode_messages
from tfgpt.tokenization.tokenizer import Tokenizer


def encode_prompt(tokenizer: Tokenizer, prompt: str | np.ndarray, add_end_of_text: bool = True) -> np.ndarray:
    """A prompt's ids as the model reads them.

    Text is put behind an end-of-text token, as documents are in the training data; special tokens' names in it are
    plain letters. Ids are taken as they are. What would be empty is the end-of-text token.

    Args:
        tokenizer: the model's.
        prompt: text, or ids [n] of any integer type.
        add_end_of_text: False leaves the end-of-text token out.

    Returns:
        [n] int32, n ≥ 1.

    Raises:
        UserError: ids outside the vocabulary.
    """
    if isinstance(prompt, str):
        ids = tokenizer.encode(prompt)
        if add_end_of_text:
            ids = np.concatenate([[tokenizer.end_of_text_id], ids])
    else:
        ids = np.asarray(prompt).reshape(-1)
        if len(ids) and not (ids.min() >= 0 and ids.max() < tokenizer.vocabulary_size):
            raise UserError(f"a prompt's token ids go outside the vocabulary of {tokenizer.vocabulary_size}")
    return np.asarray(ids if len(ids) else [tokenizer.end_of_text_id], np.int32)


def encode_chat(tokenizer: Tokenizer, messages: Sequence[dict[str, Any]], add_end_of_text: bool = True) -> np.ndarray:
    """The ids of a dialogue up to where the assistant speaks next (ChatML), as dialogues stand in the training data.

    Args:
        tokenizer: the model's.
        messages: `{"role": "system"|"user"|"assistant", "content": text}` in order.
        add_end_of_text: False leaves the end-of-text token out.

    Returns:
        [n] int32.
    """
    ids, _ = encode_messages(tokenizer, messages, add_generation_prompt=True)
    start = [tokenizer.end_of_text_id] if add_end_of_text else []
    return np.concatenate([np.asarray(start, np.int32), ids])


def check_lengths(prompts: Sequence[np.ndarray], max_sequence_length: int) -> None:
    """Refuses prompts that the model cannot read whole.

    Raises:
        UserError: naming the first such prompt.
    """
    for number, ids in enumerate(prompts, 1):
        if len(ids) > max_sequence_length:
            which = f"prompt {number}" if len(prompts) > 1 else "the prompt"
            raise UserError(f"{which} has {len(ids)} tokens, the model reads at most {max_sequence_length}; shorten it")
