"""`tfds:…`: text in TensorFlow Datasets, prepared on this machine or downloaded and prepared.

    tfds:NAME:SPLIT#FEATURE             tfds:lm1b:train#text
    tfds:NAME/CONFIG:SPLIT#FEATURE      tfds:wikipedia/20230601.en:train#text
    tfds:NAME:VERSION:SPLIT#FEATURE     tfds:lm1b:1.1.0:train[:10%]#text
    tfds:DIRECTORY:SPLIT#FEATURE        tfds:/data/my_dataset/1.0.0:train#dialogue/turns

A dataset prepared in the data folder is read without its code and without a network. SPLIT is any split that TensorFlow
Datasets reads (`train[:10%]`, `train+test`). FEATURE is a text, a sequence of texts (joined by line ends), or a
sequence of `role` and `content` (a dialogue; also `from` and `value`, or `speaker` and `utterance`); `a/b` is a nested
feature. Several texts separated by commas are one exchange, the last one the answer: `#instruction,input,output`.
Without #FEATURE it is `text` or `messages`, or the only text.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tfgpt.common.atomic_files import read_json, sha256_of_json
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
RECORDS_AT_ONCE = 256


class TensorFlowDatasetsSource(base.Source):
    """The documents of one split.

    Args:
        spec: as in the module's docstring.
        data_dir: the folder of prepared datasets; None: $TFDS_DATA_DIR or ~/tensorflow_datasets.
    """

    def __init__(self, spec: str, flag: str, hashes: FileHashes, data_dir: str | None = None):
        super().__init__(spec)
        self.flag, self.hashes = flag, hashes
        rest, _, self.feature = spec.removeprefix("tfds:").partition("#")
        match = PATTERN.fullmatch(rest)
        if not match:
            raise self.error(f"no split named; {GRAMMAR}")
        self.dataset, self.version, self.split = match["dataset"], match["version"] or "", match["split"]
        self.root = Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
        self.directory = self.find_directory()
        information = read_json(self.directory / INFORMATION)
        information = information if isinstance(information, dict) else {}
        splits = [split.get("name", "") for split in information.get("splits", [])]
        names = [re.split(r"\[", name.strip())[0] for name in self.split.split("+")]
        for name in names:
            if name not in splits and name != "all":
                raise self.error(f"no split {name!r}; there are {', '.join(splits) or 'none'}")
        # All files where their names do not name the split.
        files = sorted(path for path in self.directory.iterdir() if path.is_file())
        records = [path for path in files if any(f"-{name}." in path.name for name in names)]
        decisive = [path for path in files if path in records or path.suffix in (".json", ".txt")]
        self.files = decisive if records else files
        self.size = sum(path.stat().st_size for path in self.files)
        name, version = information.get("name", self.dataset), information.get("version", "")
        self.description = f"TensorFlow Datasets {name} {version}".strip()
        licence = (information.get("redistributionInfo") or {}).get("license")
        self.licence = " ".join(str(licence).split()) if licence else "not recorded in the dataset's information"

    def error(self, problem: str) -> SettingError:
        return SettingError(self.flag, f"{self.spec}: {problem}")

    def fingerprint(self) -> str:
        names = [path.name for path in self.files]
        return sha256_of_json([list(zip(names, self.hashes.of(self.files)))])

    def read(self) -> Iterator[base.Document]:
        import_tensorflow()
        import tensorflow_datasets as tfds

        try:
            builder = tfds.builder_from_directory(self.directory)
        except Exception as error:  # TFDS raises errors of many classes.
            raise UserError(f"{self.directory}: cannot be opened by TensorFlow Datasets ({one_line(error)})") from error
        features = self.feature.split(",")
        paths = [self.feature_path(builder.info.features, name, len(features) > 1) for name in features]
        for example in self.examples(tfds, builder, [path[0] for path in paths]):
            self.skipped.read += 1
            try:
                values = [functools.reduce(lambda value, name: value[name], path, example) for path in paths]
                yield from self.example_documents(values, f"{self.spec}: example {self.skipped.read}")
            except UserError as error:
                self.skipped.skip(error)
        if not self.skipped.read:
            raise UserError(f"{self.spec}: the split has no example")
        self.skipped.raise_if_most(self.spec)

    def examples(self, tfds: Any, builder: Any, names: Sequence[str]) -> Iterator[Mapping[str, Any]]:
        """Yields the features `names` of the examples in the order of the files; updates `position`.

        TFRecord and ArrayRecord files are parsed as NumPy arrays: `builder.as_dataset` starts TensorFlow's runtime,
        after which a training run in the same process cannot choose its logical devices.
        """
        file = str(self.directory)
        try:
            decoding = tfds.decode.PartialDecoding(dict.fromkeys(names, True))
            read = RECORD_READERS.get(builder.info.file_format.value)
            if read is None:
                dataset = builder.as_dataset(split=self.split, shuffle_files=False, decoders=decoding)
                yield from dataset.as_numpy_iterator()
                return
            features = decoding.extract_features(builder.info.features)
            instructions = builder.info.splits[self.split].file_instructions
            total, count = sum(instruction.take for instruction in instructions), 0
            for instruction in instructions:
                file, end = str(instruction.filename), count + instruction.take
                for record in read(file, instruction.skip, instruction.skip + instruction.take):
                    count += 1
                    self.position = (self.size or 0) * count // total
                    yield features.deserialize_example_np(record)
                if count < end:
                    raise ValueError(f"the file ends {end - count} examples too early")
        except Exception as error:  # A wrong slice, a damaged record: TFDS and TensorFlow have a class for each.
            raise UserError(f"{self.spec}: cannot be read from {file} ({one_line(error)})") from error

    def feature_path(self, features: Any, feature: str, text_only: bool) -> list[str]:
        """Returns the path of a feature, by default of the usual or only one."""
        kinds = dict(sorted(feature_kinds(features).items()))
        texts = [name for name, kind in kinds.items() if kind in ("text", "messages")]
        listed = ", ".join(name if name in texts else f"{name} ({kind})" for name, kind in kinds.items())
        name = feature.strip().strip("/")
        if not name:
            usual = [name for name in ("text", "messages") if name in texts]
            if not usual and len(texts) != 1:
                raise self.error(f"name the feature with #FEATURE; there are {listed}")
            name = (usual or texts)[0]
        if name not in kinds:
            raise self.error(f"no feature {name!r}; there are {listed}")
        if name not in texts or (text_only and kinds[name] != "text"):
            raise self.error(f"the feature {name!r} is {kinds[name]}, not text; there are {listed}")
        return name.split("/")

    def example_documents(self, values: Sequence[Any], place: str) -> Iterator[base.Document]:
        value, messages = values[0], None
        if len(values) > 1:
            *request, reply = (decode_text(text, place) for text in values)
            request_text = "\n\n".join(text for text in request if text)
            messages = [{"role": "user", "content": request_text}, {"role": "assistant", "content": reply}]
        elif isinstance(value, Mapping):
            speaker, content = first_field(value, SPEAKER_FIELDS), first_field(value, CONTENT_FIELDS)
            turns = [
                {speaker: decode_text(name, place), content: decode_text(text, place)}
                for name, text in zip(value[speaker], value[content])
            ]
            messages = to_openai_messages(turns, self.feature or "messages", place)
        if messages is not None:
            yield base.with_id({"messages": validate_messages(messages, place), "source": self.spec})
        else:
            lines = [value] if isinstance(value, (bytes, str)) else value
            yield from base.text_documents("\n".join(decode_text(line, place) for line in lines), self.spec)

    def find_directory(self) -> Path:
        """Returns the folder with `dataset_info.json`; prepares the dataset where it is missing."""
        given = Path(self.dataset).expanduser()
        if (given / INFORMATION).is_file():
            return given
        if given.is_absolute() or self.dataset.startswith(("./", "../", "~")):
            problem = f"it has no {INFORMATION}" if given.is_dir() else "no such folder"
            nested = sorted(given.glob(f"**/{INFORMATION}")) if given.is_dir() else []
            hint = f"; did you mean {nested[0].parent}?" if nested else ""
            raise self.error(f"no prepared dataset in {given}: {problem}{hint}")
        folder = self.root / self.dataset
        if found := self.newest_version(folder):
            return found
        configs = {} if "/" in self.dataset else subfolders(folder)
        prepared = {name: found for name, config in configs.items() if (found := self.newest_version(config))}
        if len(prepared) > 1:
            default = default_config(folder)
            if default not in prepared:
                raise self.error(f"which of its configurations? There are {', '.join(prepared)}; {GRAMMAR}")
            return prepared[default]
        return next(iter(prepared.values()), None) or self.prepare()

    def newest_version(self, folder: Path) -> Path | None:
        """Returns the folder of the prepared version, by default the newest one."""
        versions = [
            path
            for name, path in subfolders(folder).items()
            if VERSION.fullmatch(name) and self.version in ("", name) and (path / INFORMATION).is_file()
        ]
        return max(versions, key=lambda path: tuple(map(int, path.name.split("."))), default=None)

    def prepare(self) -> Path:
        """Downloads and prepares a dataset that TFDS has code for."""
        import tensorflow_datasets as tfds

        missing = f"not prepared in {self.root}"
        try:
            builder = tfds.builder(":".join(filter(None, (self.dataset, self.version))), data_dir=self.root)
        except tfds.core.registered.DatasetNotFoundError:
            known = tfds.list_builders(with_community_datasets=False)
            hint = did_you_mean(self.dataset.split("/")[0], known)
            raise self.error(f"unknown dataset: {missing}, and TensorFlow Datasets has no such name{hint}") from None
        except Exception as error:  # An unknown configuration or version, or a package that its code needs.
            raise self.error(f"{missing}, and cannot be ({one_line(error)})") from error
        check_network(f"{self.spec}: {missing}", builder.url_infos)
        import_tensorflow()
        try:
            builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
        except Exception as error:  # No network, a moved address, a full disk, a manual download.
            problem = f"could not be downloaded and prepared ({one_line(error)})"
            raise UserError(f"{self.spec}: {missing}, and {problem}") from error
        return Path(builder.data_dir)


def read_tfrecords(path: str, start: int, end: int) -> Iterator[bytes]:
    """Yields the records `start` to `end` of a TFRecord file; checks their checksums."""
    import tensorflow as tf

    # Deprecated in favour of tf.data, which starts the runtime.
    yield from itertools.islice(tf.compat.v1.io.tf_record_iterator(path), start, end)


def read_array_records(path: str, start: int, end: int) -> Iterator[bytes]:
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(path)
    for first in range(start, end, RECORDS_AT_ONCE):
        yield from reader.read(first, min(first + RECORDS_AT_ONCE, end))


RECORD_READERS = {"tfrecord": read_tfrecords, "array_record": read_array_records}


def subfolders(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in sorted(folder.iterdir()) if path.is_dir()} if folder.is_dir() else {}


def default_config(folder: Path) -> str:
    """Returns the name of a dataset's default configuration, as TFDS keeps it, or ""."""
    with contextlib.suppress(UserError, KeyError, TypeError):
        return read_json(folder / ".config" / "metadata.json")["default_config_name"]
    return ""


def check_network(missing: str, addresses: Iterable[str]) -> None:
    """Refuses a download without a network; TFDS would try each address ten times, which takes minutes."""
    hosts = sorted({host for address in addresses if (host := urllib.parse.urlsplit(address).hostname)})
    if not hosts or urllib.request.getproxies():
        return
    for host in hosts[:3]:
        with contextlib.suppress(OSError):
            socket.getaddrinfo(host, None)
            return
    raise UserError(
        f"{missing}, and cannot be downloaded: no network here ({hosts[0]} has no address); "
        "prepare it on a machine with a network and copy its folder"
    )


def feature_kinds(features: Any, prefix: str = "") -> dict[str, str]:
    """Returns the path and kind of each feature: "text", "messages" or the name of its class."""
    import tensorflow_datasets as tfds

    inner = features.feature if isinstance(features, tfds.features.Sequence) else features
    if isinstance(inner, tfds.features.FeaturesDict):
        kinds: dict[str, str] = {}
        names = set(inner.keys())
        if inner is not features and prefix and names & set(SPEAKER_FIELDS) and names & set(CONTENT_FIELDS):
            kinds[prefix] = "messages"
        for name, feature in inner.items():
            kinds.update(feature_kinds(feature, f"{prefix}/{name}" if prefix else name))
        return kinds
    dtype, shape = getattr(features, "np_dtype", None), getattr(features, "shape", None)
    is_text = isinstance(inner, tfds.features.Text) or str(dtype) == "object"
    return {prefix: "text" if is_text and shape is not None and len(shape) <= 1 else type(features).__name__}


def decode_text(value: bytes | str, place: str) -> str:
    if isinstance(value, str):
        return value
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: byte {error.start}: not UTF-8 (0x{value[error.start]:02x})") from None


def one_line(error: BaseException, longest: int = 300) -> str:
    """Returns the message of an error of another library on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= longest else text[:longest] + "…"
