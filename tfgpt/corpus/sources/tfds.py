"""`tfds:…`: text in TensorFlow Datasets, prepared on this machine or prepared on the way.

    tfds:NAME:SPLIT#FEATURE             tfds:lm1b:train#text
    tfds:NAME/CONFIG:SPLIT#FEATURE      tfds:wikipedia/20230601.en:train#text
    tfds:NAME:VERSION:SPLIT#FEATURE     tfds:lm1b:1.1.0:train[:10%]#text
    tfds:DIRECTORY:SPLIT#FEATURE        tfds:/data/my_dataset/1.0.0:train#dialogue/turns

A dataset that is prepared in the data folder is found there without TensorFlow Datasets' own code for it, and is read
without a network. SPLIT may be anything that TensorFlow Datasets reads (`train[:10%]`, `train+test`). FEATURE may be
a text, a sequence of texts (joined by line ends), or a sequence of `role` and `content` (a dialogue; `from` and
`value`, or `speaker` and `utterance`, are the same); `a/b` is a feature in a feature. Several texts separated by commas
are one exchange, the last one the answer: `#instruction,input,output`. Without #FEATURE it is `text` or `messages`, or
the only text there is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import logging
import os
import re
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tfgpt.common.atomic_files import sha256_of_json
from tfgpt.common.did_you_mean import did_you_mean
from tfgpt.common.errors import SettingError, UserError
from tfgpt.common.tf_logging import import_tensorflow
from tfgpt.corpus.sources import base
from tfgpt.corpus.sources.chat_formats import CONTENT_FIELDS, SPEAKER_FIELDS, first_field, to_openai_messages
from tfgpt.corpus.sources.file_hashes import FileHashes
from tfgpt.corpus.sources.messages import validate_messages

PATTERN = re.compile(r"(?P<dataset>.+?)(:(?P<version>\d+\.\d+\.\d+))?:(?P<split>[^:/\[\]]+(\[[^\]]*\].*)?)")
VERSION = re.compile(r"\d+\.\d+\.\d+")
INFORMATION = "dataset_info.json"
GRAMMAR = "write tfds:NAME/CONFIG:SPLIT#FEATURE or tfds:DIRECTORY:SPLIT#FEATURE"


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a spec is made of; `version` and `feature` are empty when not named."""

    dataset: str
    version: str
    split: str
    feature: str


def parsed(spec: str, flag: str) -> Parts:
    """The parts of a spec.

    Raises:
        SettingError: no dataset or no split in it.
    """
    rest, _, feature = spec.removeprefix("tfds:").partition("#")
    match = PATTERN.fullmatch(rest)
    if not match:
        raise SettingError(flag, f"{spec}: no split named; {GRAMMAR}")
    return Parts(match["dataset"], match["version"] or "", match["split"], feature)


def tfrecords(path: str, start: int, end: int) -> Iterator[bytes]:
    """The records `start` to `end` of a TFRecord file; its checksums are checked."""
    import tensorflow as tf

    with fewer_log_lines():  # "deprecated": in favour of tf.data, which starts the runtime
        records = tf.compat.v1.io.tf_record_iterator(path)
    yield from itertools.islice(records, start, end)


def array_records(path: str, start: int, end: int) -> Iterator[bytes]:
    """The records `start` to `end` of an ArrayRecord file."""
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(path)
    for first in range(start, end, RECORDS_AT_ONCE):
        yield from reader.read(first, min(first + RECORDS_AT_ONCE, end))


RECORDS_AT_ONCE = 256
RECORD_READERS = {"tfrecord": tfrecords, "array_record": array_records}


class TensorFlowDatasetsSource(base.Source):
    """The documents of one split.

    Args:
        spec: as in the module's docstring.
        flag: the flag to name in error lines.
        hashes: computes (and remembers) the files' hashes.
        data_dir: the folder of prepared datasets; None: $TFDS_DATA_DIR or ~/tensorflow_datasets.

    Raises:
        UserError: no such dataset or split, or it is not prepared and cannot be.
    """

    def __init__(self, spec: str, flag: str, hashes: FileHashes, data_dir: str | None = None):
        super().__init__(spec)
        self.parts, self.flag, self.hashes = parsed(spec, flag), flag, hashes
        root = Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
        self.directory = builder_directory(spec, self.parts, flag, root)
        information = self.information()
        self.check_split(information)
        self.files = self.split_files()
        self.size = sum(path.stat().st_size for path in self.files)
        version = information.get("version", "")
        self.description = f"TensorFlow Datasets {information.get('name', self.parts.dataset)} {version}".strip()
        licence = (information.get("redistributionInfo") or {}).get("license")
        self.licence = " ".join(str(licence).split()) if licence else "not recorded in the dataset's information"

    def information(self) -> dict[str, Any]:
        """The dataset's `dataset_info.json`."""
        path = self.directory / INFORMATION
        try:
            information = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: damaged ({error}); prepare the dataset again") from None
        return information if isinstance(information, dict) else {}

    def split_names(self) -> list[str]:
        """The splits that SPLIT names, without slices."""
        return [re.split(r"\[", name.strip())[0] for name in self.parts.split.split("+")]

    def check_split(self, information: dict[str, Any]) -> None:
        there = [split.get("name", "") for split in information.get("splits", [])]
        for name in self.split_names():
            if name not in there and name != "all":
                raise SettingError(self.flag, f"{self.spec}: no split {name!r}; there are {', '.join(there) or 'none'}")

    def split_files(self) -> list[Path]:
        """The files that decide the documents: the splits' records, or all files where names do not tell."""
        files = sorted(path for path in self.directory.iterdir() if path.is_file())
        described = [path for path in files if path.suffix in (".json", ".txt")]
        records = [path for path in files if any(f"-{name}." in path.name for name in self.split_names())]
        return sorted({*described, *records}) if records else files

    def fingerprint(self) -> str:
        names = [path.name for path in self.files]
        return sha256_of_json([list(zip(names, self.hashes.of(self.files)))])

    def documents(self) -> Iterator[base.Document]:
        self.start_reading()
        import_tensorflow()
        tfds = imported(self.spec)
        try:
            builder = tfds.builder_from_directory(self.directory)
        except Exception as error:  # whatever TFDS raises for a directory it cannot make sense of
            raise UserError(
                f"{self.directory}: cannot be opened as a TensorFlow Dataset ({one_line(error)})"
            ) from error
        wanted = self.parts.feature.split(",")
        paths = [self.feature_path(builder.info.features, name, len(wanted) > 1) for name in wanted]
        number = 0
        for number, example in enumerate(self.examples(tfds, builder, [path[0] for path in paths]), start=1):
            self.odd.read += 1
            try:
                for document in self.example_documents(
                    [value_at(example, path) for path in paths], f"{self.spec}: example {number}"
                ):
                    reason = base.reason_to_drop(document)
                    if reason:
                        self.dropped[reason] += 1
                    else:
                        yield document
            except UserError as error:
                self.odd.skip(error)
        if not number:
            raise UserError(f"{self.spec}: the split has no example")
        self.odd.raise_if_most(self.spec)

    def examples(self, tfds: Any, builder: Any, names: list[str]) -> Iterator[Mapping[str, Any]]:
        """The examples in the order of the files, of each only the features `names`; keeps `position`.

        Records are parsed as NumPy arrays. `builder.as_dataset` would do too, but it starts TensorFlow's runtime,
        after which a training run in the same process can no longer choose its logical devices.
        """
        file = str(self.directory)
        try:
            with fewer_log_lines():
                only = tfds.decode.PartialDecoding(dict.fromkeys(names, True))
                if builder.info.file_format.value not in RECORD_READERS:
                    yield from builder.as_dataset(
                        split=self.parts.split, shuffle_files=False, decoders=only
                    ).as_numpy_iterator()
                    return
                features = only.extract_features(builder.info.features)
                read = RECORD_READERS[builder.info.file_format.value]
                instructions = builder.info.splits[self.parts.split].file_instructions
            count = sum(instruction.take for instruction in instructions)
            number = 0
            for instruction in instructions:
                file = str(instruction.filename)
                before = number
                for record in read(file, instruction.skip, instruction.skip + instruction.take):
                    number += 1
                    self.position = (self.size or 0) * number // count
                    yield features.deserialize_example_np(record)
                if number - before < instruction.take:
                    raise ValueError(f"it ends after {number - before} of {instruction.take} examples")
        except Exception as error:  # a wrong slice, a damaged record: TFDS and TensorFlow have a class for each
            raise UserError(f"{self.spec}: cannot be read from {file} ({one_line(error)})") from error

    def feature_path(self, features: Any, feature: str, plain: bool) -> list[str]:
        """A feature as the names on the way to it; with `plain` it must be one text.

        Raises:
            SettingError: it is not there, or none is named and it is not clear which one is meant.
        """
        there = dict(sorted(flat_features(features).items()))
        texts = [name for name, kind in there.items() if kind in ("text", "messages")]
        listed = ", ".join(name if kind in ("text", "messages") else f"{name} ({kind})" for name, kind in there.items())
        wanted = feature.strip().strip("/")
        if not wanted:
            usual = [name for name in ("text", "messages") if name in texts]
            if not usual and len(texts) != 1:
                raise SettingError(self.flag, f"{self.spec}: name the feature with #FEATURE; there are {listed}")
            wanted = (usual or texts)[0]
        if wanted not in there:
            raise SettingError(self.flag, f"{self.spec}: no feature {wanted!r}; there are {listed}")
        if wanted not in texts or (plain and there[wanted] != "text"):
            raise SettingError(
                self.flag, f"{self.spec}: the feature {wanted!r} is {there[wanted]}, no text; there are {listed}"
            )
        return wanted.split("/")

    def example_documents(self, values: list[Any], place: str) -> Iterator[base.Document]:
        """The document (or the parts of a very long one) in the features' values."""
        value = values[0]
        if len(values) > 1:
            *asked, answer = (text_of(text, place) for text in values)
            yield self.dialogue(
                [
                    {"role": "user", "content": "\n\n".join(text for text in asked if text)},
                    {"role": "assistant", "content": answer},
                ],
                place,
            )
        elif isinstance(value, Mapping):
            speaker, content = first_field(value, SPEAKER_FIELDS), first_field(value, CONTENT_FIELDS)
            pairs = zip(value[speaker], value[content])
            turns = [{speaker: text_of(one, place), content: text_of(other, place)} for one, other in pairs]
            yield self.dialogue(to_openai_messages(turns, self.parts.feature or "messages", place), place)
        elif isinstance(value, (bytes, str)):
            yield from base.text_documents(text_of(value, place), self.spec)
        else:
            yield from base.text_documents("\n".join(text_of(line, place) for line in value), self.spec)

    def dialogue(self, messages: Any, place: str) -> base.Document:
        """The document of a dialogue."""
        document = {"messages": validate_messages(messages, place), "source": self.spec}
        return {**document, "id": base.content_id(document)}


def imported(spec: str) -> Any:
    """The module `tensorflow_datasets`.

    Raises:
        UserError: it cannot be imported.
    """
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise UserError(
            f"{spec}: needs tensorflow-datasets ({one_line(error)}); pip install tensorflow-datasets"
        ) from None
    return tensorflow_datasets


def builder_directory(spec: str, parts: Parts, flag: str, root: Path) -> Path:
    """The folder with `dataset_info.json`.

    Raises:
        UserError: there is none and none can be made.
    """
    given = Path(parts.dataset).expanduser()
    if (given / INFORMATION).is_file():
        return given
    if given.is_absolute() or parts.dataset.startswith(("./", "../", "~")):
        words = f"it has no {INFORMATION}" if given.is_dir() else "no such folder"
        nested = sorted(given.glob(f"**/{INFORMATION}")) if given.is_dir() else []
        hint = f"; did you mean {nested[0].parent}?" if nested else ""
        raise SettingError(flag, f"{spec}: no prepared dataset in {given}: {words}{hint}")
    found = prepared(spec, parts, flag, root)
    return found or prepare(spec, parts, flag, root)


def prepared(spec: str, parts: Parts, flag: str, root: Path) -> Path | None:
    """The folder of a dataset below the data folder: `NAME/CONFIG/VERSION`, the newest version."""
    base_folder = root / parts.dataset
    found = newest_version(base_folder, parts.version)
    if found or "/" in parts.dataset or not base_folder.is_dir():
        return found
    configs = {
        folder.name: version
        for folder in sorted(base_folder.iterdir())
        if folder.is_dir() and (version := newest_version(folder, parts.version))
    }
    if len(configs) > 1:
        default = default_config(base_folder)
        if default not in configs:
            raise SettingError(flag, f"{spec}: which of its configurations? There are {', '.join(configs)}; {GRAMMAR}")
        return configs[default]
    return next(iter(configs.values()), None)


def default_config(folder: Path) -> str:
    """The name that TFDS notes as a dataset's default configuration, or nothing."""
    try:
        return json.loads((folder / ".config" / "metadata.json").read_bytes())["default_config_name"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def newest_version(folder: Path, version: str) -> Path | None:
    """The folder of a version (the newest when none is named) that is prepared."""
    if not folder.is_dir():
        return None
    versions = [
        path
        for path in folder.iterdir()
        if VERSION.fullmatch(path.name) and version in ("", path.name) and (path / INFORMATION).is_file()
    ]
    return max(versions, key=lambda path: tuple(map(int, path.name.split("."))), default=None)


def prepare(spec: str, parts: Parts, flag: str, root: Path) -> Path:
    """Downloads and prepares a dataset that TFDS has code for."""
    tfds = imported(spec)
    name = parts.dataset + (f":{parts.version}" if parts.version else "")
    try:
        builder = tfds.builder(name, data_dir=root)
    except tfds.core.registered.DatasetNotFoundError:
        known = tfds.list_builders(with_community_datasets=False)
        hint = did_you_mean(parts.dataset.split("/")[0], known)
        raise SettingError(
            flag, f"{spec}: unknown dataset: not prepared in {root}, and TensorFlow Datasets has no such name{hint}"
        ) from None
    except Exception as error:  # an unknown configuration or version, or a package that its code needs
        raise SettingError(flag, f"{spec}: not prepared in {root}, and cannot be ({one_line(error)})") from error
    refuse_without_network(spec, builder.url_infos, root)
    import_tensorflow()
    try:
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    except Exception as error:  # no network, a moved address, a full disk, a manual download: each its own class
        raise UserError(
            f"{spec}: not prepared in {root}, and could not be downloaded and prepared ({one_line(error)})"
        ) from error
    return Path(builder.data_dir)


def refuse_without_network(spec: str, addresses: Iterable[str], root: Path) -> None:
    """TFDS tries an address that cannot be reached ten times, over minutes; asking for the host's name tells at once.

    Raises:
        UserError: no host of the downloads has an address, and no proxy is set that could know better.
    """
    hosts = sorted({host for address in addresses if (host := urllib.parse.urlsplit(address).hostname)})
    if not hosts or urllib.request.getproxies():
        return
    for host in hosts[:3]:
        with contextlib.suppress(OSError):
            socket.getaddrinfo(host, None)
            return
    raise UserError(
        f"{spec}: not prepared in {root}, and cannot be downloaded: no network here ({hosts[0]} has no address); "
        "prepare it on a machine with a network and copy its folder"
    )


@contextlib.contextmanager
def fewer_log_lines() -> Iterator[None]:
    """TFDS and TensorFlow warn of deprecated names, among them their own."""
    loggers = [logging.getLogger(name) for name in ("absl", "tensorflow")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


def flat_features(features: Any, prefix: str = "") -> dict[str, str]:
    """Every feature's path and kind: "text", "messages" or what else it is; see the module's docstring."""
    import tensorflow_datasets as tfds

    flat: dict[str, str] = {}
    inner = features.feature if isinstance(features, tfds.features.Sequence) else features
    if isinstance(inner, tfds.features.FeaturesDict):
        names = set(inner.keys())
        if inner is not features and prefix and names & set(SPEAKER_FIELDS) and names & set(CONTENT_FIELDS):
            flat[prefix] = "messages"
        for name, feature in inner.items():
            flat.update(flat_features(feature, f"{prefix}/{name}" if prefix else name))
        return flat
    kind = getattr(features, "np_dtype", None)
    shape = getattr(features, "shape", None)
    is_text = isinstance(inner, tfds.features.Text) or (kind is not None and str(kind) == "object")
    flat[prefix] = "text" if is_text and shape is not None and len(shape) <= 1 else type(features).__name__
    return flat


def value_at(example: Any, path: list[str]) -> Any:
    """The value of a feature in a feature."""
    for name in path:
        example = example[name]
    return example


def text_of(value: bytes | str, place: str) -> str:
    """The text.

    Raises:
        UserError: not UTF-8.
    """
    if isinstance(value, str):
        return value
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: byte {error.start}: not UTF-8 (0x{value[error.start]:02x})") from None


def one_line(error: BaseException, longest: int = 300) -> str:
    """An error of somebody else's code on one line of ours."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= longest else words[:longest] + "…"
