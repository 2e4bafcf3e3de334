"""How text is drawn from a model, as settings: `SamplingConfig` for the engine, `GenerateConfig` for the command."""

from __future__ import annotations

import dataclasses
import re
from typing import ClassVar

from tfgpt.common.errors import SettingError
from tfgpt.common.model_paths import MODEL_HELP
from tfgpt.common.settings import Settings, setting


@dataclasses.dataclass(frozen=True)
class SamplingConfig(Settings):
    """How the next tokens of one prompt are chosen, and when to stop.

    The filters are applied in the order of `transformers`: repetition penalty, temperature, top-k, top-p, min-p.
    """

    title: ClassVar[str] = "Sampling"

    max_new_tokens: int = setting(128, "The most tokens to write behind each prompt.", minimum=1)
    temperature: float = setting(
        0.8, "Divides the logits; below 1 the text is safer, above 1 wilder, 0 always takes the likeliest.", minimum=0.0
    )
    top_k: int = setting(50, "Draw from this many likeliest tokens only; 0 for no such limit.", minimum=0)
    top_p: float = setting(
        1.0, "Draw from the fewest tokens that together have this probability; 1 for no such limit.", maximum=1.0
    )
    min_p: float = setting(
        0.0,
        "Draw from tokens at least this many times as probable as the likeliest; 0 for no such limit.",
        minimum=0.0,
        maximum=1.0,
    )
    repetition_penalty: float = setting(
        1.0, "Above 1, tokens that are already in the prompt or the text become less likely (CTRL); 1 changes nothing."
    )
    num_beams: int = setting(
        1, "Above 1, beam search with this many beams; it draws nothing, so give --temperature=0 too.", minimum=1
    )
    length_penalty: float = setting(
        1.0, "A beam's score is its log probability / length^this: above 0 favours longer text, below 0 shorter."
    )
    stop: tuple[str, ...] = setting((), "End the text before this string.")
    seed: int = setting(0, "The same seed gives the same text.", minimum=-(2**63), maximum=2**63 - 1)
    num_samples: int = setting(1, "Texts to write for each prompt; with beams, the best so many.", minimum=1)
    add_end_of_text: bool = setting(
        True,
        "Begin each prompt as texts in the training data begin: behind the end-of-text token; for a converted model "
        "with what it expects, if anything.",
    )

    def cautions(self) -> list[str]:
        """What can be done and is hardly meant, a line each."""
        return [
            f"--stop={text}: a backslash and a letter, which is no line break; in most shells $'{text}' is one"
            for text in self.stop
            if re.search(r"\\[nrt]", text)
        ]

    def check(self) -> None:
        if self.top_p <= 0:
            raise SettingError("top_p", f"{self.top_p} leaves no token; give a number above 0 and at most 1")
        if self.repetition_penalty <= 0:
            raise SettingError("repetition_penalty", f"{self.repetition_penalty} is not above 0; 1 changes nothing")
        for name in ("temperature", "repetition_penalty", "length_penalty"):
            if abs(getattr(self, name)) == float("inf"):
                raise SettingError(name, "is not a finite number")
        if any(not text for text in self.stop):
            raise SettingError("stop", "an empty string would end every text at once")
        if self.num_beams > 1 and self.temperature > 0:
            raise SettingError("num_beams", "beam search draws nothing at random; give --temperature=0 with it")
        if self.num_beams > 1 and self.num_samples > self.num_beams:
            raise SettingError(
                "num_samples", f"{self.num_samples} texts cannot come from {self.num_beams} beams; raise --num_beams"
            )


@dataclasses.dataclass(frozen=True)
class GenerateConfig(Settings):
    """What `python -m tfgpt.generate` reads and how it prints."""

    title: ClassVar[str] = "Model and prompts"

    model: str = setting("", MODEL_HELP, path=True)
    prompt: tuple[str, ...] = setting((), "The text to go on from.")
    prompt_file: str = setting(
        "",
        "A file with prompts: the whole file is one prompt (without the line break at its end); a file whose name "
        'ends in .jsonl or .json has one a record, a JSON string or an object with "prompt" or "messages". Each may '
        "also be .gz or .zst. Without this and "
        "--prompt, standard input is the prompt where it is piped, and otherwise there is none.",
        path=True,
    )
    chat: bool = setting(
        False, "Give each prompt as a user's turn of a chat (ChatML) and write the assistant's; for chat models."
    )
    json: bool = setting(False, "Print one JSON object a line for each text.")
    dtype: str = setting("float32", "The type of weights and computation.", choices=("float32", "bfloat16"))

    def check(self) -> None:
        if not self.model:
            raise SettingError("model", "is missing; give a model, such as runs/quickstart")
        if self.prompt and self.prompt_file:
            raise SettingError("prompt_file", "is given together with --prompt; give one of them")
