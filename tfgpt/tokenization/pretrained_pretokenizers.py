"""The pre-tokenizers of the byte-level families: GPT-2, SmolLM2, Llama 3, Qwen2, as `tokenizer.json` writes them."""

from __future__ import annotations

from typing import Any

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What ByteLevel's own `use_regex` stands for (OpenAI's GPT-2 `encoder.py`)."""

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Llama 3's, which is that of OpenAI's cl100k_base in other words; SmolLM3 has it too."""

QWEN2_PATTERN = LLAMA3_PATTERN.replace("{1,3}", "")
"""Qwen2's and Qwen3's: Llama 3's with single digits."""


def byte_level(use_regex: bool) -> dict[str, Any]:
    """The step that writes bytes in the byte alphabet, and first cuts as GPT-2 does where asked."""
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def split_by(pattern: str) -> dict[str, Any]:
    """A pre-tokenizer that cuts by an expression."""
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, byte_level(False)]}


FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": byte_level(True),
    "smollm": {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level(True)],
    },
    "llama3": split_by(LLAMA3_PATTERN),
    "qwen2": split_by(QWEN2_PATTERN),
}
"""Family → pre-tokenizer."""

BY_GGUF_NAME = {
    "gpt-2": "gpt2",
    "smollm": "smollm",
    "llama-bpe": "llama3",
    "llama3": "llama3",
    "llama-v3": "llama3",
    "qwen2": "qwen2",
}
"""`tokenizer.ggml.pre` → family (llama.cpp, src/llama-vocab.cpp)."""
