"""Helpers for tests of chat templates."""

import functools
import importlib.util
import re
from pathlib import Path

import numpy as np

from tfgpt.tokenization.chat_template import encode_messages
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


@functools.cache
def known(trained: Tokenizer, source: str) -> Tokenizer:
    return with_template(trained, source)


def assert_equals_transformers(trained, theirs, source, messages, tools=None) -> tuple[np.ndarray, np.ndarray]:
    """Text, ids and mask are those of transformers, without and with the tag; returns our weights and their mask."""
    untagged = without_tag(source)
    tokenizer = known(trained, untagged)
    for prompt in (False, True):
        text = theirs.apply_chat_template(
            messages, tools=tools, chat_template=untagged, add_generation_prompt=prompt, tokenize=False
        )
        ids, _ = encode_messages(tokenizer, messages, prompt, tools)
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
        assert ids.tolist() == theirs(text, add_special_tokens=False)["input_ids"]
    expected = theirs.apply_chat_template(
        messages, tools=tools, chat_template=source, return_dict=True, return_assistant_tokens_mask=True
    )
    ids, weights = encode_messages(tokenizer, messages, tools=tools)
    mask = np.array(expected["assistant_masks"])
    assert ids.tolist() == expected["input_ids"] and mask.sum() > 0
    assert runs(tokenizer, ids, weights) == runs(tokenizer, ids, mask)
    np.testing.assert_array_equal(encode_messages(known(trained, source), messages, tools=tools)[1], mask)
    return weights, mask
