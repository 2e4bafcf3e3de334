"""`sample:NAME`: texts of installed packages, found without importing or downloading anything (see samples.toml)."""

from __future__ import annotations

import dataclasses
import importlib.util
import tomllib
from collections.abc import Iterator
from pathlib import Path

from tfgpt.common.atomic_files import sha256_of_json
from tfgpt.common.did_you_mean import did_you_mean
from tfgpt.common.errors import SettingError
from tfgpt.corpus.sources import base, sample_readers
from tfgpt.corpus.sources.file_hashes import FileHashes

# Part of every sample's fingerprint. Increase it when a reader makes other documents of the same files than before.
READER_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Sample:
    """An entry of samples.toml."""

    package: str
    install: str
    module: str
    files: str
    read: str
    what: str
    licence: str
    variant: str = ""


SAMPLES = {
    name: Sample(**entry)
    for name, entry in tomllib.loads(Path(__file__).with_name("samples.toml").read_text(encoding="utf-8")).items()
}


class SampleSource(base.Source):
    """The documents of an installed sample corpus."""

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
        self.folder, self.hashes = package_folder(sample.module), hashes
        self.files = find_sample_files(self.folder, sample, self.variant)
        if not self.files:
            if self.folder and sample.variant and (installed := find_sample_files(self.folder, sample, "*")):
                position = Path(sample.files).parts.index("{variant}")
                others = sorted({path.relative_to(self.folder).parts[position] for path in installed})
                near = did_you_mean(self.variant, others)
                raise SettingError(flag, f"{spec}: no such variant{near or '; there are ' + ', '.join(others)}")
            raise SettingError(flag, f"{spec}: the package {sample.package} is not installed; {sample.install}")
        self.size = sum(path.stat().st_size for path in self.files)
        self.licence = sample.licence
        self.description = f"{sample.what} (package {sample.package})"

    def fingerprint(self) -> str:
        names = [str(path.relative_to(str(self.folder))) for path in self.files]
        return sha256_of_json([READER_VERSION, self.variant, list(zip(names, self.hashes.of(self.files)))])

    def read(self) -> Iterator[base.Document | str]:
        reader: sample_readers.Reader = getattr(sample_readers, self.sample.read)
        for document in reader(self.files):
            if isinstance(document, str):
                yield document
            else:
                yield base.with_id({**document, "source": self.spec}, document.get("id"))
        self.position = self.size or 0


def package_folder(module: str) -> Path | None:
    """Returns the folder of an installed module, without importing it; the root without a module."""
    if not module:
        return Path("/")
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    locations = list(found.submodule_search_locations or []) if found else []
    return Path(locations[0]) if locations else None


def find_sample_files(folder: Path | None, sample: Sample, variant: str) -> list[Path]:
    """Returns the sample's files, sorted; one that is found by two names only once."""
    if folder is None:
        return []
    matches = sorted(path for path in folder.glob(sample.files.format(variant=variant).lstrip("/")) if path.is_file())
    return list({path.resolve(): path for path in reversed(matches)}.values())[::-1]
