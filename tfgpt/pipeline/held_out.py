"""What a run held out, found again in the cache by what its training.json says of it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfgpt.common.errors import UserError
from tfgpt.pipeline.conversations import Conversations
from tfgpt.pipeline.shards import TokenShards
from tfgpt.tokenization.tokenizer import Tokenizer


def open_held_out(held_out: Mapping[str, Any], tokenizer: Tokenizer) -> TokenShards | Conversations | None:
    """The very tokens that a run was judged by, texts or conversations.

    Args:
        held_out: "validation" under "data" in training.json.
        tokenizer: the model's.

    Returns:
        None where nothing of that kind was held out (a run on preferences, say), or the cache has it no more.
    """
    directory = held_out.get("directory")
    if directory:
        for kind, more in ((TokenShards, (tokenizer.fingerprint,)), (Conversations, ())):
            with contextlib.suppress(UserError):
                opened = kind.open(Path(directory), *more)
                if opened.fingerprint == held_out.get("fingerprint"):
                    return opened
    return None
