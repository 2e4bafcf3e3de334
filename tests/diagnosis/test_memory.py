"""Claims about memory: what is exact is exact, what does not fit is refused at once, and advice fits."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from tests.diagnosis.subjects import recipe_of, subject_of
from tfgpt.diagnosis.memory import Machine, check_disk, check_memory, estimate_memory
from tfgpt.diagnosis.system_memory import Memory
from tfgpt.model.checkpoints.huggingface import save_decoder
from tfgpt.training.trainer_builder import build_trainer

GIB = 1 << 30
LAPTOP = Machine(Memory(16 * GIB, 14 * GIB, "RAM"), 1, gpu=False)
TUNING = "--sequence_length=32 --batch_size=4 --compile=graph --max_steps=200".split()
BIG = [
    "--hidden_dim=768",
    "--num_layers=12",
    "--num_query_heads=12",
    "--head_dim=64",
    "--intermediate_dim=2048",
    "--sequence_length=1024",
]


@pytest.mark.parametrize("optimizer", ["adamw", "lion", "muon"])
def test_weights_and_optimizer_are_exact(text_file: Path, optimizer: str):
    subject = subject_of(text_file, f"--optimizer={optimizer}")
    parts = estimate_memory(subject.recipe, subject.config, LAPTOP)
    weights = sum(
        variable.value.dtype.size * int(np_size(variable)) for variable in subject.decoder.trainable_variables
    )
    slots = [v for v in subject.run_trainer.optimizer.variables if len(v.shape)]
    assert parts["weights"] == weights == parts["gradients"]
    assert parts["optimizer"] == sum(4 * np_size(variable) for variable in slots)


@pytest.fixture(scope="module")
def base(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model to start from."""
    directory = tmp_path_factory.mktemp("base")
    subject = subject_of(text_file)
    save_decoder(subject.decoder, directory, end_of_text_id=subject.data.tokenizer.end_of_text_id)
    subject.data.tokenizer.save(directory)
    return directory


@pytest.mark.parametrize(
    ("flags", "objective"),
    [
        ("--lora_rank=4 --ema_decay=0.9", "pretrain"),
        ("--lora_rank=4 --base_weights=int8 --lora_target_modules=attention,down --optimizer=muon", "pretrain"),
        ("--lora_rank=8 --base_weights=int8", "dpo"),
        ("--lora_rank=2 --optimizer=lion --kl_penalty=0.1 --max_completion_length=8 --group_size=4", "grpo"),
    ],
)
def test_adapters_are_trained_and_the_rest_is_frozen_to_the_byte(
    text_file: Path, base: Path, flags: str, objective: str
):
    more = [*flags.split(), f"--init_from={base}", f"--objective={objective}"]
    recipe = recipe_of(text_file, *more, base=TUNING)
    trainer = build_trainer(recipe, recipe.initial_config().vocabulary_size)
    decoder = trainer.decoder
    found = check_memory(recipe, decoder.config, LAPTOP).numbers
    parts = found["estimate"]
    trained = sum(np_size(variable) for variable in decoder.trainable_variables)
    assert found["trained_parameters"] == trained
    scales = sum(np_size(variable) for variable in decoder.weights if variable.path.endswith("kernel_scale"))
    assert found["frozen_parameters"] + trained == sum(np_size(variable) for variable in decoder.weights) - scales
    held = [*decoder.weights, *trainer.averages]
    assert parts["weights"] == sum(np_size(variable) * variable.value.dtype.size for variable in held)
    assert parts["gradients"] == 4 * trained
    slots = [variable for variable in trainer.optimizer.variables if len(variable.shape)]
    assert parts["optimizer"] == sum(4 * np_size(variable) for variable in slots)
    assert parts.get("reference", 0) == (4 * found["frozen_parameters"] if objective == "grpo" else 0)


def test_a_pair_is_two_rows_and_adapters_need_less(text_file: Path, base: Path):
    def parts(*flags: str) -> dict[str, int]:
        recipe = recipe_of(text_file, f"--init_from={base}", *flags, base=TUNING)
        return estimate_memory(recipe, recipe.initial_config(), LAPTOP)

    plain, pairs, adapters = parts(), parts("--objective=dpo"), parts("--lora_rank=2")
    assert pairs["activations"] == 2 * plain["activations"]
    assert adapters["total"] < plain["total"]


def test_kerass_adafactor_keeps_as_much_as_lion_and_little_more(text_file: Path):
    subject = subject_of(text_file, "--optimizer=adafactor")
    parts = estimate_memory(subject.recipe, subject.config, LAPTOP)
    held = sum(4 * np_size(variable) for variable in subject.run_trainer.optimizer.variables)
    # Rows and columns are a small share of large matrices, and a larger one of these.
    assert parts["weights"] < parts["optimizer"] < held < 1.15 * parts["weights"]


def np_size(variable) -> int:
    size = 1
    for width in variable.shape:
        size *= width
    return size


def test_a_preset_that_cannot_fit_is_refused_in_a_moment_with_the_largest_that_does(text_file: Path):
    base = ["--vocabulary_size=32768", "--batch_size=8", "--sequence_length=1024"]
    recipe = recipe_of(text_file, "--preset=llama3_8b", base=base)
    started = time.monotonic()
    found = check_memory(recipe, recipe.decoder_config(32_768), LAPTOP)
    assert time.monotonic() - started < 2
    assert found.status == "FAIL"
    # 7.2 billion parameters, 16 bytes each for weights, gradients and AdamW alone.
    assert found.numbers["estimate"]["total"] > 16 * 7e9
    flags = [re.findall(r"--\S+", advice) for advice in found.advice if advice.startswith("--preset=")]
    assert len(flags) == 2
    for words in flags:
        better = recipe_of(text_file, *words, base=base)
        assert check_memory(better, better.decoder_config(32_768), LAPTOP).status == "ok"


def test_flags_that_are_advised_make_it_fit(text_file: Path):
    flags = [*BIG, "--batch_size=96"]
    recipe = recipe_of(text_file, *flags)
    found = check_memory(recipe, recipe.decoder_config(4096), LAPTOP)
    assert found.status == "FAIL"
    for advice in found.advice:
        words = re.findall(r"--\S+", advice)
        better = recipe_of(text_file, *flags, *words)
        assert check_memory(better, better.decoder_config(4096), LAPTOP).status == "ok"
    assert found.advice[0].startswith("--gradient_accumulation_steps=")


def test_replicas_share_the_ram_but_not_the_gpus(text_file: Path):
    recipe = recipe_of(text_file, *BIG)
    config = recipe.decoder_config(4096)
    one = estimate_memory(recipe, config, LAPTOP)
    two = estimate_memory(recipe, config, Machine(LAPTOP.memory, 2, gpu=False))
    gpus = estimate_memory(recipe, config, Machine(LAPTOP.memory, 2, gpu=True))
    assert two["weights"] == 2 * one["weights"] and gpus["weights"] == one["weights"]
    assert two["activations"] == one["activations"] == 2 * gpus["activations"]


def test_accumulation_rematerialization_and_bfloat16_lower_the_estimate(text_file: Path):
    def total(*flags: str) -> int:
        recipe = recipe_of(text_file, *BIG, "--batch_size=16", *flags)
        return estimate_memory(recipe, recipe.decoder_config(4096), LAPTOP)["total"]

    plain = total()
    for flag in ("--gradient_accumulation_steps=4", "--rematerialize", "--dtype=mixed_bfloat16"):
        assert total(flag) < 0.85 * plain


def test_memory_that_others_hold_is_named(text_file: Path):
    recipe = recipe_of(text_file, *BIG)
    busy = Machine(Memory(16 * GIB, 1 * GIB, "RAM"), 1, gpu=False)
    found = check_memory(recipe, recipe.decoder_config(4096), busy)
    assert found.status == "FAIL" and found.advice[0].startswith("stop other programs")


def test_checkpoints_that_do_not_fit_on_the_disk_fail(text_file: Path, tmp_path: Path):
    recipe = recipe_of(text_file, f"--run_dir={tmp_path / 'new' / 'run'}")
    assert check_disk(recipe, recipe.decoder_config(260)).status == "ok"
    many = recipe_of(text_file, f"--run_dir={tmp_path}", "--checkpoints_kept=1000000000")
    found = check_disk(many, many.decoder_config(260))
    assert found.status == "FAIL" and "--run_dir" in found.advice[0]
    assert not (tmp_path / "new").exists()
