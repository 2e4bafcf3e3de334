"""Other ways to say what users say: paraphrases, dropped words, other case, other spacing. Never the assistant's words.

Each change is drawn from a hash of (seed, epoch, part of a conversation, attempt): the same in every process and after
every restart, another one in every epoch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tfgpt.common.did_you_mean import no_such_file
from tfgpt.common.errors import SettingError, UserError
from tfgpt.corpus.sources import open_sources
from tfgpt.corpus.sources.json_records import is_records_file, read_lines, read_records
from tfgpt.pipeline.config import AugmentationConfig

# A word with the white space behind it; each character of scripts that put no space between words.
WORD = re.compile(
    "[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3\uf900-\ufaff]\\s*|[^\\s\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3\uf900-\ufaff]+\\s*"
)
SPACES = re.compile(r"(?<=\S) (?=\S)")
CASES = (str.lower, str.upper, str.capitalize, str.title, str.swapcase)

Messages = Sequence[Mapping[str, str]]


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Changes of what users say.

    Attributes:
        config: how often.
        paraphrases: what somebody says → other ways to say it.
        seed: of all draws.
    """

    config: AugmentationConfig
    paraphrases: Mapping[str, Sequence[str]]
    seed: int

    @property
    def active(self) -> bool:
        """Whether anything is ever changed."""
        config = self.config
        return bool(
            (self.paraphrases and config.augment_paraphrase)
            or config.augment_word_dropout
            or config.augment_casing
            or config.augment_spacing
        )

    def changed(self, messages: Messages, epoch: int, part: int, attempt: int = 0) -> list[dict[str, str]]:
        """The messages as they are said in an epoch.

        Args:
            messages: of one part of a conversation.
            epoch: of its source.
            part: its number.
            attempt: another one gives another draw.
        """
        digest = hashlib.blake2b(f"{self.seed} {epoch} {part} {attempt}".encode(), digest_size=8).digest()
        draw = random.Random(int.from_bytes(digest, "little"))
        return [
            {**message, "content": self.said(message["content"], draw)} if message["role"] == "user" else {**message}
            for message in messages
        ]

    def said(self, text: str, draw: random.Random) -> str:
        """Another way to say something."""
        config = self.config
        others = self.paraphrases.get(text.strip())
        if others and draw.random() < config.augment_paraphrase:
            text = draw.choice(others)
        if config.augment_word_dropout:
            text = without_words(text, config.augment_word_dropout, draw)
        if draw.random() < config.augment_casing:
            text = draw.choice(CASES)(text)
        if config.augment_spacing:
            text = SPACES.sub(lambda match: other_space(config.augment_spacing, draw), text)
        return text


def without_words(text: str, share: float, draw: random.Random) -> str:
    """The text without some of its words, but never without all."""
    words = WORD.findall(text)
    kept = [word for word in words if draw.random() >= share]
    return "".join(kept or words)


def other_space(share: float, draw: random.Random) -> str:
    """A space, or now and then two or none."""
    return draw.choice(("", "  ")) if draw.random() < share else " "


def read_paraphrases(path: str, tfds_data_dir: str | None = None) -> dict[str, list[str]]:
    """Pairs of phrasings from a file; each is another way to say the other.

    JSON Lines of `{"text": …, "paraphrase": …}` (or `"paraphrases": […]`), two columns separated by a tab, or two
    features of a TensorFlow Dataset (`tfds:NAME:SPLIT#FEATURE,FEATURE`).

    Raises:
        UserError: the file is missing or a line is no pair; the line names file and line.
    """
    file = Path(path).expanduser()
    if not path.startswith("tfds:") and not file.is_file():
        raise SettingError("paraphrases", no_such_file(path))
    found: dict[str, dict[str, None]] = {}
    for one, other in pairs_of_dataset(path, tfds_data_dir) if path.startswith("tfds:") else pairs_in(file):
        if one and other and one != other:
            found.setdefault(one, {})[other] = None
            found.setdefault(other, {})[one] = None
    if not found:
        raise SettingError("paraphrases", f"{path}: holds no pair")
    return {one: list(others) for one, others in found.items()}


def pairs_of_dataset(spec: str, tfds_data_dir: str | None) -> Iterator[tuple[str, str]]:
    """The pairs of a TensorFlow Dataset, without white space around them."""
    [source] = open_sources([spec], "paraphrases", tfds_data_dir=tfds_data_dir, strict=True)
    for document in source.documents():
        said = [message["content"].strip() for message in document.get("messages", ())]
        if len(said) != 2:
            raise SettingError("paraphrases", f"{spec}: name two features, #FEATURE,FEATURE")
        yield said[0], said[1]


def pairs_in(file: Path) -> Iterator[tuple[str, str]]:
    """The pairs of a file, without white space around them."""
    if is_records_file(file):
        for place, value in read_records(file):
            yield from json_pairs(value, place)
        return
    for number, line in read_lines(file):
        columns = line.split("\t")
        if len(columns) == 2:
            yield columns[0].strip(), columns[1].strip()
        elif line:
            raise UserError(f"{file}:{number}: {len(columns)} columns, not two separated by a tab")


def json_pairs(value: Any, place: str) -> Iterator[tuple[str, str]]:
    """The pairs in a record."""
    text = value.get("text") if isinstance(value, dict) else None
    others = value.get("paraphrases", [value.get("paraphrase")]) if isinstance(value, dict) else None
    if not isinstance(text, str) or not isinstance(others, list) or not all(isinstance(one, str) for one in others):
        raise UserError(f"{place}: needs 'text' and 'paraphrase' (a string) or 'paraphrases' (a list of strings)")
    for other in others:
        yield text.strip(), other.strip()
