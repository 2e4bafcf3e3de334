"""Settings of generation: `SamplingConfig` for the generator, `GenerateConfig` for `python -m tfgpt.generate`."""

from __future__ import annotations

import dataclasses
import re
from typing import ClassVar

from tfgpt.common.errors import SettingError
from tfgpt.common.model_paths import MODEL_HELP
from tfgpt.common.settings import Settings, setting


@dataclasses.dataclass(frozen=True)
class SamplingConfig(Settings):
    """Settings of sampling and of the end of a text.

    Filters are applied in the order of `transformers`: repetition penalty, temperature, top-k, top-p, min-p.

    Example:

    >>> SamplingConfig(temperature=0.0, max_new_tokens=20).top_k
    50
    """

    title: ClassVar[str] = "Sampling"

    max_new_tokens: int = setting(128, "The most new tokens of a text.", minimum=1)
    temperature: float = setting(
        0.8,
        "Divides the logits; below 1 texts vary less, above 1 more; 0 takes the most likely token.",
        minimum=0.0,
    )
    top_k: int = setting(50, "Draw from this many most likely tokens only; 0 for no limit.", minimum=0)
    top_p: float = setting(
        1.0, "Draw from the fewest tokens that together have this probability; 1 for no limit.", maximum=1.0
    )
    min_p: float = setting(
        0.0,
        "Draw from tokens at least this many times as probable as the most likely one; 0 for no limit.",
        minimum=0.0,
        maximum=1.0,
    )
    repetition_penalty: float = setting(
        1.0, "Above 1, tokens of the prompt and the text become less likely (CTRL); 1 changes nothing."
    )
    num_beams: int = setting(
        1, "Above 1, beam search with this many beams; it does not sample, so give --temperature=0 too.", minimum=1
    )
    length_penalty: float = setting(
        1.0, "A beam's score is its log probability / length^this: above 0 favours longer texts, below 0 shorter ones."
    )
    stop: tuple[str, ...] = setting((), "End the text before this string.")
    seed: int = setting(0, "The same seed gives the same text.", minimum=-(2**63), maximum=2**63 - 1)
    num_samples: int = setting(1, "Texts for each prompt; with beams, the best ones.", minimum=1)
    add_end_of_text: bool = setting(
        True,
        "Begin each prompt with the end-of-text token, as texts of the training data do; for a converted model with "
        "its own first token, if any.",
    )

    def cautions(self) -> list[str]:
        return [
            f"--stop={text}: a backslash and a letter, not a line break; in most shells $'{text}' is one"
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
            raise SettingError("num_beams", "beam search does not sample; give --temperature=0 with it")
        if self.num_beams > 1 and self.num_samples > self.num_beams:
            raise SettingError(
                "num_samples", f"{self.num_samples} texts cannot come from {self.num_beams} beams; raise --num_beams"
            )


@dataclasses.dataclass(frozen=True)
class GenerateConfig(Settings):
    """Settings of `python -m tfgpt.generate`: the prompts and the output.

    Example:

    >>> GenerateConfig(model="runs/quickstart", prompt=("Once upon a time",)).json
    False
    """

    title: ClassVar[str] = "Model and prompts"

    model: str = setting("", MODEL_HELP, path=True)
    prompt: tuple[str, ...] = setting((), "The text to continue.")
    prompt_file: str = setting(
        "",
        "A file with prompts: a text file is one prompt (without its last line break); a file whose name ends in "
        '.jsonl or .json has one per record, a JSON string or an object with "prompt" or "messages". Both may also be '
        ".gz or .zst. Without this and --prompt, piped standard input is the prompt.",
        path=True,
    )
    chat: bool = setting(
        False, "Use each prompt as a user's message and generate the assistant's reply; for chat models."
    )
    json: bool = setting(False, "Print each text as one line of JSON.")
    dtype: str = setting("float32", "The type of weights and computation.", choices=("float32", "bfloat16"))

    def check(self) -> None:
        if not self.model:
            raise SettingError("model", "is missing; give a model, such as runs/quickstart")
        if self.prompt and self.prompt_file:
            raise SettingError("prompt_file", "is given together with --prompt; give one of them")
