"""Helpers for tests of chat templates."""

import importlib.util
import re
from pathlib import Path

import numpy as np

from tfgpt.tokenization.tokenizer import Tokenizer
from tfgpt.tokenization.tokenizer_json import added_token

SPECIALS = ("<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[CALL_ID]",
            "[ARGS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "<|begin_of_text|>", "<|start_header_id|>",
            "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>")  # fmt: skip
HEADERS = re.compile(r"^(<\|im_start\|>assistant|<\|start_header_id\|>assistant<\|end_header_id\|>)")


def without_tag(source: str) -> str:
    return re.sub(
        r"\{%(-?)\s*(?:end)?generation\s*%\}", lambda tag: "{%- if true %}{%- endif %}" if tag[1] else "", source
    )


def with_template(trained: Tokenizer, source: object) -> Tokenizer:
    added = [added_token(number, name) for number, name in enumerate(SPECIALS, trained.vocabulary_size)]
    tokenizer = Tokenizer({**trained.document, "added_tokens": [*trained.document["added_tokens"], *added]})
    tokenizer.config = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": source}
    return tokenizer


def runs(tokenizer: Tokenizer, ids: np.ndarray, chosen: np.ndarray) -> list[str]:
    """The texts of consecutive chosen ids, without a header or white space around them."""
    borders = np.flatnonzero(np.diff(np.concatenate([[0], chosen, [0]]))).reshape(-1, 2)
    texts = [tokenizer.decode(ids[start:end], skip_special_tokens=False) for start, end in borders]
    return [HEADERS.sub("", text.strip()).strip() for text in texts]


def trl_templates(*names: str) -> dict[str, str]:
    spec = importlib.util.find_spec("trl")
    folders = spec.submodule_search_locations if spec else None
    paths = {name: Path(folders[0], "chat_templates", f"{name}.jinja") for name in names} if folders else {}
    return {name: path.read_text(encoding="utf-8") for name, path in paths.items() if path.is_file()}
