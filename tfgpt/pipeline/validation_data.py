"""What a run held out, found again in the cache by what its training.json says of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfgpt.common.atomic_files import read_json
from tfgpt.common.errors import UserError
from tfgpt.pipeline import chat_shards, token_shards
from tfgpt.pipeline.chat_shards import ChatShards
from tfgpt.pipeline.token_shards import TokenShards
from tfgpt.tokenization.tokenizer import Tokenizer


def open_held_out(held_out: Mapping[str, Any], tokenizer: Tokenizer) -> TokenShards | ChatShards | None:
    """The very tokens that a run was judged by, texts or conversations.

    Args:
        held_out: "validation" under "data" in training.json.
        tokenizer: the model's.

    Returns:
        None where nothing of that kind was held out (a run on preferences, say), the cache has it no more, or other
        tokens or ids of another tokenizer are there now.

    Raises:
        DamagedShards: it is there and damaged; the line names the file.
    """
    directory = Path(held_out.get("directory") or "")
    if not held_out.get("directory") or not (directory / token_shards.MANIFEST).is_file():
        return None
    opened: TokenShards | ChatShards
    try:
        manifest = read_json(directory / token_shards.MANIFEST)
        is_conversations = manifest["format"] == chat_shards.FORMAT
    except (UserError, KeyError, TypeError):
        is_conversations = False  # TokenShards says what is wrong with it.
    if is_conversations:
        opened = ChatShards.open(directory)
    else:
        opened = TokenShards.open(directory)
        if opened.tokenizer_fingerprint != tokenizer.fingerprint:
            return None
    return opened if opened.fingerprint == held_out.get("fingerprint") else None
