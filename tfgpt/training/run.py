"""A whole training run: prepare what is missing, assemble, resume, train, write the model, say what came of it."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import shlex
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tfgpt
from tfgpt.common.adapters import is_adapter
from tfgpt.common.atomic_files import recover_leftovers, write_json, write_text
from tfgpt.common.command_line import shell_command
from tfgpt.common.errors import UserError
from tfgpt.common.output_directories import check_replaceable, result_directory, working_directory
from tfgpt.common.progress import Progress, format_duration
from tfgpt.conversion.cached_conversion import stored_base_name
from tfgpt.generation.config import SamplingConfig
from tfgpt.generation.generator import Generator
from tfgpt.model import cost
from tfgpt.model.checkpoints.huggingface import save_decoder
from tfgpt.model.checkpoints.peft_adapters import save_adapter
from tfgpt.model.checkpoints.safetensors_file import weights_fingerprint
from tfgpt.tokenization.tokenizer import Tokenizer
from tfgpt.training.checkpoints import Checkpoint, Checkpoints, assign
from tfgpt.training.compilation import choose_compilation
from tfgpt.training.distribution import startup_barrier
from tfgpt.training.distribution.collectives import HostGroup
from tfgpt.training.distribution.strategy import check_batch, is_tpu_strategy, resolve
from tfgpt.training.metrics_writers import JsonlMetricsWriter, TensorBoardWriter, draw_curves, read_metrics
from tfgpt.training.objectives.base import Objective
from tfgpt.training.peak_flops import measured_peak_flops
from tfgpt.training.stop_signals import StopSignals
from tfgpt.training.train_config import TrainConfig
from tfgpt.training.trainer_builder import RunParts, assemble
from tfgpt.training.training_loop import LoopParts, LoopState, TrainingLoop, in_words, restored


def train(recipe: TrainConfig, flag_file: str, callbacks: tuple[keras.callbacks.Callback, ...] = ()) -> int:
    """Trains as the recipe says and leaves the run directory behind.

    Args:
        recipe: the settings.
        flag_file: the text of flags.cfg, which repeats the run.
        callbacks: Keras callbacks, driven by the loop; an epoch is the time between two validations.

    Returns:
        The exit code: 0 when done, --preempted_exit_code when stopped by a signal, resumably.

    Raises:
        UserError: settings, data or the run directory are at fault.
        RunError: the run failed.
    """
    check_base(recipe)
    strategy = resolve(recipe.strategy)
    check_batch(recipe.batch.batch_size, recipe.step.gradient_accumulation_steps, strategy)
    hosts = HostGroup(strategy)
    checkpoints = Checkpoints(recipe.run_dir / "checkpoints", recipe.run.checkpoints_kept)
    try:
        with (
            contextlib.ExitStack() as held,
            hosts.watched(lambda: after_a_loss(recipe, checkpoints)),
        ):
            hosts.chief_does(lambda: held.enter_context(claimed_directory(recipe, checkpoints)))
            outcome = train_together(recipe, flag_file, callbacks, strategy, hosts, checkpoints)
    finally:
        checkpoints.close()
    return recipe.run.preempted_exit_code if outcome == "stopped" else 0


def train_together(
    recipe: TrainConfig,
    flag_file: str,
    callbacks: tuple[keras.callbacks.Callback, ...],
    strategy: tf.distribute.Strategy,
    hosts: HostGroup,
    checkpoints: Checkpoints,
) -> str:
    """What every host does: the chief writes, reads checkpoints and speaks, all of them train; how it ended."""
    directory, say = recipe.run_dir, hosts.say
    objective = recipe.objective.kind()
    data = prepared(recipe, objective, hosts)
    assembly = assemble(recipe, data, strategy, objective)
    trainer = assembly.trainer
    facts = restored(
        checkpoints, trainer, hosts, check=lambda checkpoint: check_same_run(recipe, data, checkpoint), report=say
    )
    state = LoopState() if facts is None else LoopState(**facts["state"])
    if hosts.is_chief:
        say(f"Data: {objective.in_words(recipe, data)}")
        if recipe.run.init_from is not None and is_foreign(data.tokenizer, recipe.initial_model):
            say(f"Tokenizer: {recipe.tokenizer.tokenizer} is not that of {recipe.run.init_from}: what the model has")
            say("           learned of its own tokens is given to others; without --tokenizer it keeps its own")
        describe(recipe, trainer.decoder, strategy)
        write_text(directory / "flags.cfg", flag_file)
    if facts is not None:
        say(f"Resuming from {checkpoints.path_of(state.step)} (step {state.step})")
        if state.step >= recipe.run.max_steps:
            say(f"The run is finished: {state.step} of {recipe.run.max_steps} steps; raise --max_steps to go on")

    compilation = choose_compilation(
        trainer, assembly.batches, recipe.step.compile, facts["compile"] if facts else None, report=say, hosts=hosts
    )
    watched = recipe.logging.tensorboard and hosts.is_chief
    with (
        contextlib.closing(
            JsonlMetricsWriter(directory / "metrics.jsonl" if hosts.is_chief else None, state.step)
        ) as metrics,
        contextlib.closing(
            TensorBoardWriter(directory / "tensorboard" if watched else None, state.step)
        ) as tensorboard,
    ):
        tensorboard.hyperparameters(recipe.flags())
        samples = Samples(recipe, assembly, data, objective)
        parts = LoopParts(
            trainer=trainer,
            hosts=hosts,
            batches=assembly.batches,
            validation=assembly.validation,
            validation_steps=assembly.validation_steps,
            by_source=assembly.by_source,
            updates_per_rollout=assembly.updates_per_rollout,
            measure=assembly.measure,
            checkpoints=checkpoints,
            metrics=metrics,
            tensorboard=tensorboard,
            samples=samples,
            facts={
                "flags": recipe.flags(),
                "data_fingerprint": data.fingerprint,
                "compile": compilation,
                "base_fingerprint": base_fingerprint(recipe),
            },
            flops_per_token=cost.training_flops_per_token(trainer.decoder.config, recipe.batch.sequence_length),
            peak_flops=measured_peak_flops(recipe.step.dtype),
            callbacks=callbacks,
        )
        loop = TrainingLoop(recipe, parts, state)
        progress = Progress(recipe.run.max_steps, "step", "train", initial=state.step, silent=not hosts.is_chief)
        with StopSignals() as signals, progress:
            outcome = loop.run(signals, progress)
        if outcome == "stopped":
            say(f"Stopped at step {loop.state.step}, saved in {checkpoints.directory}; to go on:")
            written = directory / "flags.cfg"
            say(f"  {shell_command('train', f'--flagfile={written}')}")
        elif hosts.is_chief:
            finish(recipe, data, assembly, loop.state, checkpoints, samples)
    # Nobody leaves before the chief has written everything: it would look like the loss of a worker.
    hosts.gather([0.0])
    return outcome


def prepared(recipe: TrainConfig, objective: Objective, hosts: HostGroup) -> Any:
    """What the objective reads; the chief makes what is missing, the others find it, or make it themselves.

    Raises:
        UserError: the data are at fault, or are not the same on every host.
    """

    def make() -> Any:
        return objective.prepare(recipe)

    data = hosts.chief_does(make) or make()
    theirs = hosts.share(data.fingerprint)
    differing = np.flatnonzero(hosts.gather([data.fingerprint != theirs])[:, 0])
    if len(differing):
        raise UserError(
            f"--train_text: {startup_barrier.in_words(hosts.cluster, differing.tolist())} has other text or another "
            "tokenizer than the chief; give all of them the same files"
        )
    return data


def after_a_loss(recipe: TrainConfig, checkpoints: Checkpoints) -> str:
    """What to do when a worker is lost."""
    steps = checkpoints.steps()
    where = f"go on from step {steps[-1]}" if steps else "begin again"
    return f"start the same command on every worker to {where} (--restarts=3 does so by itself)"


def say(text: str) -> None:
    """A line for the person watching."""
    print(text, flush=True)


@contextlib.contextmanager
def claimed_directory(recipe: TrainConfig, checkpoints: Checkpoints) -> Iterator[None]:
    """Makes the run directory and locks it, before hours of preparing show that it cannot be written.

    Raises:
        UserError: it cannot be written, another process writes it, it holds other files, or it holds a run that
            --resume=never must not touch.
    """
    with working_directory(recipe.run_dir, "run", "run_dir") as directory:
        recover_leftovers(directory)
        check_replaceable(directory / "model", "model directory", "run_dir")
        check_replaceable(directory / "adapter", "adapter", "run_dir")
        if recipe.run.resume == "never" and checkpoints.steps():
            raise UserError(
                f"--run_dir: {directory} holds a run at step {checkpoints.steps()[-1]}; go on with --resume=auto, "
                "choose another --run_dir or delete the directory"
            )
        yield


def check_same_run(recipe: TrainConfig, data: Any, checkpoint: Checkpoint) -> None:
    """Compares flags and data with those the checkpoint was written under; says what changed.

    Raises:
        UserError: the data or a flag changed that makes it another run.
    """
    for change in recipe.changes(checkpoint.facts["flags"]):
        say(f"Changed since the checkpoint: {change}")
    if checkpoint.facts["data_fingerprint"] != data.fingerprint:
        raise UserError(
            f"--train_text: the data or the tokenizer changed since {checkpoint.path} was written; "
            "choose another --run_dir (--init_from takes over the model), or put the data back as it was"
        )
    if checkpoint.facts.get("base_fingerprint") != base_fingerprint(recipe):
        raise UserError(
            f"--init_from: {checkpoint.path} holds adapters of other weights than {recipe.run.init_from} has now; "
            "put the model back as it was, or choose another --run_dir"
        )


def is_foreign(tokenizer: Tokenizer, base: Path) -> bool:
    """Whether a run that goes on from the model `base` has another tokenizer than it."""
    return tokenizer.fingerprint != Tokenizer.load(base).fingerprint


def check_base(recipe: TrainConfig) -> None:
    """Refuses an adapter as the base of an adapter.

    Raises:
        UserError: so it is.
    """
    if recipe.lora.lora_rank and is_adapter(recipe.initial_model):
        raise UserError(
            f"--init_from: {recipe.run.init_from} is an adapter itself; give the model that is already merged, the "
            "run's model/"
        )


def base_fingerprint(recipe: TrainConfig) -> str | None:
    """Of the weights below the adapters, which a checkpoint does not hold; None without adapters."""
    return weights_fingerprint(recipe.initial_model) if recipe.lora.lora_rank else None


def describe(recipe: TrainConfig, decoder: Any, strategy: tf.distribute.Strategy) -> None:
    """A line or two on what is about to be trained where."""
    tokens = recipe.batch.batch_size * recipe.batch.sequence_length
    say(
        f"Model: {cost.count_parameters(decoder.config):,} parameters, vocabulary {decoder.config.vocabulary_size}; "
        f"{recipe.run.max_steps:,} updates of {tokens:,} tokens; run directory {recipe.run_dir}"
    )
    for caution in recipe.cautions():
        say(caution)
    if recipe.lora.lora_rank:
        adapters = sum(math.prod(variable.shape) for variable in decoder.trainable_variables)
        say(f"LoRA:  {adapters:,} parameters are trained; the model's own are frozen ({recipe.lora.base_weights})")
    replicas = strategy.num_replicas_in_sync
    if replicas > 1:
        say(f"Devices: {replicas} share each batch, {recipe.batch.batch_size // replicas} rows each ({kind(strategy)})")


def kind(strategy: tf.distribute.Strategy) -> str:
    """The strategy's public name and hosts."""
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return f"MultiWorkerMirroredStrategy of {HostGroup(strategy).count} workers"
    return "TPUStrategy" if is_tpu_strategy(strategy) else "MirroredStrategy"


class Samples:
    """Sampled continuations of the prompts of a run, by one generator, so that its graphs are traced once.

    Args:
        recipe: the prompts, how many tokens, which temperature.
        assembly: the trainer whose decoder writes.
        data: the tokenizer.
        objective: how prompts are put to the model.
    """

    def __init__(self, recipe: TrainConfig, assembly: RunParts, data: Any, objective: Objective):
        self.logging, self.seed, self.trainer = recipe.logging, recipe.run.seed, assembly.trainer
        self.generator = Generator(assembly.trainer.decoder, data.tokenizer)
        prompts = [objective.prompt(data.tokenizer, text) for text in recipe.logging.sample_prompt]
        # Ids that are too many for a very short context lose their beginning: it is only a sample.
        self.prompts = [prompt if isinstance(prompt, str) else prompt[-self.generator.context :] for prompt in prompts]

    def __call__(self, number: int = 0) -> dict[str, str]:
        """Prompt → prompt and continuation, for each --sample_prompt; `number` chooses another draw."""
        logging = self.logging
        if not logging.sample_tokens or not logging.sample_prompt:
            return {}
        sampling = SamplingConfig(
            max_new_tokens=logging.sample_tokens, temperature=logging.sample_temperature, seed=self.seed + number
        )
        with self.trainer.averaged_weights():
            completions = self.generator.generate(self.prompts, sampling)
        # An answer stands alone, a continuation behind what it continues.
        return {
            text: (text if isinstance(prompt, str) else "") + found[0].text
            for text, prompt, found in zip(logging.sample_prompt, self.prompts, completions)
        }


def finish(
    recipe: TrainConfig, data: Any, assembly: RunParts, state: LoopState, checkpoints: Checkpoints, samples: Samples
) -> None:
    """Writes model/ and curves.png and says what came of the run and what to do next."""
    directory, trainer = recipe.run_dir, assembly.trainer
    step = state.step
    if recipe.run.save_best and state.best_loss is not None and state.best_step != step:
        best = checkpoints.whole(state.best_step, say, f"model/ is the last, of step {step}, instead of the best")
        if best is not None:
            assign(best.arrays(), trainer.state_variables(), best.path)
            step = best.step
    write_model(recipe, data, trainer, state, step)
    rows = read_metrics(directory / "metrics.jsonl")
    draw_curves(rows, directory / "curves.png", f"{directory}: {recipe.preset.preset}, {state.step} steps")
    before, after = (
        state.first_validation or {},
        next(
            (row for row in reversed(rows) if row["step"] == step and "validation_loss" in row),
            state.last_validation or {},
        ),
    )
    say("")
    say(f"Trained {state.step:,} steps in {format_duration(state.trained_seconds)} of updates.")
    if before and after:
        say(f"Held out before: {in_words(before)}")
        say(f"Held out after:  {in_words({name: value for name, value in after.items() if name in before})}")
    if recipe.logging.sample_tokens:
        say("Three sampled continuations:")
        for number in range(3):
            text = " ".join(next(iter(samples(number).values()), "").split())
            say(f"  {number + 1}. {text or '(it ended at once)'}")
    say(f"Model:       {directory / 'model'}  (config.json, model.safetensors, tokenizer.json, …)")
    if recipe.lora.lora_rank:
        say(f"Adapter:     {directory / 'adapter'}  (merged in model/; alone it opens with peft)")
    say(f"Curves:      {directory / 'curves.png'}, numbers in {directory / 'metrics.jsonl'}")
    local = Path(sys.executable).is_relative_to(Path.cwd())
    python = shlex.quote(os.path.relpath(sys.executable)) if local else "python"
    if recipe.logging.tensorboard:
        say(f"TensorBoard: {python} -m tensorboard.main --logdir={shlex.quote(str(directory / 'tensorboard'))}")
    model = f"--model={shlex.quote(str(directory))}"
    if recipe.objective.objective == "pretrain":
        say(f"Next:        {python} -m tfgpt.generate {model} --prompt='Once upon a time'")
    else:
        say(f"Next:        {python} -m tfgpt.chat {model}")


def write_model(recipe: TrainConfig, data: Any, trainer: Any, state: LoopState, step: int) -> None:
    """The model directory: weights, configuration, tokenizer, and where it all came from."""
    tokenizer = data.tokenizer
    with (
        result_directory(recipe.run_dir / "model", "model directory", "run_dir") as temporary,
        trainer.averaged_weights(),
    ):
        save_decoder(
            trainer.decoder,
            temporary,
            end_of_text_id=tokenizer.end_of_text_id,
            end_of_turn_id=tokenizer.end_of_turn_id,
            padding_id=tokenizer.padding_id,
        )
        tokenizer.save(temporary)
        write_json(
            temporary / "training.json",
            {
                "step": step,
                "steps_trained": state.step,
                "validation": {"best_loss": state.best_loss, "first": state.first_validation},
                "trained_seconds": round(state.trained_seconds, 1),
                "data_fingerprint": data.fingerprint,
                "data": data.manifest,
                "flags": recipe.flags(),
                "decoder": dataclasses.asdict(trainer.decoder.config),
                "versions": {
                    "tfgpt": tfgpt.__version__,
                    "tensorflow": tf.__version__,
                    "keras": keras.__version__,
                    "numpy": metadata.version("numpy"),
                },
            },
        )

    if recipe.lora.lora_rank:
        with (
            result_directory(recipe.run_dir / "adapter", "adapter", "run_dir") as temporary,
            trainer.averaged_weights(),
        ):
            base = recipe.initial_model
            save_adapter(trainer.decoder, recipe.lora, temporary, base, stored_base_name(str(recipe.run.init_from)))
            tokenizer.save(temporary)
