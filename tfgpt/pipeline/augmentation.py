"""Augmentation of user messages: paraphrases, dropped words, other case, other spacing.

Each change is drawn from a hash of (seed, epoch, part of a conversation, attempt): the same in every process and after
every restart, another one in every epoch. Messages of the assistant never change.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tfgpt.common.did_you_mean import no_such_file
from tfgpt.common.errors import SettingError, UserError
from tfgpt.corpus.sources import open_sources
from tfgpt.corpus.sources.json_records import is_records_file, read_lines, read_records
from tfgpt.pipeline.config import AugmentationConfig

# A word with the white space after it; each character of scripts that put no space between words.
NO_SPACES = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3\uf900-\ufaff"
WORD = re.compile(f"[{NO_SPACES}]\\s*|[^\\s{NO_SPACES}]+\\s*")
SPACE = re.compile(r"(?<=\S) (?=\S)")
CASES = (str.lower, str.upper, str.capitalize, str.title, str.swapcase)

Messages = Sequence[Mapping[str, str]]


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Changes of user messages; `paraphrases` has other ways to say a message."""

    config: AugmentationConfig
    paraphrases: Mapping[str, Sequence[str]]
    seed: int

    @property
    def active(self) -> bool:
        """Some message can change."""
        config = self.config
        changes = (config.augment_word_dropout, config.augment_casing, config.augment_spacing)
        return any(changes) or bool(self.paraphrases and config.augment_paraphrase)

    def augment(self, messages: Messages, epoch: int, part: int, attempt: int = 0) -> list[dict[str, str]]:
        """Returns the messages of a part of a conversation as they are in an epoch of its source."""
        digest = hashlib.blake2b(f"{self.seed} {epoch} {part} {attempt}".encode(), digest_size=8).digest()
        draw = random.Random(int.from_bytes(digest, "little"))
        return [
            {**message, "content": self.change(message["content"], draw)} if message["role"] == "user" else {**message}
            for message in messages
        ]

    def change(self, text: str, draw: random.Random) -> str:
        config = self.config
        others = self.paraphrases.get(text.strip())
        if others and draw.random() < config.augment_paraphrase:
            text = draw.choice(others)
        if config.augment_word_dropout:
            words = WORD.findall(text)
            text = "".join([word for word in words if draw.random() >= config.augment_word_dropout] or words)
        if draw.random() < config.augment_casing:
            text = draw.choice(CASES)(text)
        if config.augment_spacing:
            text = SPACE.sub(
                lambda match: draw.choice(("", "  ")) if draw.random() < config.augment_spacing else " ", text
            )
        return text


def read_paraphrases(path: str, tfds_data_dir: str | None = None) -> dict[str, list[str]]:
    """Returns each phrasing with the others of its pairs.

    Args:
        path: JSON Lines of `{"text": …, "paraphrase": …}` (or `"paraphrases": […]`), two columns separated by a tab,
            or two features of a TensorFlow Dataset (`tfds:NAME:SPLIT#FEATURE,FEATURE`).
        tfds_data_dir: directory of TensorFlow Datasets.
    """
    file = Path(path).expanduser()
    if not path.startswith("tfds:") and not file.is_file():
        raise SettingError("paraphrases", no_such_file(path))
    found: dict[str, dict[str, None]] = {}
    pairs = pairs_of_dataset(path, tfds_data_dir) if path.startswith("tfds:") else pairs_in_file(file)
    for one, other in ((one.strip(), other.strip()) for one, other in pairs):
        if one and other and one != other:
            found.setdefault(one, {})[other] = None
            found.setdefault(other, {})[one] = None
    if not found:
        raise SettingError("paraphrases", f"{path}: holds no pair")
    return {one: list(others) for one, others in found.items()}


def pairs_of_dataset(spec: str, tfds_data_dir: str | None) -> Iterator[tuple[str, str]]:
    [source] = open_sources([spec], "paraphrases", tfds_data_dir=tfds_data_dir, strict=True)
    for document in source.documents():
        said = [message["content"] for message in document.get("messages", ())]
        if len(said) != 2:
            raise SettingError("paraphrases", f"{spec}: name two features, #FEATURE,FEATURE")
        yield said[0], said[1]


def pairs_in_file(file: Path) -> Iterator[tuple[str, str]]:
    if is_records_file(file):
        for place, value in read_records(file):
            text = value.get("text") if isinstance(value, dict) else None
            others = value.get("paraphrases", [value.get("paraphrase")]) if isinstance(value, dict) else None
            if not (isinstance(text, str) and isinstance(others, list) and all(isinstance(one, str) for one in others)):
                problem = "needs 'text' and 'paraphrase' (a string) or 'paraphrases' (a list of strings)"
                raise UserError(f"{place}: {problem}")
            yield from ((text, other) for other in others)
        return
    for number, line in read_lines(file):
        columns = line.split("\t")
        if len(columns) == 2:
            yield columns[0], columns[1]
        elif line:
            raise UserError(f"{file}:{number}: {len(columns)} columns, not two separated by a tab")
