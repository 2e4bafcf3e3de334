"""Special tokens: their names, the roles they play in training and generation, and our chat template."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

SPECIAL_TOKENS = ("<|endoftext|>", "<|padding|>", "<|im_start|>", "<|im_end|>")
"""The special tokens of tokenizers that tfgpt trains, in the order of their ids: the last four of the vocabulary."""

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""ChatML (of OpenAI, Qwen and SmolLM2), after the token that begins every text."""

KEY = "tfgpt"
"""The key in `tokenizer_config.json` under which the roles of a pretrained model's tokens are saved."""

# Known names of each role, best first.
ENDS_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")
ENDS_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>")
STARTS_OF_TURN = ("<|im_start|>", "<|start_header_id|>", "<start_of_turn>")
PADDINGS = ("<|padding|>", "<|finetune_right_pad_id|>", "<|pad|>", "<pad>", "<PAD>", "[PAD]", "<|PAD_TOKEN|>")

KNOWN_NAMES = dict(zip(SPECIAL_TOKENS, (ENDS_OF_TEXT, PADDINGS, ("<|im_start|>",), ("<|im_end|>",))))
"""Our special token → the names that it may have in a `tokenizer.json` of another program, best first."""

SPARE = ("reserved", "unused", "pad", "[control_", "empty", "extra", "unk", "placeholder")
"""Substrings in the names of special tokens that are free to be the padding, best first."""

LAST_BYTE = "ÿ"  # byte FF in the byte alphabet


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """Names of the tokens that play each role; no id can be added to a pretrained model, so existing tokens get them.

    Attributes:
        end_of_text: separates documents.
        padding: never the end of the text (fine-tuning would unlearn to stop) and never another role. A spare special
            token plays it; in a vocabulary without one (GPT-2) the token of byte FF does, which UTF-8 never contains.
        start_of_turn, end_of_turn: surround a message (Llama 3: <|start_header_id|>, <|eot_id|>). In vocabularies
            without such tokens (GPT-2, Mistral, base models) both are the end of the text.
        start_of_text: begins every text; None for models that expect nothing (GPT-2, Qwen, SmolLM2).
        more_ends: further tokens that end a generated text (Llama 3: <|eom_id|>).
    """

    end_of_text: str
    padding: str
    start_of_turn: str
    end_of_turn: str
    start_of_text: str | None = None
    more_ends: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "more_ends": list(self.more_ends)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SpecialTokens:
        return cls(**{**values, "more_ends": tuple(values.get("more_ends", ()))})


def choose_special_tokens(
    specials: Mapping[str, int],
    *,
    end: str | None,
    padding: str | None = None,
    start_of_text: str | None = None,
    chat_template: str = "",
    stop_ids: Iterable[int] = (),
) -> SpecialTokens:
    """Assigns the roles to the special tokens of a pretrained vocabulary; ValueError if no token ends a text.

    Args:
        specials: name → id of the special tokens.
        end, padding: the tokens that the model's files name.
        start_of_text: the token that the files put before every text.
        chat_template: the model's template; tokens that occur in it are not spare.
        stop_ids: ids that end a generated text.
    """
    names = sorted(specials, key=specials.__getitem__)

    def first(candidates: Iterable[str | None], default: str | None = None) -> str | None:
        return next((name for name in candidates if name in names), default)

    text_end = first([*ENDS_OF_TEXT, end])
    if text_end is None:
        raise ValueError(f"no token is known to end a text (known are {', '.join(ENDS_OF_TEXT)})")
    turn_end = first(ENDS_OF_TURN, end if end in names else text_end) or text_end
    turn_start = first(STARTS_OF_TURN, text_end) or text_end
    stops = {specials[name]: name for name in names if name not in (text_end, turn_end)}
    others = tuple(stops[identifier] for identifier in stop_ids if identifier in stops)
    taken = {text_end, turn_end, turn_start, start_of_text, end, *others}
    free = [name for name in names if name not in taken]
    spare = [name for mark in SPARE for name in free if mark in name.lower() and name not in chat_template]
    spare += [name for name in reversed(free) if name not in chat_template]
    pad = next((name for name in [padding, *PADDINGS, *spare] if name in free), LAST_BYTE)
    return SpecialTokens(text_end, pad, turn_start, turn_end, start_of_text, others)


def token_name(value: Any) -> str | None:
    """Returns the name of a token in `tokenizer_config.json`, where it may be an object with options."""
    return value.get("content") if isinstance(value, Mapping) else value
