"""Ranking of the pretrained models for a task, a text and a machine.

Memory and time are computed from the published shapes, without TensorFlow or network. The models that can be tuned and
served are ranked by the scaling law of Hoffmann et al., which knows sizes and numbers of training tokens only.
"""

from __future__ import annotations

import dataclasses
import math

from tfgpt.common.errors import UserError
from tfgpt.common.formatting import format_count, format_memory, format_seconds, pluralize
from tfgpt.diagnosis.config import SuggestConfig
from tfgpt.diagnosis.memory import COMFORTABLE, RUNTIME_BYTES
from tfgpt.diagnosis.pretrained_models import OPEN_LICENCES, PretrainedModelInfo, load_pretrained_models
from tfgpt.model import cost, presets
from tfgpt.model.config import DecoderConfig
from tfgpt.model.lora import LoraConfig

# English text with vocabularies of 32,000 to 152,000 entries, approximately.
BYTES_PER_TOKEN = 4
# Tasks tuned on conversations, from a chat version; the others start from the base version.
CHAT_TASKS = ("chat", "languages")
# FLOP/s while tuning: one CPU core with AVX-512, a GPU such as an A10 and a TPU v5e chip (docs/measurements.md).
FLOPS = {"cpu": 50e9, "gpu": 30e12, "tpu": 60e12}
# Longest conversation that serving is estimated for.
SERVED_TOKENS = 4096
# The printed command: tokens in a row, rows in an update (more with more devices), rank of the adapters.
ROW_TOKENS, ROWS, RANK = 512, 8, 16

LORA_FLAGS = f"--learning_rate=0.0005 --weight_decay=0 --lora_rank={RANK}"
METHODS = {
    # The learning rate is Llama 2's (arXiv 2307.09288, section 3.1); LoRA's is that of configs/chat_smollm2_lora.cfg.
    "full": ("all weights", "--learning_rate=2e-05"),
    "lora": (f"LoRA, rank {RANK}", LORA_FLAGS),
    "int8": (f"LoRA, rank {RANK}, over int8", f"{LORA_FLAGS} --base_weights=int8"),
}
LORA = {"full": LoraConfig(), "lora": LoraConfig(lora_rank=RANK)}
LORA["int8"] = dataclasses.replace(LORA["lora"], base_weights="int8")


@dataclasses.dataclass(frozen=True)
class Tuning:
    """A way to tune a model: the flags of `train`, the peak bytes and the days of one epoch."""

    name: str
    flags: str
    memory: int
    days: float


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A pretrained model with what it needs and what it is expected to reach."""

    model: PretrainedModelInfo
    name: str  # the version to start from
    tuning: Tuning  # the best way to tune it that fits in memory, otherwise the smallest
    serving: int  # bytes
    mismatch: str  # why it does not suit the task; "" if it does
    too_large: str  # why it does not suit the machine; "" if it does
    needs_chat_tuning: bool
    loss: float

    @property
    def problem(self) -> str:
        return self.mismatch or self.too_large


def suggest_models(config: SuggestConfig, count: int = 4) -> list[str]:
    """Returns the lines of the ranking, with at most `count` models in detail, and the next two commands."""
    memory, tokens = config.memory_bytes(), config.data_bytes() / BYTES_PER_TOKEN
    candidates = rank(config, memory)
    good = [candidate for candidate in candidates if not candidate.problem]
    if not good:
        close = [candidate for candidate in candidates if not candidate.mismatch] or candidates
        problems = "; ".join(f"{candidate.name}: {candidate.problem}" for candidate in close[-3:])
        advice = "Give more --memory or --days, a smaller --context, or train a new model with --preset=tiny"
        raise UserError(f"no model fits: {problems}. {advice}")
    machine = pluralize(config.cores, {"cpu": "CPU core", "gpu": "GPU", "tpu": "TPU chip"}[config.device])
    machine += f" with {format_memory(memory)}{' each' if config.device != 'cpu' and config.cores > 1 else ''}"
    lines = [f"For {config.task}, {format_count(tokens)} tokens of text ({config.data_size}), {machine}:"]
    lines += [f"{place:>2}. {describe(candidate, config, place)}" for place, candidate in enumerate(good[:count], 1)]
    if len(good) > count:
        lines.append(f"    Also possible: {', '.join(candidate.name for candidate in good[count:])}.")
    by_problem: dict[str, list[str]] = {}
    for candidate in candidates[len(good) :]:
        by_problem.setdefault(candidate.problem, []).append(candidate.name)
    if by_problem:
        reasons = (f"{', '.join(names)} ({problem})" for problem, names in by_problem.items())
        lines.append(f"Not: {'; '.join(reasons)}.")
    sizes = {name: cost.count_parameters(presets.resolve(name)) for name in ("tiny", "mini", "small", "base")}
    trainable = [name for name, size in sizes.items() if 20 * size <= tokens]
    if trainable:
        preset = f"--preset={trainable[-1]} (20 tokens a parameter, arXiv:2203.15556, table 3)"
        lines.append(f"The text is also enough to train a new model: {preset}.")
    convert, train = next_commands(good[0], config)
    return [*lines, f"Next:    {convert}", f"then:    {train}"]


def rank(config: SuggestConfig, memory: int) -> list[Candidate]:
    """Returns all models: those that can be used first, best first."""
    candidates = [assess(model, config, memory) for model in load_pretrained_models()]
    return sorted(candidates, key=lambda found: (bool(found.problem), found.needs_chat_tuning, found.loss))


def assess(model: PretrainedModelInfo, config: SuggestConfig, memory: int) -> Candidate:
    for_chat = config.task in CHAT_TASKS
    name = model.chat if for_chat and model.chat else model.base
    context, language = model.context_of(name), config.language.title()
    mismatch = too_large = ""
    if config.licence == "open" and model.licence not in OPEN_LICENCES:
        mismatch = f"its licence is {model.licence}"
    elif context < config.context:
        mismatch = f"it reads {context:,} tokens"
    elif language and language not in model.languages:
        mismatch = f"its maker does not name {language}"
    elif config.task == "languages" and len(model.languages) == 1:
        mismatch = "it was made for English"
    elif config.task == "code" and not model.code:
        mismatch = "its maker does not name programs among its training data"
    # With fewer tokens than parameters the model would memorize the text, and adapters are enough.
    tokens = config.data_bytes() / BYTES_PER_TOKEN
    methods = ("full", "lora", "int8") if tokens >= cost.count_parameters(model.config) else ("lora", "int8")
    tunings = []
    for method in methods:
        days = epoch_days(model.config, tokens, method == "full", config.device, config.cores)
        tunings.append(Tuning(*METHODS[method], tuning_memory(model.config, method, config.device), days))
    smallest = min(tunings, key=lambda tuning: tuning.memory)
    tuning = next((tuning for tuning in tunings if tuning.memory <= COMFORTABLE * memory), smallest)
    serving = serving_memory(model.config, context, config.device)
    if tuning.memory > COMFORTABLE * memory:
        too_large = f"tuning needs about {format_memory(tuning.memory)} ({tuning.name})"
    elif serving > COMFORTABLE * memory:
        too_large = f"serving needs about {format_memory(serving)}"
    elif tuning.days > config.days:
        too_large = f"an epoch takes about {format_seconds(86_400 * tuning.days)}"
    needs_chat_tuning = for_chat and not model.chat
    return Candidate(model, name, tuning, serving, mismatch, too_large, needs_chat_tuning, expected_loss(model))


def expected_loss(model: PretrainedModelInfo) -> float:
    """Returns the loss in nats per token by the scaling law of Hoffmann et al. 2022 (arXiv 2203.15556, section 3.3).

    Training tokens are 2e12, as for Llama 2, if they are not published.
    """
    parameters = cost.count_parameters(model.config)
    return 1.69 + 406.4 / parameters**0.34 + 410.7 / (model.training_tokens or 2e12) ** 0.28


def tuning_memory(config: DecoderConfig, method: str, device: str) -> int:
    """Returns the peak bytes of tuning with AdamW and a method of `METHODS`, one row at a time, with recomputation."""
    parts = cost.training_memory(
        dataclasses.replace(config, rematerialize=True),
        batch_size=1,
        sequence_length=min(ROW_TOKENS, config.max_sequence_length),
        lora=LORA[method],
        mixed=device != "cpu",
    )
    return parts["total"] + RUNTIME_BYTES[device]


def serving_memory(config: DecoderConfig, context: int, device: str) -> int:
    """Returns the bytes to serve one conversation, with weights and cache in bfloat16."""
    cache = cost.cache_bytes(config, min(context, SERVED_TOKENS), bytes_per_number=2)
    return 2 * cost.count_parameters(config) + cache + RUNTIME_BYTES[device]


def epoch_days(config: DecoderConfig, tokens: float, full: bool, device: str, cores: int) -> float:
    """Returns the days of one epoch: 2 FLOPs per parameter and token forward, 2 in recomputation, 2 for the gradient of
    the inputs, and 2 for its own gradient if all weights are tuned (`full`).
    """
    operations = (8 if full else 6) * cost.count_parameters(config) * tokens
    return operations / (FLOPS[device] * cores) / 86_400


def describe(candidate: Candidate, config: SuggestConfig, place: int) -> str:
    model, tuning = candidate.model, candidate.tuning
    tokens = f"up to {format_count(model.training_tokens)}" if model.training_tokens else "an unpublished number of"
    chat = "tuned for chat, " if candidate.name == model.chat else ""
    if candidate.needs_chat_tuning:
        chat = "not yet tuned for chat, "
    languages = f" in {', '.join(model.languages)}" if config.task == "languages" or config.language else ""
    conditions = f" ({model.conditions})" if model.conditions else ""
    needs = f"takes about {format_memory(tuning.memory)} and {format_seconds(86_400 * tuning.days)} an epoch, serving "
    needs += format_memory(candidate.serving)
    return (
        f"{candidate.name}: {'the lowest loss is expected of it: ' if place == 1 else ''}{chat}"
        f"{format_count(cost.count_parameters(model.config))} parameters trained on {tokens} tokens; tuning "
        f"({tuning.name}) {needs}; it reads {model.context_of(candidate.name):,} tokens{languages}; licence: "
        f"{model.licence}{conditions}."
    )


def next_commands(candidate: Candidate, config: SuggestConfig) -> tuple[str, str]:
    directory = f"models/{candidate.name.rsplit('/', 1)[1].lower()}"
    text = "--objective=chat --train_text=chats.jsonl" if config.task in CHAT_TASKS else "--train_text='my/*'"
    devices = 1 if config.device == "cpu" else config.cores
    accumulation = math.ceil(ROWS / devices)
    rows = accumulation * devices
    steps = max(10, math.ceil(config.data_bytes() / BYTES_PER_TOKEN / (rows * ROW_TOKENS)))
    mixed = "" if config.device == "cpu" else "--dtype=mixed_bfloat16 "
    return (
        f"python -m tfgpt.convert --source={candidate.name} --output={directory}",
        f"python -m tfgpt.train --init_from={directory} {text} {candidate.tuning.flags} "
        f"--max_steps={steps} --warmup_steps={min(100, steps // 10)} {mixed}--rematerialize "
        f"--sequence_length={ROW_TOKENS} --batch_size={rows} --gradient_accumulation_steps={accumulation}",
    )
