"""Suggested models: the numbers are right, and the ranking follows from them."""

import ast
import importlib.util
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tfgpt import convert, train
from tfgpt.common.errors import SettingError, UserError
from tfgpt.diagnosis.config import SuggestConfig, parse_size
from tfgpt.diagnosis.pretrained_models import OPEN_LICENCES, load_pretrained_models
from tfgpt.diagnosis.suggest import (
    Candidate,
    epoch_days,
    expected_loss,
    rank,
    serving_memory,
    suggest_models,
    tuning_memory,
)
from tfgpt.model.cost import count_parameters, count_trained_parameters
from tfgpt.model.lora import LoraConfig

BY_NAME = {model.base.split("/")[1]: model for model in load_pretrained_models()}
SMOLLM2 = BY_NAME["SmolLM2-135M"].config
LLAMA2 = BY_NAME["Llama-2-7b-hf"].config
GIB = 2**30

# Numbers in the files on the hub, as it shows them for each model's safetensors (tied heads once); for models that
# KerasHub does not count, or counts otherwise (Qwen2.5-7B, SmolLM3). Found in several public repositories each.
PUBLISHED = {
    "SmolLM2-135M": 134_515_008,
    "SmolLM2-360M": 361_821_120,
    "SmolLM2-1.7B": 1_711_376_384,
    "Qwen2.5-1.5B": 1_543_714_304,
    "Qwen2.5-7B": 7_615_616_512,
    "SmolLM3-3B-Base": 3_075_098_624,
    "Llama-3.2-1B": 1_235_814_400,
    "Llama-3.2-3B": 3_212_749_824,
}
KERAS_HUB = {
    "gpt2": "gpt2/gpt2_base_en",
    "gpt2-medium": "gpt2/gpt2_medium_en",
    "gpt2-large": "gpt2/gpt2_large_en",
    "gpt2-xl": "gpt2/gpt2_extra_large_en",
    "Llama-2-7b-hf": "llama/llama2_7b_en",
    "Meta-Llama-3-8B": "llama3/llama3_8b_en",
    "Llama-3.1-8B": "llama3/llama3.1_8b",
    "Llama-3.2-1B": "llama3/llama3.2_1b",
    "Llama-3.2-3B": "llama3/llama3.2_3b",
    "Mistral-7B-v0.1": "mistral/mistral_7b_en",
    "Mistral-7B-v0.3": "mistral/mistral_0.3_7b_en",
    "Qwen2.5-0.5B": "qwen/qwen2.5_0.5b_en",
    "Qwen2.5-3B": "qwen/qwen2.5_3b_en",
    "Qwen3-0.6B-Base": "qwen3/qwen3_0.6b_en",
    "Qwen3-1.7B-Base": "qwen3/qwen3_1.7b_en",
    "Qwen3-4B-Base": "qwen3/qwen3_4b_en",
    "Qwen3-8B-Base": "qwen3/qwen3_8b_en",
}


def keras_hub_parameters(preset: str) -> int:
    """What KerasHub says a preset has, read from its source: importing it would import TensorFlow."""
    folder, name = preset.split("/")
    source = Path(importlib.util.find_spec("keras_hub").origin).parent / f"src/models/{folder}/{folder}_presets.py"
    assignment = next(node for node in ast.parse(source.read_text()).body if isinstance(node, ast.Assign))
    return ast.literal_eval(assignment.value)[name]["metadata"]["params"]


@pytest.mark.parametrize("name", BY_NAME)
def test_shapes_have_the_number_of_parameters_that_others_count(name):
    config = BY_NAME[name].config
    assert name in PUBLISHED or name in KERAS_HUB
    if name in PUBLISHED:
        assert count_parameters(config) == PUBLISHED[name]
    if name in KERAS_HUB:
        # Of Llama 3.2 it counts the head, which is the embedding, once more.
        twice = config.vocabulary_size * config.hidden_dim if "Llama-3.2" in name else 0
        assert count_parameters(config) + twice == keras_hub_parameters(KERAS_HUB[name])


@pytest.mark.parametrize(
    ("name", "family"),
    [("Llama-2-7b-hf", "Llama"), ("Mistral-7B-v0.1", "Mistral"), ("SmolLM3-3B-Base", "SmolLM3"), ("gpt2", "GPT2")],
)
def test_shapes_are_those_that_transformers_takes_for_the_family(name, family):
    import transformers

    config, theirs = BY_NAME[name].config, getattr(transformers, f"{family}Config")()
    key_value_heads = getattr(theirs, "num_key_value_heads", None) or theirs.num_attention_heads
    assert (config.hidden_dim, config.num_layers, config.num_query_heads, config.num_key_value_heads) == (
        theirs.hidden_size, theirs.num_hidden_layers, theirs.num_attention_heads, key_value_heads,
    )  # fmt: skip
    assert config.vocabulary_size == theirs.vocab_size
    assert config.intermediate_dim == (getattr(theirs, "intermediate_size", None) or 4 * theirs.hidden_size)


def test_memory_of_tuning_is_the_sum_by_hand():
    # SmolLM2-135M: 30 layers of 576, 9 query heads and 3 of keys of 64, 1536 inside, 49,152 entries; one row of 512.
    adapters = 16 * 30 * (2 * (576 + 576) + 2 * (576 + 192) + 3 * (576 + 1536))
    assert count_trained_parameters(SMOLLM2, LoraConfig(lora_rank=16)) == adapters == 4_884_480
    weights, runtime = 4 * 134_515_008, 1 << 30
    kept = 4 * 576 + 4 * 1536 + 3 * 576 + 4 * 192 + 0.625 * 9 * 512  # numbers that a token leaves in a block
    activations = 30 * 512 * 576 * 4 + 512 * kept * 4 + 0.625 * 512 * 9 * 512 * 8
    logits = 256 * 49_152 * 12  # 256 tokens are the most whose logits take 64 MiB
    assert tuning_memory(SMOLLM2, "lora", "cpu") == weights + 32 * adapters + activations + logits + runtime
    assert tuning_memory(SMOLLM2, "lora", "cpu") == 1_994_597_632
    # AdamW: gradient 4, slots 8, clipped gradient and new weight 8, new slots 8; adapters the same and their own 4.
    more = tuning_memory(SMOLLM2, "full", "cpu") - tuning_memory(SMOLLM2, "lora", "cpu")
    # The logits are taken in two chunks, over which the head's gradient is summed.
    assert more == 28 * 134_515_008 - 32 * 4_884_480 + 4 * 49_152 * 576
    block = 4 * 4096**2 + 3 * 4096 * 11_008
    fewer = tuning_memory(LLAMA2, "lora", "cpu") - tuning_memory(LLAMA2, "int8", "cpu")
    scales = 32 * (5 * 4096 + 2 * 11_008)
    assert fewer == 3 * 32 * block - 4 * scales - 4 * block  # One block is converted at a time.


def test_memory_of_serving_is_weights_and_cache_in_bfloat16():
    cache = 2 * 30 * 192 * 4096 * 2
    assert serving_memory(SMOLLM2, 8192, "cpu") == 2 * 134_515_008 + cache + (1 << 30)
    assert serving_memory(SMOLLM2, 1024, "cpu") == 2 * 134_515_008 + cache // 4 + (1 << 30)


def test_an_epoch_takes_as_long_as_its_operations():
    # 2.5 million tokens, 6 operations a parameter, 2 cores of 50 GFLOP/s.
    days = epoch_days(SMOLLM2, 2.5e6, False, "cpu", 2)
    assert days * 86_400 == pytest.approx(6 * 134_515_008 * 2.5e6 / 100e9)


def test_the_scaling_law_is_hoffmanns():
    # By logarithms: 134,515,008^0.34 = 10^(0.34 x 8.12877) = 580.5; 2e12^0.28 = 10^(0.28 x 12.30103) = 2781.6.
    expected = 1.69 + 406.4 / 580.5 + 410.7 / 2781.6
    assert expected_loss(BY_NAME["SmolLM2-135M"]) == pytest.approx(expected, abs=2e-4)


def usable(memory: int, **settings) -> list[Candidate]:
    return [one for one in rank(SuggestConfig(**settings), memory) if not one.problem]


def test_what_does_not_fit_or_suit_is_not_suggested_and_says_why():
    found = {one.model.base.split("/")[1]: one for one in rank(SuggestConfig(device="gpu", licence="open"), 16 * GIB)}
    assert found["Meta-Llama-3-8B"].problem == "its licence is Llama 3 Community"
    assert found["Qwen3-8B-Base"].problem.startswith("tuning needs about")
    assert not found["Qwen3-4B-Base"].problem and found["Qwen3-4B-Base"].tuning.flags.endswith("--base_weights=int8")
    for one in usable(16 * GIB, device="gpu", licence="open"):
        assert one.model.licence in OPEN_LICENCES
        assert max(one.tuning.memory, one.serving) <= 0.85 * 16 * GIB
    assert min(one.model.context for one in usable(64 * GIB, context=9000)) == 32768
    assert all(len(one.model.languages) > 1 for one in usable(64 * GIB, task="languages"))
    english = [one for one in rank(SuggestConfig(task="languages"), 64 * GIB) if "SmolLM2" in one.name]
    assert {one.problem for one in english} == {"it was made for English"}
    # Neither Llama's maker nor SmolLM3's names Chinese.
    assert {one.name.split("/")[0] for one in usable(64 * GIB, language="Chinese")} == {"Qwen"}
    with pytest.raises(SettingError, match="--language: 'klingon' is not named by the maker"):
        SuggestConfig(language="klingon")


def test_what_reads_too_little_or_takes_too_long_is_not_suggested():
    # Qwen2.5-7B: 131,072 tokens in the config.json of the base model, 32,768 in that of the other.
    for task, suggested in (("chat", False), ("text", True)):
        found = usable(80 * GIB, task=task, context=100_000, device="gpu")
        assert suggested == any("Qwen2.5-7B" in one.name for one in found)
    # 6 operations x 1,543,714,304 parameters x 2.5 million tokens at 100 GFLOP/s: 2.7 days.
    for days, problem in ((1.0, "an epoch takes about 2.7 days"), (3.0, "")):
        found = rank(SuggestConfig(days=days), 64 * GIB)
        assert problem == next(one.problem for one in found if one.name == "Qwen/Qwen2.5-1.5B-Instruct")


@pytest.mark.parametrize("task", ["chat", "text", "code", "languages"])
@pytest.mark.parametrize(("device", "cores"), [("cpu", 4), ("gpu", 1), ("tpu", 8), ("gpu", 3)])
def test_the_printed_commands_are_commands(task, device, cores):
    machine = {"device": device, "cores": cores, "memory": "16GiB", "days": 999}
    for size in ("10KB", "3GB"):
        lines = suggest_models(SuggestConfig(task=task, data_size=size, **machine))
        first, second = (shlex.split(line.split(":", 1)[1]) for line in lines[-2:])
        assert first[:3] == ["python", "-m", "tfgpt.convert"] and second[:3] == ["python", "-m", "tfgpt.train"]
        convert.COMMAND.parse(first[3:])
        settings = train.COMMAND.parse(second[3:])
        rows, micro = settings["batch"].batch_size, settings["step"].gradient_accumulation_steps
        assert rows // micro == (1 if device == "cpu" else cores) and rows % micro == 0
        assert settings["objective"].objective == ("chat" if task in ("chat", "languages") else "pretrain")


def test_chat_versions_come_first_for_chat_and_base_versions_for_text():
    chat = usable(64 * GIB)
    assert [one.needs_chat_tuning for one in chat] == sorted(one.needs_chat_tuning for one in chat)
    assert "gpt2" in chat[-1].name and chat[0].name == chat[0].model.chat
    text = usable(64 * GIB, task="text")
    assert all(one.name == one.model.base for one in text)
    assert [one.loss for one in text] == sorted(one.loss for one in text)


def test_much_text_is_worth_all_weights_and_little_is_not():
    # 134.5 million parameters are as many tokens as 538 MB have.
    for size, name in (("530MB", "LoRA, rank 16"), ("540MB", "all weights")):
        found = rank(SuggestConfig(data_size=size, device="gpu"), 80 * GIB)
        assert name == next(one.tuning.name for one in found if one.model.base.endswith("SmolLM2-135M"))


def test_the_lines_rank_say_why_and_end_with_commands():
    lines = suggest_models(SuggestConfig(memory="2.5GiB", data_size="1MB"))
    assert lines[0] == "For chat, 250,000 tokens of text (1MB), 2 CPU cores with 2.5 GiB:"
    assert lines[1].startswith(" 1. HuggingFaceTB/SmolLM2-")
    assert "Apache-2.0" in lines[1] and "an epoch, serving" in lines[1]
    assert lines[-2].startswith("Next:    python -m tfgpt.convert --source=HuggingFaceTB/SmolLM2-")
    assert "--init_from=models/smollm2-" in lines[-1] and "--objective=chat" in lines[-1]
    with pytest.raises(UserError, match="no model fits"):
        suggest_models(SuggestConfig(memory="500MB"))


def test_sizes_are_read_and_nonsense_is_named():
    sizes = {"20MB": 20_000_000, "1.5 GiB": 1_610_612_736, "800kb": 800_000, "7": 7}
    assert {text: parse_size("memory", text) for text in sizes} == sizes
    for text in ("", "much", "-3GB", "3 GX", "0MB"):
        with pytest.raises(SettingError, match="--data_size: .* is not a size"):
            SuggestConfig(data_size=text)
    with pytest.raises(UserError, match="--memory: is missing"):
        suggest_models(SuggestConfig(device="gpu"))


def test_convert_suggests_without_a_source_and_without_tensorflow(tmp_path):
    # Importing them raises.
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['tensorflow'] = sys.modules['keras'] = None\n")
    command = [sys.executable, "-m", "tfgpt.convert", "--suggest", "--data_size=20MB", "--memory=16GiB", "--device=gpu"]
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == suggest_models(SuggestConfig(data_size="20MB", memory="16GiB", device="gpu"))
    assert convert.main(["--suggest", "--data_size=much"]) == 2
