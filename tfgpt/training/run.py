"""A whole training run: prepare the data, build the trainer, resume, train, write the model."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import shlex
import sys
from collections.abc import Iterator
from importlib import metadata as package_metadata
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
from tfgpt.common.formatting import format_duration
from tfgpt.common.output_directories import check_replaceable, result_directory, working_directory
from tfgpt.common.progress import Progress
from tfgpt.conversion.cached_conversion import stored_base_name
from tfgpt.generation.config import SamplingConfig
from tfgpt.generation.generator import Generator
from tfgpt.model import cost
from tfgpt.model.checkpoints.huggingface import save_decoder
from tfgpt.model.checkpoints.peft_adapters import save_adapter
from tfgpt.model.checkpoints.safetensors_file import weights_fingerprint
from tfgpt.tokenization.load import load_tokenizer
from tfgpt.tokenization.tokenizer import Tokenizer
from tfgpt.training.checkpoints import Checkpoint, Checkpoints, assign, restore
from tfgpt.training.compilation import choose_compilation
from tfgpt.training.distribution.collectives import HostGroup
from tfgpt.training.distribution.startup_barrier import format_workers
from tfgpt.training.distribution.strategy import check_batch, is_tpu_strategy, resolve
from tfgpt.training.metrics_writers import JsonlMetricsWriter, TensorBoardWriter, draw_curves, read_metrics
from tfgpt.training.objectives.base import Objective, get_objective
from tfgpt.training.stop_signals import StopSignals
from tfgpt.training.train_config import TrainConfig
from tfgpt.training.trainer import Trainer
from tfgpt.training.trainer_builder import build_trainer_and_data
from tfgpt.training.training_loop import LoopState, TrainingLoop, format_metrics


def train(recipe: TrainConfig, flag_file: str, callbacks: tuple[keras.callbacks.Callback, ...] = ()) -> int:
    """Runs the training that the settings describe, in the run directory.

    Args:
        flag_file: the text of flags.cfg, which repeats the run.
        callbacks: Keras callbacks; an epoch is the time between two validations.

    Returns:
        The exit code: 0 at the end, --preempted_exit_code when a signal stopped the run, which can be resumed.
    """
    if recipe.lora.lora_rank and is_adapter(recipe.initial_model):
        raise UserError(
            f"--init_from: {recipe.run.init_from} is an adapter itself; give the model that is already merged, the "
            "run's model/"
        )
    strategy = resolve(recipe.strategy)
    check_batch(recipe.batch.batch_size, recipe.step.gradient_accumulation_steps, strategy)
    hosts = HostGroup(strategy)
    checkpoints = Checkpoints(recipe.run_dir / "checkpoints", recipe.run.checkpoints_kept)
    try:
        with (
            contextlib.ExitStack() as locks,
            hosts.readable_worker_errors(lambda: restart_advice(checkpoints)),
        ):
            hosts.run_on_chief(lambda: locks.enter_context(locked_run_directory(recipe, checkpoints)))
            outcome = run_training(recipe, flag_file, callbacks, strategy, hosts, checkpoints)
    finally:
        checkpoints.close()
    return recipe.run.preempted_exit_code if outcome == "stopped" else 0


def run_training(
    recipe: TrainConfig,
    flag_file: str,
    callbacks: tuple[keras.callbacks.Callback, ...],
    strategy: tf.distribute.Strategy,
    hosts: HostGroup,
    checkpoints: Checkpoints,
) -> str:
    """Runs training on every host. The chief writes files and logs. Returns the outcome of `TrainingLoop.run`."""
    directory = recipe.run_dir
    # Prepare data and build the trainer.
    objective = get_objective(recipe.objective.objective)
    prepared = prepare_on_chief(recipe, objective, hosts)
    trainer, data = build_trainer_and_data(recipe, prepared, strategy, objective)

    # Resume.
    base_fingerprint = weights_fingerprint(recipe.initial_model) if recipe.lora.lora_rank else None
    check = functools.partial(check_same_run, recipe, prepared.fingerprint, base_fingerprint)
    metadata = restore(checkpoints, trainer.state_variables(), hosts, check, hosts.log)
    state = LoopState() if metadata is None else LoopState(**metadata["state"])
    if hosts.is_chief:
        log(f"Data: {objective.describe_data(recipe, prepared)}")
        describe_run(recipe, prepared.tokenizer, trainer, strategy)
        write_text(directory / "flags.cfg", flag_file)
        if metadata is not None:
            log(f"Resuming from {checkpoints.path_of(state.step)} (step {state.step})")
            if state.step >= recipe.run.max_steps:
                log(
                    f"The run is finished: {state.step} of {recipe.run.max_steps} steps; "
                    "raise --max_steps to continue it"
                )
    recorded_mode = metadata["compile"] if metadata else None
    mode = choose_compilation(trainer, data.batches, recipe.step.compile, recorded_mode, hosts.log, hosts)

    # Train.
    with contextlib.ExitStack() as writers:
        metrics_file = directory / "metrics.jsonl" if hosts.is_chief else None
        event_files = directory / "tensorboard" if hosts.is_chief and recipe.logging.tensorboard else None
        metrics = writers.enter_context(contextlib.closing(JsonlMetricsWriter(metrics_file, state.step)))
        tensorboard = writers.enter_context(contextlib.closing(TensorBoardWriter(event_files, state.step)))
        tensorboard.hyperparameters(recipe.flags())
        samples = Samples(recipe, trainer, prepared.tokenizer, objective)
        loop = TrainingLoop(
            recipe,
            trainer,
            data,
            state,
            hosts=hosts,
            checkpoints=checkpoints,
            metrics=metrics,
            tensorboard=tensorboard,
            samples=samples,
            metadata={
                "flags": recipe.flags(),
                "data_fingerprint": prepared.fingerprint,
                "compile": mode,
                "base_fingerprint": base_fingerprint,
            },
            callbacks=callbacks,
        )
        progress = Progress(recipe.run.max_steps, "step", "train", initial=state.step, silent=not hosts.is_chief)
        with StopSignals() as signals, progress:
            outcome = loop.run(signals, progress)

    # Write the model.
    if outcome == "stopped":
        hosts.log(f"Stopped at step {loop.state.step}, saved in {checkpoints.directory}; to continue:")
        flags = directory / "flags.cfg"
        hosts.log(f"  {shell_command('train', f'--flagfile={flags}')}")
    elif hosts.is_chief:
        finish(recipe, prepared, trainer, loop.state, checkpoints, samples)
    # Wait for the chief to finish writing; an early exit would be reported as a lost worker.
    hosts.gather([0.0])
    return outcome


def log(text: str) -> None:
    print(text, flush=True)


def prepare_on_chief(recipe: TrainConfig, objective: Objective, hosts: HostGroup) -> Any:
    """Prepares the data on the chief; the other hosts find them in a shared cache, or prepare them too."""
    prepared = hosts.run_on_chief(lambda: objective.prepare(recipe)) or objective.prepare(recipe)
    expected = hosts.broadcast(prepared.fingerprint)
    differing = np.flatnonzero(hosts.gather([prepared.fingerprint != expected])[:, 0])
    if len(differing):
        raise UserError(
            f"--train_text: {format_workers(hosts.cluster, differing.tolist())} has other text or another "
            "tokenizer than the chief; give all of them the same files"
        )
    return prepared


def restart_advice(checkpoints: Checkpoints) -> str:
    steps = checkpoints.steps()
    where = f"continue from step {steps[-1]}" if steps else "begin again"
    return f"start the same command on every worker to {where} (--restarts=3 does so automatically)"


@contextlib.contextmanager
def locked_run_directory(recipe: TrainConfig, checkpoints: Checkpoints) -> Iterator[None]:
    """Makes and locks the run directory, before hours of preparing show that it cannot be written."""
    with working_directory(recipe.run_dir, "run", "run_dir") as directory:
        recover_leftovers(directory)
        check_replaceable(directory / "model", "model directory", "run_dir")
        check_replaceable(directory / "adapter", "adapter", "run_dir")
        if recipe.run.resume == "never" and checkpoints.steps():
            raise UserError(
                f"--run_dir: {directory} holds a run at step {checkpoints.steps()[-1]}; continue it with "
                "--resume=auto, choose another --run_dir or delete the directory"
            )
        yield


def check_same_run(
    recipe: TrainConfig, data_fingerprint: str, base_fingerprint: str | None, checkpoint: Checkpoint
) -> None:
    """Logs flags that changed since the checkpoint; raises UserError if the checkpoint depends on the change."""
    for change in recipe.changes(checkpoint.metadata["flags"]):
        log(f"Changed since the checkpoint: {change}")
    if checkpoint.metadata["data_fingerprint"] != data_fingerprint:
        raise UserError(
            f"--train_text: the data or the tokenizer changed since {checkpoint.path} was written; "
            "choose another --run_dir (--init_from takes over the model), or put the data back as it was"
        )
    if checkpoint.metadata.get("base_fingerprint") != base_fingerprint:
        raise UserError(
            f"--init_from: {checkpoint.path} holds adapters of other weights than {recipe.run.init_from} has now; "
            "put the model back as it was, or choose another --run_dir"
        )


def has_other_tokenizer(tokenizer: Tokenizer, model: Path) -> bool:
    return tokenizer.fingerprint != load_tokenizer(model).fingerprint


def describe_run(recipe: TrainConfig, tokenizer: Tokenizer, trainer: Trainer, strategy: tf.distribute.Strategy) -> None:
    decoder, batch, init_from = trainer.decoder, recipe.batch, recipe.run.init_from
    if init_from is not None and has_other_tokenizer(tokenizer, recipe.initial_model):
        log(f"Tokenizer: {recipe.tokenizer.tokenizer} is not that of {init_from}: its ids stand for other tokens than")
        log("           the ones that the model has learned; without --tokenizer the model keeps its own")
    log(
        f"Model: {cost.count_parameters(decoder.config):,} parameters, vocabulary {decoder.config.vocabulary_size}; "
        f"{recipe.run.max_steps:,} updates of {batch.batch_size * batch.sequence_length:,} tokens; "
        f"run directory {recipe.run_dir}"
    )
    for caution in recipe.cautions():
        log(caution)
    if recipe.lora.lora_rank:
        adapters = sum(math.prod(variable.shape) for variable in decoder.trainable_variables)
        log(f"LoRA:  {adapters:,} parameters are trained; the model's own are frozen ({recipe.lora.base_weights})")
    replicas = strategy.num_replicas_in_sync
    if replicas > 1:
        kind = "TPUStrategy" if is_tpu_strategy(strategy) else "MirroredStrategy"
        if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            kind = f"MultiWorkerMirroredStrategy of {HostGroup(strategy).count} workers"
        log(f"Devices: {replicas} share each batch, {batch.batch_size // replicas} rows each ({kind})")


class Samples:
    """Sampled continuations of the prompts of a run. One generator serves all, so that its graphs are traced once."""

    def __init__(self, recipe: TrainConfig, trainer: Trainer, tokenizer: Tokenizer, objective: Objective):
        self.logging, self.seed, self.trainer = recipe.logging, recipe.run.seed, trainer
        self.generator = Generator(trainer.decoder, tokenizer)
        prompts = [objective.prompt(tokenizer, text) for text in recipe.logging.sample_prompt]
        # Ids that do not fit a very short context lose their beginning: it is only a sample.
        self.prompts = [prompt if isinstance(prompt, str) else prompt[-self.generator.context :] for prompt in prompts]

    def __call__(self, draw: int = 0) -> dict[str, str]:
        """Returns prompt → answer, or prompt and continuation; another `draw` gives other samples."""
        logging = self.logging
        if not logging.sample_tokens or not logging.sample_prompt:
            return {}
        sampling = SamplingConfig(
            max_new_tokens=logging.sample_tokens, temperature=logging.sample_temperature, seed=self.seed + draw
        )
        with self.trainer.averaged_weights():
            completions = self.generator.generate(self.prompts, sampling)
        return {
            text: (text if isinstance(prompt, str) else "") + found[0].text
            for text, prompt, found in zip(logging.sample_prompt, self.prompts, completions)
        }


def finish(
    recipe: TrainConfig, prepared: Any, trainer: Trainer, state: LoopState, checkpoints: Checkpoints, samples: Samples
) -> None:
    """Writes model/ and curves.png; logs the results and what to do next."""
    directory, step = recipe.run_dir, state.step
    if recipe.run.save_best and state.best_loss is not None and state.best_step != step:
        remedy = f"model/ is the last, of step {step}, instead of the best"
        best = checkpoints.open_if_complete(state.best_step, log, remedy)
        if best is not None:
            assign(best.arrays(), trainer.state_variables(), best.path)
            step = best.step
    write_model(recipe, prepared, trainer, state, step)
    rows = read_metrics(directory / "metrics.jsonl")
    draw_curves(rows, directory / "curves.png", f"{directory}: {recipe.preset.preset}, {state.step} steps")
    validations = [row for row in rows if row["step"] == step and "validation_loss" in row]
    first, last = state.first_validation, validations[-1] if validations else state.last_validation
    log("")
    log(f"Trained {state.step:,} steps in {format_duration(state.trained_seconds)} of updates.")
    if first and last:
        log(f"Held out before: {format_metrics(first)}")
        log(f"Held out after:  {format_metrics({name: value for name, value in last.items() if name in first})}")
    if recipe.logging.sample_tokens:
        log("Three sampled continuations:")
        for draw in range(3):
            text = " ".join(next(iter(samples(draw).values()), "").split())
            log(f"  {draw + 1}. {text or '(it ended at once)'}")
    log(f"Model:       {directory / 'model'}  (config.json, model.safetensors, tokenizer.json, …)")
    if recipe.lora.lora_rank:
        log(f"Adapter:     {directory / 'adapter'}  (merged in model/; alone it opens with peft)")
    log(f"Curves:      {directory / 'curves.png'}, numbers in {directory / 'metrics.jsonl'}")
    local = Path(sys.executable).is_relative_to(Path.cwd())
    python = shlex.quote(os.path.relpath(sys.executable)) if local else "python"
    if recipe.logging.tensorboard:
        log(f"TensorBoard: {python} -m tensorboard.main --logdir={shlex.quote(str(directory / 'tensorboard'))}")
    model = f"--model={shlex.quote(str(directory))}"
    if recipe.objective.objective == "pretrain":
        log(f"Next:        {python} -m tfgpt.generate {model} --prompt='Once upon a time'")
    else:
        log(f"Next:        {python} -m tfgpt.chat {model}")


def write_model(recipe: TrainConfig, prepared: Any, trainer: Trainer, state: LoopState, step: int) -> None:
    tokenizer = prepared.tokenizer
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
                "data_fingerprint": prepared.fingerprint,
                "data": prepared.manifest,
                "flags": recipe.flags(),
                "decoder": dataclasses.asdict(trainer.decoder.config),
                "versions": {
                    "tfgpt": tfgpt.__version__,
                    "tensorflow": tf.__version__,
                    "keras": keras.__version__,
                    "numpy": package_metadata.version("numpy"),
                },
            },
        )
    if recipe.lora.lora_rank:
        with (
            result_directory(recipe.run_dir / "adapter", "adapter", "run_dir") as temporary,
            trainer.averaged_weights(),
        ):
            base_name = stored_base_name(str(recipe.run.init_from))
            save_adapter(trainer.decoder, recipe.lora, temporary, recipe.initial_model, base_name)
            tokenizer.save(temporary)
