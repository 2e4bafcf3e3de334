"""Text in TensorFlow Datasets: found by name and by folder without a network, and one line for what is not there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, refusal
from tfgpt.common.errors import UserError
from tfgpt.corpus.sources import Source, open_sources, tfds
from tfgpt.pipeline.augmentation import read_paraphrases


def example(number: int) -> dict:
    return {
        "text": f"Text {number}: süß 漢 🙂\n",
        "label": number % 2,
        "article": {"title": f"Title {number}", "body": f"Body {number}"},
        "sentences": [f"One {number}.", "Two."][: number % 3],
        "messages": [
            {"role": "user", "content": f"Question {number}?"},
            {"role": "assistant", "content": f"Answer {number}."},
        ],
        "turns": [{"from": "human", "value": f"Question {number}?"}, {"from": "gpt", "value": f"Answer {number}."}],
    }


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A folder of prepared datasets: `letters/plain`, also as ArrayRecord in `letters/records`, and `only_text`."""
    import tensorflow_datasets

    kinds = tensorflow_datasets.features
    features = {
        "text": kinds.Text(),
        "label": kinds.ClassLabel(num_classes=2),
        "article": {"title": kinds.Text(), "body": kinds.Text()},
        "sentences": kinds.Sequence(kinds.Text()),
        "messages": kinds.Sequence({"role": kinds.Text(), "content": kinds.Text()}),
        "turns": kinds.Sequence({"from": kinds.Text(), "value": kinds.Text()}),
    }
    folder = tmp_path_factory.mktemp("tfds")
    store = tensorflow_datasets.dataset_builders.store_as_tfds_dataset
    options = {"data_dir": folder, "disable_shuffling": True}
    splits = {"train": range(50), "test": range(50, 60)}
    letters = {name: [(number, example(number)) for number in numbers] for name, numbers in splits.items()}
    for config, file_format in (("plain", "tfrecord"), ("records", "array_record")):
        made = kinds.FeaturesDict(features)
        store("letters", "1.0.0", made, letters, config=config, file_format=file_format, **options)
    bodies = [(number, {"body": f"{number}" if number != 1 else b"caf\xe9"}) for number in range(3)]
    store("only_text", "2.0.0", kinds.FeaturesDict({"body": kinds.Text()}), {"train": bodies}, **options)
    return folder


def opened(spec: str, data_dir: Path) -> Source:
    return open_sources([spec], tfds_data_dir=str(data_dir))[0]


def texts(spec: str, data_dir: Path) -> list[str]:
    return [document["text"] for document in opened(spec, data_dir).documents()]


ALL_TEXTS = [example(number)["text"] for number in range(50)]


@pytest.mark.parametrize("config", ["plain", "records"])
@pytest.mark.parametrize("spec", ["letters/{}:train#text", "letters/{}:train", "letters/{}:1.0.0:train#text"])
def test_a_prepared_dataset_is_read_by_name(data_dir, spec, config):
    assert sorted(texts(f"tfds:{spec.format(config)}", data_dir)) == sorted(ALL_TEXTS)


def test_a_prepared_dataset_is_read_by_its_folder(data_dir):
    folder = data_dir / "letters" / "plain" / "1.0.0"
    assert sorted(texts(f"tfds:{folder}:test#text", Path("/nowhere"))) == [example(n)["text"] for n in range(50, 60)]


def test_the_order_is_that_of_tensorflow_datasets_itself(data_dir):
    import tensorflow_datasets

    folder = data_dir / "letters" / "plain" / "1.0.0"
    read = tensorflow_datasets.ReadConfig(interleave_cycle_length=1)
    dataset = tensorflow_datasets.builder_from_directory(folder).as_dataset(split="train[10:30]", read_config=read)
    expected = [example["text"].decode() for example in dataset.as_numpy_iterator()]
    assert texts(f"tfds:{folder}:train[10:30]#text", data_dir) == expected


def test_slices_and_sums_of_splits(data_dir):
    assert len(texts("tfds:letters/plain:train[:10%]+test#text", data_dir)) == 15


def test_features_in_features_sequences_and_dialogues(data_dir):
    assert sorted(texts("tfds:letters/plain:train[:3]#article/body", data_dir))[0].startswith("Body ")
    sentences = opened("tfds:letters/plain:train#sentences", data_dir)
    assert sorted(document["text"] for document in sentences.documents())[0] == "One 1."
    assert "One 2.\nTwo." in {document["text"] for document in sentences.documents()}
    assert sentences.dropped == {"empty": 17}  # 0, 3, …, 48 have no sentence
    dialogues = [document["messages"] for document in opened("tfds:letters/plain:train#messages", data_dir).documents()]
    assert len(dialogues) == 50
    assert example(7)["messages"] in dialogues
    sharegpt = [document["messages"] for document in opened("tfds:letters/plain:train#turns", data_dir).documents()]
    assert sharegpt == dialogues
    exchanges = opened("tfds:letters/plain:train#article/title,article/body", data_dir).documents()
    title, body = example(0)["article"]["title"], example(0)["article"]["body"]
    expected = [{"role": "user", "content": title}, {"role": "assistant", "content": body}]
    assert expected in [document["messages"] for document in exchanges]
    spec = "tfds:letters/plain:train#article/title,article/body"
    assert read_paraphrases(spec, str(data_dir))[title] == [body]


def test_the_default_configuration_is_taken_when_none_is_named(data_dir, tmp_path):
    (tmp_path / "letters").symlink_to(data_dir / "letters")
    metadata = data_dir / "letters" / ".config" / "metadata.json"
    assert metadata.is_file()
    assert len(texts("tfds:letters:test#text", tmp_path)) == 10


def test_the_fingerprint_needs_no_tensorflow_and_reading_leaves_the_choice_of_logical_devices_open(data_dir):
    prints = {
        opened(f"tfds:letters/{config}:{split}#text", data_dir).fingerprint()
        for config in ("plain", "records")
        for split in ("train", "test")
    }
    assert len(prints) == 4
    code = f"""
import sys
from tfgpt.corpus.sources import open_sources
source = open_sources(['tfds:letters/plain:train#text'], tfds_data_dir={str(data_dir)!r})[0]
print(source.fingerprint(), 'tensorflow' in sys.modules, 'tensorflow_datasets' in sys.modules)
count = len(list(source.documents()))
import tensorflow as tf
cpu = tf.config.list_physical_devices('CPU')[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
print(count, len(tf.config.list_logical_devices('CPU')))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    fingerprint, *rest = result.stdout.split()
    assert fingerprint in prints
    assert rest == ["False", "False", "50", "2"], result.stderr


LISTED = (
    "article/body, article/title, label (ClassLabel), messages, messages/content, messages/role, sentences, text, "
    "turns, turns/from, turns/value"
)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("letters/plain", "no split named; write tfds:NAME/CONFIG:SPLIT#FEATURE"),
        ("letters/plain:valid#text", "no split 'valid'; there are train, test"),
        ("letters/plain:train#txt", f"no feature 'txt'; there are {LISTED}"),
        ("letters/plain:train#label", f"the feature 'label' is ClassLabel, not text; there are {LISTED}"),
        ("letters/plain:train[:1x]#text", "cannot be read from"),
        ("letters/plain:train[90:]#text", "cannot be read from"),
        ("leters:train#text", "unknown dataset: not prepared in"),
        ("lm1bb:train#text", "and TensorFlow Datasets has no such name; did you mean lm1b"),
        ("letters:9.9.9:train#text", "unknown dataset: not prepared in"),
        ("/nowhere/1.0.0:train#text", "no prepared dataset in /nowhere/1.0.0: no such folder"),
    ],
)
def test_a_missing_dataset_split_or_feature_is_one_line(data_dir, spec, expected):
    line = refusal(texts, f"tfds:{spec}", data_dir)
    assert f"tfds:{spec}" in line and expected in line


def test_an_example_that_cannot_be_read_is_counted_unless_strict(data_dir):
    source = opened("tfds:only_text:train", data_dir)  # The only text needs no name.
    assert [document["text"] for document in source.documents()] == ["0", "2"]
    words = "tfds:only_text:train: example 2: byte 3: not UTF-8 (0xe9)"
    assert (source.skipped.num_skipped, source.skipped.read, source.skipped.first) == (1, 3, [words])
    source.strict = True
    with pytest.raises(UserError, match=re.escape(words)):
        list(source.documents())


def test_a_folder_above_the_dataset_is_refused_with_the_datasets(data_dir):
    with pytest.raises(UserError, match=r"it has no dataset_info\.json; did you mean .*letters/plain/1\.0\.0\?"):
        opened(f"tfds:{data_dir / 'letters'}:train", data_dir)


@pytest.mark.parametrize("damage", ["changed", "truncated"])
def test_a_damaged_record_is_named(data_dir, tmp_path, damage):
    import shutil

    folder = tmp_path / "1.0.0"
    shutil.copytree(data_dir / "letters" / "plain" / "1.0.0", folder)
    (records,) = folder.glob("*-train.tfrecord*")
    content = bytearray(records.read_bytes())
    content[len(content) // 2] ^= 0xFF
    records.write_bytes(content if damage == "changed" else content[: len(content) // 3])
    with pytest.raises(UserError, match=f"cannot be read from {records}"):
        texts(f"tfds:{folder}:train#text", data_dir)


def test_a_known_dataset_without_a_network_has_its_line_at_once(monkeypatch):
    """The addresses end in `.invalid`, which never has an address (RFC 2606)."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=r"no network here \(data\.invalid has no address\); prepare it on a machine"):
        tfds.check_network("tfds:x:train: not prepared in /data", ["https://data.invalid/x.tar.gz"])
