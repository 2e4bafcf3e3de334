"""Pre-tokenizers: our regular expression, those of pretrained models, and GPT-2's byte alphabet.

BPE merges only within pre-tokens. Our expression follows GPT-2's (a word includes the space before it), without English
contractions, with groups of three digits, and with a limit on the length of every run, which makes the cost of each
encoder linear. At 32 characters no ordinary word is cut, and tiktoken still runs at full speed (docs/measurements.md).

A byte outside any well-formed UTF-8 sequence (The Unicode Standard, table 3-7) is a pre-token, and the text before and
after it is split as if it stood alone. This is Python's `surrogateescape` decoding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAXIMUM_RUN = 32
"""Largest number of letters, other signs or white space in one pre-token."""

PATTERN = (
    rf" ?\p{{L}}{{1,{MAXIMUM_RUN}}}"
    r"| ?\p{N}{1,3}"
    rf"| ?[^\s\p{{L}}\p{{N}}]{{1,{MAXIMUM_RUN}}}"
    rf"|\s{{1,{MAXIMUM_RUN}}}(?!\S)"
    rf"|\s{{1,{MAXIMUM_RUN}}}"
)
"""Our expression, for Oniguruma (`tokenizers`) and Rust's fancy-regex (`tiktoken`)."""

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Llama 3's and SmolLM3's; equivalent to OpenAI's cl100k_base."""

QWEN2_PATTERN = LLAMA3_PATTERN.replace("{1,3}", "")
"""Qwen2's and Qwen3's: Llama 3's with single digits."""

# The options of the decoder have no effect.
DECODER: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}


def byte_level(use_regex: bool) -> dict[str, Any]:
    """Returns the step that writes the byte alphabet and, with `use_regex`, cuts with GPT-2's expression first."""
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def split_by(pattern: str) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, byte_level(False)]}


PRE_TOKENIZER = split_by(PATTERN)

FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": byte_level(True),
    "smollm": {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level(True)],
    },
    "llama3": split_by(LLAMA3_PATTERN),
    "qwen2": split_by(QWEN2_PATTERN),
}
"""Pre-tokenizers of pretrained models, by family."""

FAMILY_OF_GGUF = {
    "gpt-2": "gpt2",
    "smollm": "smollm",
    "llama-bpe": "llama3",
    "llama3": "llama3",
    "llama-v3": "llama3",
    "qwen2": "qwen2",
}
"""`tokenizer.ggml.pre` → family (llama.cpp, src/llama-vocab.cpp)."""


def pre_tokenizers(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the pre-tokenization steps of a `tokenizer.json`, in order."""
    step = document.get("pre_tokenizer")
    if not step:
        return []
    return list(step["pretokenizers"]) if step["type"] == "Sequence" else [step]


def pretrained_family(document: Mapping[str, Any]) -> str | None:
    """Returns the family whose pre-tokenizer a `tokenizer.json` has, or None."""

    def comparable(pre_tokenizer: Any) -> list[dict[str, Any]]:
        # Offsets have no effect, and ByteLevel cuts by default in files without `use_regex`.
        steps = pre_tokenizers({"pre_tokenizer": pre_tokenizer})
        return [{"use_regex": True, **step, "trim_offsets": True} for step in steps]

    steps = comparable(document.get("pre_tokenizer"))
    return next((name for name, family in FAMILIES.items() if comparable(family) == steps), None)


def byte_alphabet() -> list[str]:
    """Returns the printable character for each of the 256 bytes: Latin-1 if printable, otherwise from U+0100 on.

    Source: `bytes_to_unicode` in GPT-2's `encoder.py` (Radford et al. 2019).
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


BYTE_OF_CHARACTER: dict[str, int] = {character: byte for byte, character in enumerate(byte_alphabet())}
"""Reverse of `byte_alphabet`."""
