"""Claims about what a TPU chip must hold, against what the TPU's compiler said of the same steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.diagnosis.subjects import recipe_of
from tfgpt.diagnosis.run_checks import strategy_here
from tfgpt.diagnosis.tpu_memory import GIB, check_tpu, estimate_tpu_memory

LLAMA = ["--preset=llama3_1b", "--tokenizer=bpe", "--vocabulary_size=65536", "--sequence_length=2048"]
LLAMA += ["--dtype=mixed_bfloat16", "--rematerialize", "--batch_size=256"]


def parts_and_finding(text: Path, *flags: str):
    recipe = recipe_of(text, *LLAMA, *flags, base=())
    config = recipe.decoder_config(65536)
    return estimate_tpu_memory(recipe, config), check_tpu(recipe, config)


def test_weights_and_slots_are_what_the_compiler_takes_as_arguments(text_file: Path):
    parts, _ = parts_and_finding(text_file)
    # scripts/tpu_compile.sh, 4 rows x 8: 13,289,680,384 bytes of arguments, the batch and the counters included.
    batch = 32 * 2048 * 4 * 5
    assert parts["weights"] + parts["optimizer"] == pytest.approx(13_289_680_384 - batch, rel=1e-4)


@pytest.mark.parametrize(
    ("flags", "compiled_gib"),
    [
        # configs/tpu_llama_1b_v6e.cfg and …_v5e.cfg as libtpu 0.0.52 compiled them, activations included.
        (["--gradient_accumulation_steps=8"], 22.75),
        (["--gradient_accumulation_steps=32", "--optimizer=adafactor"], 15.56),
    ],
)
def test_what_is_needed_before_activations_is_most_of_what_the_compiler_takes(text_file: Path, flags, compiled_gib):
    parts, _ = parts_and_finding(text_file, *flags)
    assert 0.8 * compiled_gib * GIB < parts["total"] < compiled_gib * GIB


def test_a_model_of_a_billion_parameters_fits_some_chips_and_advice_names_what_fits_the_rest(text_file: Path):
    _, found = parts_and_finding(text_file, "--gradient_accumulation_steps=8")
    assert found.status == "warn" and found.numbers["fits"] == ["v4", "v6e", "v5p"]
    assert "--optimizer=adafactor" in " ".join(found.advice) and "fits v5e" in " ".join(found.advice)


def test_a_small_model_fits_every_chip_and_a_large_one_none(text_file: Path):
    _, small = parts_and_finding(text_file, "--preset=gpt2")
    assert small.status == "ok" and not small.advice
    # 7.5 billion parameters at 16 bytes: weights, two slots and gradients.
    parts, large = parts_and_finding(text_file, "--preset=llama3_8b")
    assert large.status == "FAIL" and parts["total"] > 16 * 7.5e9 > 95.73 * GIB
    assert "does not split a model" in large.advice[-1]


def test_a_machine_without_a_tpu_still_examines_the_run(text_file: Path):
    lines: list[str] = []
    strategy = strategy_here(recipe_of(text_file, "--strategy=tpu"), lines.append)
    assert strategy.num_replicas_in_sync == 1
    assert len(lines) == 1 and lines[0].startswith("No TPU here")
