"""Every form of a model stands for it where weights are needed, converted once; logits are those of peft."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers

from tests.conftest import refusal
from tests.conversion.gguf_files import byte_level_vocabulary, write_gguf
from tests.conversion.test_sources import Hub, hub, model  # noqa: F401 (fixtures)
from tests.conversion.tiny import TEMPLATE, VOCABULARY, save_tiny
from tfgpt import generate
from tfgpt.common.errors import UserError
from tfgpt.common.model_paths import find_model
from tfgpt.conversion.cached_conversion import model_directory, stored_base_name
from tfgpt.conversion.config import ConvertConfig
from tfgpt.conversion.convert import convert
from tfgpt.corpus.config import CorpusConfig
from tfgpt.model.checkpoints.huggingface import load_decoder
from tfgpt.pipeline.config import BatchConfig
from tfgpt.tokenization.config import TokenizerConfig
from tfgpt.tokenization.load import load_tokenizer
from tfgpt.training.config import RunConfig
from tfgpt.training.train_config import TrainConfig

IDS = np.arange(3, 19, dtype=np.int32)[None]


@pytest.fixture(scope="module")
def foreign(tmp_path_factory, documents, sentencepiece_model) -> Path:
    directory = tmp_path_factory.mktemp("foreign")
    save_tiny(directory, "SmolLM2", documents, sentencepiece_model)
    return directory


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory, foreign) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(foreign)
    write_gguf(path, theirs, "F32", byte_level_vocabulary(foreign, VOCABULARY, TEMPLATE))
    return path


@pytest.fixture
def notes(tmp_path, monkeypatch) -> list[str]:
    monkeypatch.setenv("TFGPT_CACHE_DIR", str(tmp_path / "cache"))
    return []


def logits_of(directory: Path) -> np.ndarray:
    return load_decoder(directory)({"token_ids": IDS}).numpy()


def theirs_of(loaded) -> np.ndarray:
    with torch.no_grad():
        return loaded(torch.tensor(IDS, dtype=torch.long)).logits.numpy()


def test_a_gguf_file_is_converted_once_and_known_by_its_content(gguf_file, foreign, notes, tmp_path):
    first = model_directory(str(gguf_file), log=notes.append)
    assert first.is_relative_to(tmp_path / "cache" / "models") and len(notes) == 1
    assert notes[0].startswith("Converting tiny.gguf (GGUF: F32; ") and str(first) in notes[0]
    expected = theirs_of(transformers.AutoModelForCausalLM.from_pretrained(foreign))
    np.testing.assert_allclose(logits_of(first), expected, atol=1e-4)
    assert json.loads((first / "training.json").read_text())["source"] == str(gguf_file)

    moved = shutil.copy(gguf_file, tmp_path / "moved.gguf")
    assert model_directory(str(moved), log=notes.append) == first and len(notes) == 1
    content = bytearray(gguf_file.read_bytes())
    content[-1] ^= 1  # The last weight's sign or exponent.
    (tmp_path / "moved.gguf").write_bytes(content)
    assert model_directory(str(moved), log=notes.append) != first and len(notes) == 2


def test_our_own_directories_are_taken_as_they_are(model, notes, tmp_path):  # noqa: F811
    shutil.copytree(model, tmp_path / "run" / "model")
    assert model_directory(str(tmp_path / "run"), log=notes.append) == tmp_path / "run" / "model"
    assert notes == [] and not (tmp_path / "cache").exists()


def test_a_directory_of_another_program_is_converted_with_its_own_tokenizer(foreign, notes):
    directory = model_directory(str(foreign), log=notes.append)
    assert directory != foreign and len(notes) == 1
    assert "tfgpt" in json.loads((directory / "tokenizer_config.json").read_text())
    assert model_directory(str(directory), log=notes.append) == directory and len(notes) == 1


def test_a_name_on_the_hub_is_downloaded_and_then_found_without_a_network(hub, notes, monkeypatch):  # noqa: F811
    directory = model_directory("someone/tiny", log=notes.append)
    described = json.loads((directory / "training.json").read_text())
    assert described["source_description"]["revision"] == Hub.commit and len(notes) == 1
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    Hub.asked = []
    assert model_directory("hf:someone/tiny", log=notes.append) == directory
    assert Hub.asked == [] and len(notes) == 1


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, foreign) -> Path:
    """An adapter that peft wrote; it names the directory of transformers' below it."""
    torch.manual_seed(1)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(foreign)
    adapted = peft.get_peft_model(theirs, peft.LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "down_proj"]))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    directory = tmp_path_factory.mktemp("adapter")
    adapted.save_pretrained(directory)
    return directory


@pytest.mark.parametrize("base", ["directory", "GGUF file", "beside", "run"])
def test_an_adapter_is_merged_into_its_base_in_whatever_form_that_is_named(
    base, adapter, foreign, gguf_file, notes, tmp_path
):
    source = shutil.copytree(adapter, tmp_path / "adapter")
    named = {"directory": foreign, "GGUF file": gguf_file, "beside": "base", "run": tmp_path / "run"}[base]
    if base == "beside":
        shutil.copytree(foreign, source / "base")
    if base == "run":
        shutil.copytree(foreign, tmp_path / "run" / "model")
    config = json.loads((source / "adapter_config.json").read_text())
    (source / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(named)}))
    whole = transformers.AutoModelForCausalLM.from_pretrained(foreign)
    expected = theirs_of(peft.PeftModel.from_pretrained(whole, adapter))

    output = convert(ConvertConfig(source=str(source), output=str(tmp_path / "merged")), notes.append)
    np.testing.assert_allclose(logits_of(output), expected, atol=1e-4)
    assert any(line.startswith(f"Source:  {source} (LoRA adapter of {named}, merged)") for line in notes)
    np.testing.assert_array_equal(logits_of(model_directory(str(source))), logits_of(output))


def test_an_adapter_on_the_hub_is_merged_into_the_base_it_names(hub, adapter, foreign, notes, monkeypatch):  # noqa: F811
    monkeypatch.setattr(Hub, "files", {path.name: path.read_bytes() for path in adapter.iterdir() if path.is_file()})
    directory = model_directory("someone/tiny", log=notes.append)
    expected = theirs_of(
        peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(foreign), adapter)
    )
    np.testing.assert_allclose(logits_of(directory), expected, atol=1e-4)


def test_an_adapter_whose_base_is_nowhere_names_its_file_and_the_nearest_name(adapter, foreign, tmp_path):
    source = shutil.copytree(adapter, tmp_path / "adapter")
    shutil.copytree(foreign, tmp_path / "smollm2")
    config = json.loads((source / "adapter_config.json").read_text()) | {
        "base_model_name_or_path": str(tmp_path / "smolm2")
    }
    (source / "adapter_config.json").write_text(json.dumps(config))
    line = refusal(model_directory, str(source))
    assert line.startswith(f"{source}/adapter_config.json: base_model_name_or_path: {tmp_path}/smolm2: ")
    assert f"did you mean {tmp_path}/smollm2?" in line


def test_a_training_begins_from_any_form_and_keeps_its_name(gguf_file, notes):
    recipe = TrainConfig(
        corpus=CorpusConfig(train_text=("a.txt",)),
        run=RunConfig(init_from=str(gguf_file)),
        batch=BatchConfig(sequence_length=16),
    )
    assert recipe.initial_model == model_directory(str(gguf_file))
    assert recipe.initial_config().vocabulary_size == VOCABULARY
    assert recipe.tokenizer_config().tokenizer == str(recipe.initial_model)
    assert recipe.flags()["init_from"] == str(gguf_file)
    assert stored_base_name(str(gguf_file)) == str(gguf_file)
    assert stored_base_name("hf:someone/tiny") == "someone/tiny"


def test_a_run_is_not_begun_over_the_one_it_starts_from(model, notes, tmp_path):  # noqa: F811
    shutil.copytree(model, tmp_path / "run" / "model")
    batch, corpus = BatchConfig(sequence_length=16), CorpusConfig(train_text=("a.txt",))
    run = RunConfig(init_from=str(tmp_path / "run"), run_dir=str(tmp_path / "run"))
    with pytest.raises(UserError, match="--run_dir: .*/run is the run that --init_from starts from"):
        TrainConfig(corpus=corpus, batch=batch, run=run)
    other = TrainConfig(corpus=corpus, batch=batch, run=dataclasses.replace(run, run_dir=str(tmp_path / "ru")))
    assert other.initial_model == tmp_path / "run" / "model"


def test_a_run_gives_its_tokenizer(model, notes, tmp_path):  # noqa: F811
    shutil.copytree(model, tmp_path / "run" / "model")
    assert load_tokenizer(TokenizerConfig(tokenizer=str(tmp_path / "run")).tokenizer).fingerprint == (
        load_tokenizer(model).fingerprint
    )
    with pytest.raises(UserError, match="--tokenizer: .*/runn: is neither bpe .* did you mean .*/run"):
        TokenizerConfig(tokenizer=str(tmp_path / "runn"))


def test_generate_writes_from_a_gguf_file_and_refuses_an_export_by_its_origin(gguf_file, notes, tmp_path, capsys):
    flags = ["--prompt=a", "--max_new_tokens=4", "--temperature=0"]
    assert generate.main([f"--model={gguf_file}", *flags]) == 0
    written = capsys.readouterr()
    assert written.err.startswith("Converting tiny.gguf") and "Converting" not in written.out
    version = tmp_path / "served" / "1"
    (version / "assets.extra").mkdir(parents=True)
    (version / "saved_model.pb").touch()
    (version / "assets.extra" / "tfgpt.json").write_text(json.dumps({"model": str(gguf_file)}))
    assert find_model(str(tmp_path / "served")).kind == "export"
    assert generate.main([f"--model={tmp_path / 'served'}", *flags]) == 2
    assert f"give the model it was made of: {gguf_file} (" in capsys.readouterr().err
