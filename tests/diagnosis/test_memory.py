"""Memory and disk: exact parts are exact, what does not fit is refused at once, and advice fits."""

import math
import re
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.diagnosis.probes import config_of, probe_of, save_model
from tfgpt.diagnosis.check_results import CheckResult
from tfgpt.diagnosis.memory import Machine, check_disk, check_memory, check_tpu, estimate_memory, estimate_tpu_memory
from tfgpt.diagnosis.system_memory import Memory
from tfgpt.training.trainer_builder import build_trainer

GIB = 1 << 30
LAPTOP = Machine(Memory(16 * GIB, 14 * GIB, "RAM"), 1, gpu=False)
TUNING = "--sequence_length=32 --batch_size=4 --compile=graph --max_steps=200".split()
BIG = (
    "--hidden_dim=768 --num_layers=12 --num_query_heads=12 --head_dim=64 --intermediate_dim=2048 --sequence_length=1024"
)


def count(variables: Iterable) -> int:
    return sum(math.prod(variable.shape) for variable in variables)


def size(variables: Iterable) -> int:
    return sum(math.prod(variable.shape) * variable.value.dtype.size for variable in variables)


@pytest.mark.parametrize("optimizer", ["adamw", "lion", "muon", "adafactor"])
def test_weights_and_optimizer_are_exact(text_file, optimizer):
    probe = probe_of(text_file, f"--optimizer={optimizer}")
    parts = estimate_memory(probe.config, probe.decoder_config, LAPTOP)
    assert parts["weights"] == size(probe.decoder.trainable_variables) == parts["gradients"]
    held = size(variable for variable in probe.run_trainer.optimizer.variables if len(variable.shape))
    if optimizer == "adafactor":
        # Rows and columns are a small share of large matrices, and a larger one of these.
        assert parts["weights"] < parts["optimizer"] < held < 1.15 * parts["weights"]
    else:
        assert parts["optimizer"] == held


@pytest.fixture(scope="module")
def base(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("base")
    save_model(probe_of(text_file), directory)
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
def test_adapters_are_trained_and_the_rest_is_frozen_to_the_byte(text_file, base, flags, objective):
    config = config_of(text_file, flags, f"--init_from={base} --objective={objective}", base=TUNING)
    trainer = build_trainer(config, config.initial_config().vocabulary_size)
    decoder = trainer.decoder
    found = check_memory(config, decoder.config, LAPTOP).numbers
    parts, trained = found["estimate"], count(decoder.trainable_variables)
    assert found["trained_parameters"] == trained
    scales = count(variable for variable in decoder.weights if variable.path.endswith("kernel_scale"))
    assert found["frozen_parameters"] + trained == count(decoder.weights) - scales
    assert parts["weights"] == size([*decoder.weights, *trainer.averages])
    assert parts["gradients"] == 4 * trained
    assert parts["optimizer"] == size(variable for variable in trainer.optimizer.variables if len(variable.shape))
    assert parts.get("reference", 0) == (4 * found["frozen_parameters"] if objective == "grpo" else 0)


def test_a_pair_is_two_rows_and_adapters_need_less(text_file, base):
    def parts(*flags: str) -> dict[str, int]:
        config = config_of(text_file, f"--init_from={base}", *flags, base=TUNING)
        return estimate_memory(config, config.initial_config(), LAPTOP)

    plain, pairs, adapters = parts(), parts("--objective=dpo"), parts("--lora_rank=2")
    assert pairs["activations"] == 2 * plain["activations"]
    assert adapters["total"] < plain["total"]


def test_a_preset_that_cannot_fit_is_refused_in_a_moment_with_the_largest_that_does(text_file):
    base = ["--vocabulary_size=32768", "--batch_size=8", "--sequence_length=1024"]
    config = config_of(text_file, "--preset=llama3_8b", base=base)
    started = time.process_time()
    found = check_memory(config, config.decoder_config(32_768), LAPTOP)
    assert time.process_time() - started < 2 and found.status == "FAIL"
    # 7.2 billion parameters, 16 bytes each for weights, gradients and AdamW alone.
    assert found.numbers["estimate"]["total"] > 16 * 7e9
    flags = [re.findall(r"--\S+", advice) for advice in found.advice if advice.startswith("--preset=")]
    assert len(flags) == 2
    for words in flags:
        better = config_of(text_file, *words, base=base)
        assert check_memory(better, better.decoder_config(32_768), LAPTOP).status == "ok"


def test_flags_that_are_advised_make_it_fit(text_file):
    def check(*flags: str) -> CheckResult:
        config = config_of(text_file, BIG, "--batch_size=96", *flags)
        return check_memory(config, config.decoder_config(4096), LAPTOP)

    found = check()
    assert found.status == "FAIL" and found.advice[0].startswith("--gradient_accumulation_steps=")
    assert [check(*re.findall(r"--\S+", advice)).status for advice in found.advice] == ["ok", "ok"]


def test_replicas_share_the_ram_but_not_the_gpus(text_file):
    config = config_of(text_file, BIG)
    decoder_config = config.decoder_config(4096)
    one = estimate_memory(config, decoder_config, LAPTOP)
    two = estimate_memory(config, decoder_config, Machine(LAPTOP.memory, 2, gpu=False))
    gpus = estimate_memory(config, decoder_config, Machine(LAPTOP.memory, 2, gpu=True))
    assert two["weights"] == 2 * one["weights"] and gpus["weights"] == one["weights"]
    assert two["activations"] == one["activations"] == 2 * gpus["activations"]


def test_accumulation_rematerialization_and_bfloat16_lower_the_estimate(text_file):
    def total(*flags: str) -> int:
        config = config_of(text_file, BIG, "--batch_size=16", *flags)
        return estimate_memory(config, config.decoder_config(4096), LAPTOP)["total"]

    plain = total()
    for flag in ("--gradient_accumulation_steps=4", "--rematerialize", "--dtype=mixed_bfloat16"):
        assert total(flag) < 0.85 * plain


def test_memory_that_others_hold_is_named(text_file):
    config = config_of(text_file, BIG)
    busy = Machine(Memory(16 * GIB, 1 * GIB, "RAM"), 1, gpu=False)
    found = check_memory(config, config.decoder_config(4096), busy)
    assert found.status == "FAIL" and found.advice[0].startswith("stop other programs")


def test_checkpoints_that_do_not_fit_on_the_disk_fail(text_file, tmp_path):
    config = config_of(text_file, f"--run_dir={tmp_path / 'new' / 'run'}")
    assert check_disk(config, config.decoder_config(260)).status == "ok"
    many = config_of(text_file, f"--run_dir={tmp_path}", "--checkpoints_kept=1000000000")
    found = check_disk(many, many.decoder_config(260))
    assert found.status == "FAIL" and "--run_dir" in found.advice[0]
    assert not (tmp_path / "new").exists()


# The TPU's compiler compiled the same steps.
LLAMA = "--preset=llama3_1b --tokenizer=bpe --vocabulary_size=65536 --sequence_length=2048 --batch_size=256"


def parts_and_finding(text: Path, *flags: str):
    config = config_of(text, LLAMA, "--dtype=mixed_bfloat16 --rematerialize", *flags, base=())
    decoder_config = config.decoder_config(65536)
    return estimate_tpu_memory(config, decoder_config), check_tpu(config, decoder_config)


def test_weights_and_slots_are_what_the_compiler_takes_as_arguments(text_file):
    parts, _ = parts_and_finding(text_file)
    # scripts/tpu_compile.sh, 4 rows x 8: 13,289,680,384 bytes of arguments, the batch and the counters included.
    batch = 32 * 2048 * 4 * 5
    assert parts["weights"] + parts["optimizer"] == pytest.approx(13_289_680_384 - batch, rel=1e-4)


def test_what_is_needed_before_activations_is_most_of_what_the_compiler_takes(text_file):
    # configs/tpu_llama_1b_v6e.cfg and …_v5e.cfg as libtpu 0.0.52 compiled them: 22.75 and 15.56 GiB with activations.
    parts, found = parts_and_finding(text_file, "--gradient_accumulation_steps=8")
    assert 0.8 * 22.75 * GIB < parts["total"] < 22.75 * GIB
    assert found.status == "warn" and found.numbers["fits"] == ["v4", "v6e", "v5p"]
    assert "--optimizer=adafactor" in " ".join(found.advice) and "fits v5e" in " ".join(found.advice)
    parts, _ = parts_and_finding(text_file, "--gradient_accumulation_steps=32", "--optimizer=adafactor")
    assert 0.8 * 15.56 * GIB < parts["total"] < 15.56 * GIB


def test_a_small_model_fits_every_chip_and_a_large_one_none(text_file):
    _, small = parts_and_finding(text_file, "--preset=gpt2")
    assert small.status == "ok" and not small.advice
    # 7.5 billion parameters at 16 bytes: weights, two slots and gradients.
    parts, large = parts_and_finding(text_file, "--preset=llama3_8b")
    assert large.status == "FAIL" and parts["total"] > 16 * 7.5e9 > 95.73 * GIB
    assert "does not split a model" in large.advice[-1]
