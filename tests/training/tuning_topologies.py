"""Whole runs of LoRA, preferences and rewards on one device, logical CPUs or a cluster.

`tuning_topologies.py DIRECTORY TOPOLOGY LOGICAL_CPUS CASE…` runs the cases in DIRECTORY/TOPOLOGY/CASE, with TF_CONFIG
as a worker of that cluster; the line of one that is refused goes into "CASE refused". All cases share one strategy: a
second MirroredStrategy on the same CPUs would have its collectives collide with the first one's.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np

UPDATES = 6
LORA = "--objective=pretrain --batch_size=8 --train_text=DIR/text.txt --lora_rank=4 --lora_alpha=8 --max_grad_norm=0.05"
CASES = {
    "lora": LORA,
    "lora accumulated": f"{LORA} --gradient_accumulation_steps=2",
    "dpo": "--objective=dpo --batch_size=8 --train_text=DIR/pairs.jsonl --max_grad_norm=0.5",
    "grpo": "--objective=grpo --batch_size=16 --train_text=DIR/prompts.jsonl --max_completion_length=6 --group_size=8 "
    "--kl_penalty=0.01 --updates_per_rollout=2 --reward=tests.training.objectives.test_grpo:letters",
}
COMMON = (
    "--init_from=DIR/base --validation_fraction=0.3 --sequence_length=32 --warmup_steps=0 --schedule=constant "
    f"--compile=graph --max_steps={UPDATES} --log_every=2 --validate_every=6 --checkpoint_every=4 "
    "--checkpoints_kept=9 --sample_tokens=0 --save_best=false --tensorboard=false --learning_rate=0.01"
)


def make_inputs(directory: Path) -> None:
    """A random model of bytes that ends seldom, a text, pairs and prompts."""
    from tests.conftest import TEXT
    from tests.training.small_step import save_byte_model

    save_byte_model(directory / "base", 0.3)
    (directory / "text.txt").write_text("".join(f"Chapter {number}.\n{TEXT}\n" for number in range(40)))
    pairs = [{"prompt": f"{n}?", "chosen": f"yes {n}", "rejected": f"no, not {n * n}"} for n in range(40)]
    prompts = [{"prompt": f"{n}:"} for n in range(30)]
    for name, records in (("pairs", pairs), ("prompts", prompts)):
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def run_case(directory: Path, topology: str, case: str, strategy) -> Path:
    """Runs, or goes on with, a case; its run directory. The answers of grpo's round r lie in answers-r.npy."""
    from tfgpt import train as command
    from tfgpt.training.checkpoints import Checkpoints
    from tfgpt.training.distribution.collectives import HostGroup
    from tfgpt.training.objectives import grpo
    from tfgpt.training.run import run_training
    from tfgpt.training.train_config import TrainConfig

    run_dir = directory / topology / case
    flags = f"{COMMON} {CASES[case]}".replace("DIR", str(directory)).split()
    recipe = TrainConfig(**command.COMMAND.parse([*flags, f"--run_dir={run_dir}"]))
    answers = grpo.RolloutBuffer.answers

    def noted(self, step: int):
        arrays = answers(self, step)
        np.save(run_dir / f"answers-{step}.npy", arrays["token_ids"])
        return arrays

    grpo.RolloutBuffer.answers = noted
    checkpoints = Checkpoints(recipe.run_dir / "checkpoints", recipe.run.checkpoints_kept)
    try:
        run_training(
            recipe, command.COMMAND.flag_file(recipe.settings()), (), strategy, HostGroup(strategy), checkpoints
        )
    finally:
        checkpoints.close()
        grpo.RolloutBuffer.answers = answers
    return run_dir


def main(directory: Path, topology: str, logical_cpus: int, cases: list[str]) -> None:
    from tfgpt.common.errors import SettingError
    from tfgpt.training.config import StrategyConfig
    from tfgpt.training.distribution.strategy import resolve

    name = "multiworker" if "TF_CONFIG" in os.environ else "mirrored"
    strategy = resolve(StrategyConfig(strategy=name, logical_cpus=logical_cpus, cluster_timeout=120.0))
    for case in cases:
        try:
            run_case(directory, topology, case, strategy)
        except SettingError as error:
            (directory / topology / f"{case} refused").write_text(str(error))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4:])
