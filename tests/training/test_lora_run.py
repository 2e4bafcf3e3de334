"""Claims about a run with adapters: what is trained, saved, resumed, and what can be done with the outcome."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from tests.training.test_run import SMALL, assert_same_end, final_state, parse, recipe, rows, train_recipe
from tfgpt.common.atomic_files import read_json
from tfgpt.common.errors import SettingError, UserError
from tfgpt.conversion.cached_conversion import model_directory
from tfgpt.generation.config import SamplingConfig
from tfgpt.generation.generator import Generator
from tfgpt.model.checkpoints.huggingface import load_decoder

SHAPE = ("num_", "hidden_dim", "head_dim", "intermediate_dim", "dropout", "preset", "tokenizer")
LORA = ("--lora_rank=4", "--lora_alpha=8", "--learning_rate=0.01", "--lora_dropout=0.1", "--ema_decay=0.5")


def run(text: Path, run_dir: Path, *more: str) -> int:
    """A short run; one that begins with a model has its shape."""
    began = any(flag.startswith("--init_from") for flag in more)
    flags = [flag for flag in SMALL if not (began and flag[2:].startswith(SHAPE))]
    return train_recipe(parse(*flags, f"--train_text={text}", f"--run_dir={run_dir}", *more))


@pytest.fixture(scope="module")
def base(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("base") / "run"
    assert run(text_file, directory, "--max_steps=3", "--dropout=0", "--save_best=false") == 0
    return directory / "model"


@pytest.fixture(scope="module")
def tuned(base: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("lora") / "run"
    assert run(text_file, directory, f"--init_from={base}", "--base_weights=int8", *LORA) == 0
    return directory


def test_only_adapters_are_trained_and_saved(base: Path, tuned: Path):
    names = [name for name in final_state(tuned) if not name.startswith("counters/")]
    weights = [name for name in names if name.startswith("weights/")]
    assert len(weights) == 14 and all("/lora_kernel_" in name for name in weights)
    assert all("lora_kernel_" in name or name.startswith("optimizer/") for name in names)
    assert len(names) == 14 * 4 + len(
        {"iteration", "learning_rate_scale", "learning_rate"} & {name.removeprefix("optimizer/") for name in names}
    )
    # The adapter is the averages, not the last weights.
    written = safetensors.numpy.load_file(tuned / "adapter" / "adapter_model.safetensors").values()
    averages = [value.T for name, value in final_state(tuned).items() if name.startswith("averages/")]
    assert len(averages) == 14 and all(any(np.array_equal(one, other) for other in written) for one in averages)
    validation = [row["validation_loss"] for row in rows(tuned) if "validation_loss" in row]
    assert validation[-1] < validation[0] - 0.02
    assert read_json(tuned / "adapter" / "adapter_config.json")["base_model_name_or_path"] == str(base)


def test_the_run_goes_on_bit_for_bit(base: Path, tuned: Path, text_file: Path, tmp_path: Path):
    flags = [f"--init_from={base}", "--base_weights=int8", *LORA]
    cut = tmp_path / "run"
    shutil.copytree(tuned, cut)
    shutil.rmtree(cut / "checkpoints" / "step-00000020")
    assert run(text_file, cut, *flags) == 0
    assert_same_end(tuned, cut)


def test_other_weights_below_are_refused(base: Path, tuned: Path, text_file: Path, tmp_path: Path):
    other = tmp_path / "model"
    shutil.copytree(base, other)
    tensors = safetensors.numpy.load_file(other / "model.safetensors")
    tensors["model.norm.weight"] += 1
    safetensors.numpy.save_file(tensors, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="holds adapters of other weights than"):
        run(text_file, tuned, f"--init_from={other}", "--base_weights=int8", *LORA, "--max_steps=30")


def test_flags_that_cannot_work_are_named(base: Path, tuned: Path, text_file: Path, tmp_path: Path):
    with pytest.raises(SettingError, match="--lora_rank.*name it with --init_from"):
        recipe(text_file, tmp_path, "--lora_rank=4")
    with pytest.raises(UserError, match="is an adapter itself"):
        run(text_file, tmp_path / "run", f"--init_from={tuned / 'adapter'}", "--lora_rank=2")


def test_the_run_and_its_adapter_write_the_same(tuned: Path):
    """The merged model holds the eight-bit weights as they were trained, the adapter's base the exact ones."""
    sampling = SamplingConfig(max_new_tokens=8, temperature=0.0)
    texts = [
        Generator.load(model_directory(str(path))).generate(["The quick"], sampling)[0][0].text
        for path in (tuned, tuned / "adapter")
    ]
    assert texts[0] == texts[1] != ""
    merged, adapter = (load_decoder(tuned / name) for name in ("model", "adapter"))
    for one, other in zip(merged.trainable_variables, adapter.trainable_variables, strict=True):
        np.testing.assert_allclose(one, other, atol=0.02 * np.abs(other).max())
