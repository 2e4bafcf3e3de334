"""Which tokens of a vocabulary play the parts that training and generation need: ends, turns, padding, the start.

A tokenizer that we make has four special tokens of its own. One that comes with a pretrained model has others, and no
id may be added to it: the model has no row for it. So parts are given to tokens that are there, and written as names
under "tfgpt" in `tokenizer_config.json`, beside what `transformers` reads:

- end_of_text: what stands between documents;
- more_ends: what else ends a generated text (Llama 3's <|eom_id|>);
- start_of_text: what the model expects before every text, or none (GPT-2, Qwen, SmolLM2);
- start_of_turn, end_of_turn: around what somebody says. Llama 3 has <|start_header_id|> and <|eot_id|>. Where the
  vocabulary has nothing of the kind (GPT-2, Mistral, base models), the end of the text plays both parts;
- padding: never the end of the text, or tuning would unlearn to stop, nor another part. Where nothing is named so, a
  reserved or unused special token plays it; where there is no such token either (GPT-2), the token of the byte FF does,
  which occurs in no UTF-8 text (and is lost to texts that are none).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

KEY = "tfgpt"
"""Under which `tokenizer_config.json` holds the parts."""

ENDS_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")
ENDS_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>")
STARTS_OF_TURN = ("<|im_start|>", "<|start_header_id|>", "<start_of_turn>")
PADDINGS = ("<|padding|>", "<|finetune_right_pad_id|>", "<|pad|>", "<pad>", "<PAD>", "[PAD]", "<|PAD_TOKEN|>")
SPARE = ("reserved", "unused", "pad", "[control_", "empty", "extra", "unk", "placeholder")
"""What names of special tokens hold that nothing else needs, best first."""

LAST_BYTE = "ÿ"
"""The byte FF in the byte alphabet."""


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """The tokens' names as the vocabulary spells them; see the module's docstring for what each is for."""

    end_of_text: str
    padding: str
    start_of_turn: str
    end_of_turn: str
    start_of_text: str | None = None
    more_ends: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**dataclasses.asdict(self), "more_ends": list(self.more_ends)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SpecialTokens:
        """The reverse of `to_dict`; what does not fit raises TypeError."""
        return cls(**{**values, "more_ends": tuple(values.get("more_ends", ()))})


def choose_special_tokens(
    specials: Iterable[str],
    *,
    end: str | None,
    padding: str | None = None,
    start_of_text: str | None = None,
    chat_template: str = "",
    more_ends: Iterable[str] = (),
) -> SpecialTokens:
    """The parts that special tokens of a foreign vocabulary play.

    Args:
        specials: names of the special tokens, in the order of their ids.
        end: what the files call the end token.
        padding: what the files call the padding token.
        start_of_text: the token that the files put before every text.
        chat_template: tokens that it speaks of are no spare ones.
        more_ends: other tokens that end a generated text.

    Raises:
        ValueError: there is no end-of-text token.
    """
    names = list(specials)

    def first(candidates: Iterable[str | None], otherwise: str | None = None) -> str | None:
        return next((name for name in candidates if name in names), otherwise)

    text_end = first([*ENDS_OF_TEXT, end])
    if text_end is None:
        raise ValueError(f"no token is known to end a text (known are {', '.join(ENDS_OF_TEXT)})")
    turn_end = first(ENDS_OF_TURN, end if end in names else text_end) or text_end
    turn_start = first(STARTS_OF_TURN, text_end) or text_end
    others = tuple(name for name in more_ends if name in names and name not in (text_end, turn_end))
    taken = {text_end, turn_end, turn_start, start_of_text, end, *others}
    free = [name for name in names if name not in taken]
    spare = [name for mark in SPARE for name in free if mark in name.lower() and name not in chat_template]
    spare += [name for name in reversed(free) if name not in chat_template]
    pad = next((name for name in [padding, *PADDINGS, *spare] if name in free), LAST_BYTE)
    return SpecialTokens(text_end, pad, turn_start, turn_end, start_of_text, others)


def token_name(value: Any) -> str | None:
    """A token's name, which may be written with its options."""
    return value.get("content") if isinstance(value, Mapping) else value
