"""How much memory a run needs, by kind, against what is there; and which flags make it fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from tfgpt.diagnosis.check_results import FAIL, OK, WARN, CheckResult, in_bytes, in_numbers
from tfgpt.diagnosis.system_memory import Memory, free_disk
from tfgpt.model import presets
from tfgpt.model.config import DecoderConfig
from tfgpt.model.lora import LoraConfig
from tfgpt.training.objectives.preference_config import ANSWERS_AT_A_TIME
from tfgpt.training.train_config import TrainConfig

CHUNK_BYTES = 64 << 20
"""As `tfgpt.training.losses.CHUNK_BYTES`: float32 logits that exist at once."""

RUNTIME_BYTES = {"CPU": 1 << 30, "GPU": 600 << 20}
SECOND_MODE_BYTES = 400 << 20
"""What Python, TensorFlow and its compiled programs hold besides the model. On CPUs 0.6 GiB before there is one and 0.3
to 0.5 more once the step is compiled. With it the estimate without the checkpoint's copy over the measured peak of the
process was (TF 2.21, 2026-11-22; graph, XLA): mini, 16 rows of 256, 1.02, 0.93; gpt2 with 260 bytes, 1 row of 64, 0.99,
0.93; tiny, 8 rows of 64, 1.15 (graph). --compile=auto compiles both and keeps SECOND_MODE_BYTES more.

Too low for adapters on a large vocabulary: SmolLM2-135M with rank 16, 4 rows of 256, mixed_bfloat16, graph: estimated
2.8 GiB; doctor's process held 5.5 at its peak (2026-11-25), the run itself 4.6: 2.1 with the model built, 3.0 after the
first validation, the rest from the first update on. The runtime's share grows with the model, uncounted."""

NO_ADAPTERS = LoraConfig()
IN_PAIRS = ("dpo", "ipo", "orpo", "simpo")
COMFORTABLE = 0.85
"""The estimate may be off: more than this share of what is there gets a warning."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """What the run would live on.

    Attributes:
        memory: of the device that computes: RAM, or the smallest GPU; None when it cannot be known.
        replicas: how many share the batch.
        gpu: whether the devices are GPUs.
    """

    memory: Memory | None
    replicas: int
    gpu: bool


def estimate(recipe: TrainConfig, config: DecoderConfig, machine: Machine) -> dict[str, int]:
    """Bytes that the run needs on one device, by kind, and their "total".

    Weights, gradients and optimizer are exact, activations good to about a third (`presets.training_memory`). Replicas
    on logical CPUs share one memory; each GPU has its own. With LoRA only the adapters have gradients and slots. Pairs
    are two rows each. Rewards need a second model with --kl_penalty, and the keys and values of the answers that are
    written at a time.
    """
    objective = recipe.objective.objective
    batch_rows = recipe.batch.batch_size * (2 if objective in IN_PAIRS else 1)
    rows = -(-batch_rows // (recipe.step.gradient_accumulation_steps * machine.replicas))
    length = recipe.batch.sequence_length
    parts = presets.training_memory(
        config,
        batch_size=rows,
        sequence_length=length,
        optimizer_slots=0,
        mixed=recipe.step.dtype == "mixed_bfloat16",
        ema=bool(recipe.optimizer.ema_decay),
    )
    parameters = trained_parameters(config, recipe.lora)
    if recipe.lora.lora_rank:
        parts["weights"] = adapted_bytes(recipe, config, copies=2 if recipe.step.dtype == "mixed_bfloat16" else 0)
        parts["gradients"] = 4 * parameters
    tokens = rows * length
    chunk = recipe.step.cross_entropy_chunk_tokens or chunk_tokens(tokens, config.vocabulary_size)
    parts["logits"] = parts["logits"] * min(chunk, tokens) // tokens
    if chunk < tokens and not recipe.lora.lora_rank:
        # The head's gradient is added up over the chunks.
        parts["logits"] += 4 * config.vocabulary_size * config.hidden_dim
    if recipe.step.gradient_accumulation_steps > 1:
        parts["gradients"] *= 2
    parts["optimizer"] = optimizer_bytes(recipe.optimizer.optimizer, config, recipe.lora)
    # The update makes the clipped gradients and all new weights and slots before it writes any.
    parts["update"] = 8 * parameters + parts["optimizer"]
    kinds = ("weights", "gradients", "optimizer", "update", "activations", "logits")
    if not machine.gpu:
        parts = {kind: parts[kind] * machine.replicas for kind in kinds}
        # A checkpoint is copied at once and written while training goes on.
        parts["checkpoint copy"] = 4 * parameters + parts["optimizer"] // machine.replicas
    else:
        parts = {kind: parts[kind] for kind in kinds}
    if objective == "grpo":
        parts["answers"] = ANSWERS_AT_A_TIME * length * 2 * config.num_layers * config.key_value_width * 4
        parts["reference"] = 4 * presets.count_parameters(config) if recipe.reward.kl_penalty else 0
    parts["runtime"] = RUNTIME_BYTES["GPU" if machine.gpu else "CPU"]
    if recipe.step.compile == "auto":
        parts["runtime"] += SECOND_MODE_BYTES
    return parts | {"total": sum(parts.values())}


def chunk_tokens(tokens: int, vocabulary_size: int) -> int:
    """As `tfgpt.training.losses.automatic_chunk_tokens`, which needs TensorFlow."""
    rows = CHUNK_BYTES // (4 * vocabulary_size)
    return tokens if tokens <= rows else max(rows // 128 * 128, 128)


def optimizer_bytes(optimizer: str, config: DecoderConfig, lora: LoraConfig = NO_ADAPTERS) -> int:
    """Bytes of the optimizer's slots, float32: AdamW two numbers a parameter, Lion one, Adafactor one and some.

    Keras's Adafactor keeps rows, columns and, to no use, their product. Muon keeps one number for the blocks' matrices
    and AdamW's two for all else; adapters are nothing but such matrices.
    """
    parameters = trained_parameters(config, lora)
    matrices = parameters if lora.lora_rank else config.num_layers * block_matrices(config)
    muon = matrices + 2 * (parameters - matrices)
    adafactor = parameters + parameters // 500
    return 4 * {"adamw": 2 * parameters, "lion": parameters, "muon": muon, "adafactor": adafactor}[optimizer]


def projection_shapes(config: DecoderConfig) -> dict[str, tuple[int, int]]:
    """[in, out] of the matrices of one block by their names in `lora.LAYERS`."""
    width, inner = config.hidden_dim, config.intermediate_dim
    shapes = {
        "query": (width, config.query_width),
        "key": (width, config.key_value_width),
        "value": (width, config.key_value_width),
        "output": (config.query_width, width),
        "up": (width, inner),
        "down": (inner, width),
    }
    return shapes | ({"gate": (width, inner)} if config.mlp == "swiglu" else {})


def block_matrices(config: DecoderConfig) -> int:
    """Numbers in the matrices of one block: attention's four, and the MLP's two or three."""
    return sum(inputs * outputs for inputs, outputs in projection_shapes(config).values())


def trained_parameters(config: DecoderConfig, lora: LoraConfig) -> int:
    """Numbers that the optimizer changes: all of the model's, or the adapters' [in, rank] and [rank, out]."""
    if not lora.lora_rank:
        return presets.count_parameters(config)
    shapes = projection_shapes(config)
    chosen = [shapes[name] for name in lora.layers() if name in shapes]
    return config.num_layers * lora.lora_rank * sum(inputs + outputs for inputs, outputs in chosen)


def adapted_bytes(recipe: TrainConfig, config: DecoderConfig, copies: int) -> int:
    """Bytes of a frozen model and its adapters, of the adapters' average, and of `copies` bytes more a number.

    In eight bits a projection is a kernel of one byte a number and a float32 scale for each output; no copy is kept.
    """
    frozen, trained = presets.count_parameters(config), trained_parameters(config, recipe.lora)
    adapters = trained * (4 + copies + (4 if recipe.optimizer.ema_decay else 0))
    if recipe.lora.base_weights == "float":
        return adapters + frozen * (4 + copies)
    kernels = config.num_layers * block_matrices(config)
    scales = config.num_layers * sum(outputs for _, outputs in projection_shapes(config).values())
    return adapters + (frozen - kernels) * (4 + copies) + kernels + 4 * scales


def parameters_in_words(config: DecoderConfig, lora: LoraConfig) -> str:
    """How many there are, and how many of them are trained."""
    parameters = presets.count_parameters(config)
    if not lora.lora_rank:
        return f"{in_numbers(parameters)} parameters"
    trained = trained_parameters(config, lora)
    return f"{in_numbers(parameters)} frozen parameters ({lora.base_weights}) and {in_numbers(trained)} trained ones"


def check_memory(recipe: TrainConfig, config: DecoderConfig, machine: Machine) -> CheckResult:
    """Whether the estimate fits into what is there."""
    parts = estimate(recipe, config, machine)
    trained = trained_parameters(config, recipe.lora)
    numbers: dict[str, object] = {
        "estimate": parts,
        "replicas": machine.replicas,
        "trained_parameters": trained,
        "frozen_parameters": presets.count_parameters(config) if recipe.lora.lora_rank else 0,
    }
    kinds = ", ".join(f"{kind} {in_bytes(count)}" for kind, count in parts.items() if kind != "total")
    line = f"about {in_bytes(parts['total'])} ({kinds}) for {parameters_in_words(config, recipe.lora)}"
    memory = machine.memory
    if memory is None:
        return CheckResult("memory", OK, f"{line}; how much there is cannot be known on this system", numbers=numbers)
    numbers |= {"available": memory.available, "there": memory.total, "source": memory.source}
    line += f"; there is {in_bytes(memory.total)} ({memory.source}), {in_bytes(memory.available)} of it free"
    if parts["total"] <= COMFORTABLE * memory.available:
        return CheckResult("memory", OK, line, numbers=numbers)
    advice = tuple(ways_to_fit(recipe, machine, config.vocabulary_size, COMFORTABLE * memory.available))
    if parts["total"] <= memory.available:
        return CheckResult("memory", WARN, f"{line}: that is tight", advice, numbers)
    if parts["total"] <= memory.total:
        advice = ("stop other programs that use memory", *advice)
    return CheckResult("memory", FAIL, f"{line}: it does not fit", advice, numbers)


def ways_to_fit(recipe: TrainConfig, machine: Machine, vocabulary_size: int, room: float) -> Iterator[str]:
    """Lines that name flags with which the estimate is at most `room` bytes, those that change least first."""

    def size(changed: TrainConfig) -> int:
        return estimate(changed, decoder_config(changed, vocabulary_size), machine)["total"]

    fitting = [(flags, needed) for flags, changed in candidates(recipe, machine) if (needed := size(changed)) <= room]
    if fitting:
        yield from (f"{flags} needs about {in_bytes(needed)}" for flags, needed in fitting[:2])
        return
    yield "no smaller micro-batch helps, nor --dtype=mixed_bfloat16 and --rematerialize; fewer parameters do:"
    if recipe.run.init_from is None:
        yield from smaller_presets(recipe, machine, vocabulary_size, size, room)


def smaller_presets(
    recipe: TrainConfig, machine: Machine, vocabulary_size: int, size: Callable[[TrainConfig], int], room: float
) -> list[str]:
    """The two largest presets that fit, each with the fewest other changes."""
    found = []
    for name in presets.PRESETS:
        smaller = with_preset(recipe, name)
        if smaller is None:
            continue
        parameters = presets.count_parameters(decoder_config(smaller, vocabulary_size))
        for flags, changed in [("", smaller), *candidates(smaller, machine)]:
            if (needed := size(changed)) <= room:
                words = " ".join([f"--preset={name}", *flags.split()])
                found.append((parameters, f"{words} needs about {in_bytes(needed)}"))
                break
    return [line for _, line in sorted(found, reverse=True)[:2]]


def candidates(recipe: TrainConfig, machine: Machine) -> Iterator[tuple[str, TrainConfig]]:
    """(flags, recipe with them) from what changes least: accumulation, then bfloat16, then recomputation."""
    rows = recipe.batch.batch_size
    steps = [
        count
        for count in range(recipe.step.gradient_accumulation_steps, rows // machine.replicas + 1)
        if rows % (count * machine.replicas) == 0
    ]
    steps = (
        [recipe.step.gradient_accumulation_steps, *steps[1:]] if steps else [recipe.step.gradient_accumulation_steps]
    )
    mixed = [recipe.step.dtype] if recipe.step.dtype == "mixed_bfloat16" else ["float32", "mixed_bfloat16"]
    recompute = [True] if recipe.model.get("rematerialize") else [False, True]
    for rematerialize in recompute:
        for dtype in mixed:
            for count in steps:
                flags = []
                if count != recipe.step.gradient_accumulation_steps:
                    flags.append(f"--gradient_accumulation_steps={count}")
                if dtype != recipe.step.dtype:
                    flags.append(f"--dtype={dtype}")
                if rematerialize and not recipe.model.get("rematerialize"):
                    flags.append("--rematerialize")
                if flags:
                    step = dataclasses.replace(recipe.step, gradient_accumulation_steps=count, dtype=dtype)
                    model = {**recipe.model, "rematerialize": True} if rematerialize else recipe.model
                    yield " ".join(flags), dataclasses.replace(recipe, step=step, model=model)


def with_preset(recipe: TrainConfig, name: str) -> TrainConfig | None:
    """The recipe with another preset, or None where its other flags do not go with that one."""
    from tfgpt.common.errors import UserError

    try:
        return dataclasses.replace(recipe, preset=dataclasses.replace(recipe.preset, preset=name))
    except UserError:
        return None


def decoder_config(recipe: TrainConfig, vocabulary_size: int) -> DecoderConfig:
    """The recipe's decoder; a model to start from has a vocabulary of its own."""
    return recipe.initial_config() if recipe.run.init_from is not None else recipe.decoder_config(vocabulary_size)


def check_disk(recipe: TrainConfig, config: DecoderConfig) -> CheckResult:
    """Whether the checkpoints that are kept, and the model, fit on the run directory's disk."""
    parameters = trained_parameters(config, recipe.lora)
    slots = optimizer_bytes(recipe.optimizer.optimizer, config, recipe.lora)
    one = 4 * parameters * (2 if recipe.optimizer.ema_decay else 1) + slots
    # One more is being written before the oldest goes.
    kept = recipe.run.checkpoints_kept + 1 + recipe.run.save_best
    # The model is whole even where only adapters are trained, which are written by themselves as well.
    written = 4 * presets.count_parameters(config) + (4 * parameters if recipe.lora.lora_rank else 0)
    needed, free = kept * one + written, free_disk(recipe.run_dir)
    numbers = {"needed": needed, "free": free, "checkpoint": one}
    line = f"checkpoints and model take {in_bytes(needed)} in {recipe.run_dir}; {in_bytes(free)} are free there"
    if needed <= free:
        return CheckResult("disk", OK, line, numbers=numbers)
    advice = (
        "--run_dir=… on a larger disk, or free some space",
        "--checkpoints_kept=1 and --save_best=false keep fewer",
    )
    return CheckResult("disk", FAIL, line, advice, numbers)
