"""Which pretrained model to start from: those that `convert` reads, ranked for a task, a text and a machine.

No TensorFlow and no network: memory and time are computed from the published shapes (`pretrained_models.FAMILIES`).
What is ranked highest is what the scaling law of Hoffmann et al. expects most of, among the models that can be tuned
and served in the memory there is; it knows sizes and training tokens only, not how well a text was chosen. Try two.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

from tfgpt.common.errors import UserError
from tfgpt.diagnosis.check_results import in_bytes, in_numbers
from tfgpt.diagnosis.memory import (
    COMFORTABLE,
    RUNTIME_BYTES,
    block_matrices,
    chunk_tokens,
    optimizer_bytes,
    trained_parameters,
)
from tfgpt.diagnosis.pretrained_models import FAMILIES, OPEN_LICENCES, PretrainedModelInfo
from tfgpt.diagnosis.suggest_config import SuggestConfig
from tfgpt.model import presets
from tfgpt.model.config import DecoderConfig
from tfgpt.model.lora import LoraConfig

BYTES_A_TOKEN = 4
"""English text under vocabularies of 32,000 to 152,000 entries, about."""

ROW_TOKENS = 512
"""The rows on which tuning is counted: one at a time, more by accumulation."""

TALKING = ("chat", "languages")
"""Tasks that are tuned on conversations, from a version that talks; for plain text the base version is better."""

SERVED_TOKENS = 4096
"""The conversation for which serving is counted, where the context is as long."""

RANK = 16
"""Of the adapters that are counted: on every projection, as `train --lora_rank=16` makes them."""

SPEEDS = {"cpu": 50e9, "gpu": 30e12, "tpu": 60e12}
"""Operations a second while tuning: one CPU core with AVX-512 (70 GFLOP/s were measured in a float32 step of a small
model), a GPU such as an A10 and a TPU v5e chip at 30 percent or less of their bfloat16 peaks (125 and 197 TFLOP/s)."""

ROWS = 8
"""Of an update in the command that is printed, one at a time on each device; more where there are more devices."""

RATES = {"full": 2e-5, "lora": 5e-4}
"""Learning rates in that command: Llama 2's own tuning (arXiv 2307.09288, section 3.1), and what
configs/chat_smollm2_lora.cfg was measured with."""


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to tune.

    Attributes:
        name: what people call it.
        flags: of `train`.
        memory: bytes at the peak.
        days: a pass over the text takes.
    """

    name: str
    flags: str
    memory: int
    days: float


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A model for the task and the machine.

    Attributes:
        model: the model.
        name: the version to start from.
        method: how to tune it; None where none fits.
        serving: bytes to serve it.
        unfit: why it is nothing for the task; "" where it is something.
        too_much: why the machine or the time is not enough; "" where they are.
        suited: how well it goes with the task: 2 made for it, 1 can be taught it.
        loss: the scaling law's.
    """

    model: PretrainedModelInfo
    name: str
    method: Method | None
    serving: int
    unfit: str
    too_much: str
    suited: int
    loss: float

    @property
    def problem(self) -> str:
        """Why it is no choice; "" where it is one."""
        return self.unfit or self.too_much


def expected_loss(model: PretrainedModelInfo) -> float:
    """Nats a token by the scaling law of Hoffmann et al. 2022 (arXiv 2203.15556, section 3.3), lower is better.

    L(N, D) = 1.69 + 406.4 / N^0.34 + 410.7 / D^0.28 of N parameters and D training tokens; where D was not published,
    2e12, as Llama 2's.
    """
    parameters = presets.count_parameters(model.config)
    return 1.69 + 406.4 / parameters**0.34 + 410.7 / (model.training_tokens or 2e12) ** 0.28


def tuning_memory(config: DecoderConfig, method: str, device: str) -> int:
    """Bytes at the peak of tuning, one row of ROW_TOKENS at a time, blocks recomputed in the backward pass.

    Args:
        method: "full" (AdamW on all weights), "lora" (on adapters) or "int8" (the same over projections in 8 bits).
        device: on "gpu" and "tpu" it computes in bfloat16 beside float32 weights.
    """
    config = dataclasses.replace(config, rematerialize=True)
    length = min(ROW_TOKENS, config.max_sequence_length)
    mixed = device != "cpu"
    parts = presets.training_memory(config, batch_size=1, sequence_length=length, optimizer_slots=0, mixed=mixed)
    parameters = presets.count_parameters(config)
    chunk = min(chunk_tokens(length, config.vocabulary_size), length)
    total = (
        parts["activations"] + parts["logits"] * chunk // length + RUNTIME_BYTES["CPU" if device == "cpu" else "GPU"]
    )
    if method == "full":
        slots = optimizer_bytes("adamw", config)
        # Gradients; slots; clipped gradients, new weights and new slots before any is written.
        return total + parts["weights"] + 4 * parameters + slots + 8 * parameters + slots
    # An adapter's weights, gradients, slots and update, as above.
    total += trained_parameters(config, LoraConfig(lora_rank=RANK)) * (4 + 4 + 8 + 16)
    if method == "lora":
        return total + parts["weights"]
    matrices = config.num_layers * block_matrices(config)
    number = parts["weights"] // parameters
    # 8 bits a number of the projections; one block's are made whole at a time.
    return total + number * (parameters - matrices) + matrices + number * block_matrices(config)


def serving_memory(config: DecoderConfig, context: int, device: str) -> int:
    """Bytes to serve one conversation: weights and cache in bfloat16, and what TensorFlow holds besides."""
    cache = 2 * config.num_layers * config.key_value_width * min(context, SERVED_TOKENS) * 2
    return 2 * presets.count_parameters(config) + cache + RUNTIME_BYTES["CPU" if device == "cpu" else "GPU"]


def days_of_a_pass(config: DecoderConfig, tokens: float, full: bool, device: str, cores: int) -> float:
    """Days that one pass over the text takes.

    A parameter and token cost 2 operations forward, 2 for the gradient of what goes in, 2 (full) for its own, and 2 for
    the recomputation.
    """
    operations = (8 if full else 6) * presets.count_parameters(config) * tokens
    return operations / (SPEEDS[device] * cores) / 86_400


def methods(model: PretrainedModelInfo, config: SuggestConfig) -> Iterator[Method]:
    """The ways to tune it, best first.

    All weights are worth training where the text has about as many tokens as the model has parameters; with less it
    learns the text by heart, and adapters of some percent of the size are enough.
    """
    tokens = config.data_bytes() / BYTES_A_TOKEN
    lora = f"--learning_rate={RATES['lora']:g} --weight_decay=0 --lora_rank={RANK}"
    flags = {
        "full": ("all weights", f"--learning_rate={RATES['full']:g}"),
        "lora": (f"LoRA, rank {RANK}", lora),
        "int8": (f"LoRA, rank {RANK}, over int8", f"{lora} --base_weights=int8"),
    }
    much = tokens >= presets.count_parameters(model.config)
    for method in ("full", "lora", "int8") if much else ("lora", "int8"):
        days = days_of_a_pass(model.config, tokens, method == "full", config.device, config.cores)
        yield Method(*flags[method], tuning_memory(model.config, method, config.device), days)


def candidate(model: PretrainedModelInfo, config: SuggestConfig, memory: int) -> Candidate:
    """What the model is for this task, text and machine."""
    offered = list(methods(model, config))
    method = next((method for method in offered if method.memory <= COMFORTABLE * memory), None)
    made_to_talk = config.task in TALKING and bool(model.chat)
    name = model.chat if made_to_talk else model.base
    reads = model.reads(name)
    serving = serving_memory(model.config, reads, config.device)
    smallest = min(offered, key=lambda method: method.memory)
    unfit = too_much = ""
    if config.licence == "open" and model.licence not in OPEN_LICENCES:
        unfit = f"its licence is {model.licence}"
    elif reads < config.context:
        unfit = f"it reads {reads:,} tokens"
    elif config.language and config.language.title() not in model.languages:
        unfit = f"its maker does not name {config.language.title()}"
    elif config.task == "languages" and len(model.languages) == 1:
        unfit = "it was made for English"
    elif config.task == "code" and not model.code:
        unfit = "its maker names no programs among what it read"
    if method is None:
        too_much = f"tuning needs about {in_bytes(smallest.memory)} ({smallest.name})"
    elif serving > COMFORTABLE * memory:
        too_much = f"serving needs about {in_bytes(serving)}"
    elif method.days > config.days:
        too_much = f"a pass over the text takes about {duration(method.days)}"
    suited = 2 if made_to_talk or config.task not in TALKING else 1
    return Candidate(model, name, method, serving, unfit, too_much, suited, expected_loss(model))


def ranked(config: SuggestConfig, memory: int) -> list[Candidate]:
    """All models: those that are a choice first, best first."""
    found = [candidate(model, config, memory) for model in FAMILIES]
    return sorted(found, key=lambda one: (bool(one.problem), -one.suited, one.loss))


def duration(days: float) -> str:
    """0.01 → "14 minutes"."""
    minutes = days * 1440
    if minutes < 1:
        return "less than a minute"
    if minutes < 120:
        return f"{minutes:.0f} minutes"
    return f"{minutes / 60:.0f} hours" if minutes < 2 * 1440 else f"{days:.0f} days"


def why(one: Candidate, place: int, config: SuggestConfig) -> str:
    """A sentence on a choice."""
    assert one.method is not None
    size = in_numbers(presets.count_parameters(one.model.config))
    learned = (
        f"up to {in_numbers(one.model.training_tokens)} tokens"
        if one.model.training_tokens
        else "a number of tokens that is not published"
    )
    first = "the most is to be expected of it: " if place == 1 else ""
    taught = "taught to talk, " if one.model.chat and one.name == one.model.chat else ""
    conditions = f" ({one.model.conditions})" if one.model.conditions else ""
    languages = f" of {', '.join(one.model.languages)}" if config.task == "languages" or config.language else ""
    if one.suited < 2:
        taught = "not yet taught to talk, "
    return (
        f"{first}{taught}{size} parameters that have read {learned}; tuning ({one.method.name}) takes "
        f"about {in_bytes(one.method.memory)} and {duration(one.method.days)} a pass, serving {in_bytes(one.serving)}; "
        f"it reads {one.model.reads(one.name):,} tokens{languages}; licence: {one.model.licence}{conditions}."
    )


def next_commands(one: Candidate, config: SuggestConfig) -> list[str]:
    """What to type to start from it: one pass over the text, rows as the memory was counted for, one at a time."""
    assert one.method is not None
    directory = f"models/{one.name.rsplit('/', 1)[1].lower()}"
    kind = "--objective=chat --train_text=chats.jsonl" if config.task in TALKING else "--train_text='my/*'"
    devices = 1 if config.device == "cpu" else config.cores
    micro_batches = math.ceil(ROWS / devices)
    rows = micro_batches * devices
    steps = max(10, math.ceil(config.data_bytes() / BYTES_A_TOKEN / (rows * ROW_TOKENS)))
    mixed = "" if config.device == "cpu" else "--dtype=mixed_bfloat16 "
    return [
        f"python -m tfgpt.convert --source={one.name} --output={directory}",
        f"python -m tfgpt.train --init_from={directory} {kind} {one.method.flags} "
        f"--max_steps={steps} --warmup_steps={min(100, steps // 10)} {mixed}--rematerialize "
        f"--sequence_length={ROW_TOKENS} --batch_size={rows} --gradient_accumulation_steps={micro_batches}",
    ]


def machine(config: SuggestConfig, memory: int) -> str:
    """`2 CPU cores with 16.0 GiB`, `4 TPU chips with 16.0 GiB each`."""
    name = {"cpu": "CPU core", "gpu": "GPU", "tpu": "TPU chip"}[config.device]
    many = config.cores > 1
    each = " each" if many and config.device != "cpu" else ""
    return f"{config.cores} {name}{'s' if many else ''} with {in_bytes(memory)}{each}"


def suggestion(config: SuggestConfig, choices: int = 4) -> list[str]:
    """The ranking as lines for people, the next command last.

    Raises:
        UserError: the memory is not known, or nothing fits.
    """
    memory = config.memory_bytes()
    size = config.data_bytes()
    tokens = size / BYTES_A_TOKEN
    found = ranked(config, memory)
    good = [one for one in found if not one.problem]
    lines = [f"For {config.task}, {in_numbers(tokens)} tokens of text ({config.data_size}), {machine(config, memory)}:"]
    if not good:
        near = [one for one in found if not one.unfit] or found
        raise UserError(
            f"no model fits: {'; '.join(f'{one.name}: {one.problem}' for one in near[-3:])}. Give more --memory or "
            "--days, a smaller --context, or train one of your own with --preset=tiny"
        )
    lines += [f"{place:>2}. {one.name}: {why(one, place, config)}" for place, one in enumerate(good[:choices], 1)]
    if len(good) > choices:
        lines.append(f"    Also possible: {', '.join(one.name for one in good[choices:])}.")
    if len(good) < len(found):
        lines.append(f"Not: {'; '.join(reasons(found[len(good) :]))}.")
    own = largest_of_ones_own(tokens)
    if own:
        lines.append(
            f"So much text also trains a model of your own: --preset={own} (20 tokens a parameter, Hoffmann et al.)."
        )
    commands = next_commands(good[0], config)
    return [*lines, f"Next:    {commands[0]}", f"then:    {commands[1]}"]


def reasons(found: list[Candidate]) -> Iterator[str]:
    """Why models are no choice, those with the same reason together."""
    by_problem: dict[str, list[str]] = {}
    for one in found:
        by_problem.setdefault(one.problem, []).append(one.name)
    return (f"{', '.join(names)} ({problem})" for problem, names in by_problem.items())


def largest_of_ones_own(tokens: float) -> str:
    """The largest preset of ours for which there are 20 tokens a parameter (arXiv 2203.15556, table 3); "" for none."""
    sizes = {name: presets.count_parameters(presets.resolve(name)) for name in ("tiny", "mini", "small", "base")}
    return next((name for name, size in reversed(sizes.items()) if 20 * size <= tokens), "")
