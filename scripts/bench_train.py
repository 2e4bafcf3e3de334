"""Speed and peak memory of the training step compared with `transformers`' GPT2LMHeadModel on PyTorch eager.

    python scripts/bench_train.py [--json] [--rows=small-float32,…] [--rounds=7] [--seconds=3]

Same shape, precision, batch and optimizer (AdamW, global-norm clipping, no dropout): ours is `Trainer.train_steps` with
`--compile=auto`; theirs is forward, backward, `clip_grad_norm_`, `torch.optim.AdamW(fused=True)`, under
`torch.autocast` for bfloat16. Each runs in a separate process with its default threads. Both processes of a row stay
alive and take turns of a few seconds, so that other work on the machine hits both alike: a ratio is the median over
the turns' pairs. Memory is the peak resident size of the process, compiling included.

PyTorch and transformers are installed in a separate virtual environment, .venv-peers, at the first run;
--peers_python=PATH uses another Python that has torch and transformers.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PEERS = ("torch==2.13.0", "transformers")
TARGET = 1.3


@dataclasses.dataclass(frozen=True)
class Shape:
    """A GPT-2 and its batch."""

    num_layers: int
    num_heads: int
    hidden_dim: int
    sequence_length: int
    batch_size: int
    vocabulary_size: int

    @property
    def tokens(self) -> int:
        """Tokens of one step."""
        return self.batch_size * self.sequence_length


SHAPES = {"small": Shape(4, 4, 128, 64, 12, 65), "medium": Shape(6, 6, 384, 256, 8, 8192)}
ROWS = tuple(f"{shape}-{dtype}" for shape in SHAPES for dtype in ("float32", "bfloat16"))


def main() -> None:
    """Prints a card and, at the end, one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="end in one line of JSON")
    parser.add_argument("--rows", default=",".join(ROWS), help=f"which rows (default: {','.join(ROWS)})")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each process (default: 7)")
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds a turn, about (default: 3)")
    parser.add_argument("--compile", default="auto", help="how ours runs: auto, graph or xla (default: auto)")
    parser.add_argument("--peers_python", help="a Python that has torch and transformers")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker, arguments.rows, arguments.compile)
        return
    peers = arguments.peers_python or peers_python()
    figures = {}
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(
        f"{'row':<18}{'ours tok/s':>12}{'theirs':>10}{'ratio':>8}{'ours MiB':>10}{'theirs':>8}"
        f"{'start s':>11}{'theirs':>8}  ours runs as"
    )
    for row in arguments.rows.split(","):
        figure = figures[row] = compare(row, peers, arguments)
        print(
            f"{row:<18}{figure['ours_tokens_per_second']:>12.0f}{figure['theirs_tokens_per_second']:>10.0f}"
            f"{figure['ratio']:>8.2f}{figure['ours_peak_mib']:>10.0f}{figure['theirs_peak_mib']:>8.0f}"
            f"{figure['ours_start_seconds']:>11.0f}{figure['theirs_start_seconds']:>8.0f}  {figure['mode']}",
            flush=True,
        )
    ratios = {row: round(figure["ratio"], 3) for row, figure in figures.items()}
    short = [row for row, ratio in ratios.items() if ratio < TARGET]
    print(f"target: {TARGET} times in every row; {'below it: ' + ', '.join(short) if short else 'reached in all'}")
    if arguments.json:
        print(json.dumps({"benchmark": "train", "ratios": ratios, "figures": figures}))


def peers_python() -> str:
    """The Python of .venv-peers, which is made when it is not there."""
    directory = ROOT / ".venv-peers"
    python = directory / "bin" / "python"
    check = [str(python), "-c", "import torch, transformers"]
    if not python.exists() or subprocess.run(check, capture_output=True).returncode:
        print(f"Installing {' and '.join(PEERS)} into {directory} …", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PEERS], check=True)
    return str(python)


class Contestant:
    """A process that trains on request."""

    def __init__(self, python: str, name: str, row: str, compile_mode: str):
        self.name = name
        command = [python, __file__, f"--worker={name}", f"--rows={row}", f"--compile={compile_mode}"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.ready = self.answer()

    def turn(self, seconds: float) -> dict[str, float]:
        """Trains for about so long; returns seconds a step and the peak memory so far."""
        assert self.process.stdin is not None
        print(seconds, file=self.process.stdin, flush=True)
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """The next line of JSON; other libraries' lines are passed over."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"{self.name} ended with exit code {self.process.wait()}")

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def compare(row: str, peers: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One row: both contestants in turns."""
    tokens = SHAPES[row.split("-")[0]].tokens
    contestants: list[Contestant] = []
    try:
        for python, name in ((sys.executable, "ours"), (peers, "theirs")):
            contestants.append(Contestant(python, name, row, arguments.compile))
        ours, theirs = contestants
        pairs = []
        for number in range(arguments.rounds):
            # Who begins alternates, so that a steady rise or fall of other load favours neither.
            first, second = (ours, theirs) if number % 2 == 0 else (theirs, ours)
            answers = {id(first): first.turn(arguments.seconds), id(second): second.turn(arguments.seconds)}
            pairs.append((answers[id(ours)], answers[id(theirs)]))
    finally:
        for contestant in contestants:
            contestant.close()
    seconds = [[pair[side]["seconds"] for pair in pairs] for side in (0, 1)]
    return {
        "ratio": statistics.median(pair[1]["seconds"] / pair[0]["seconds"] for pair in pairs),
        "ours_tokens_per_second": tokens / statistics.median(seconds[0]),
        "theirs_tokens_per_second": tokens / statistics.median(seconds[1]),
        "ours_peak_mib": pairs[-1][0]["peak_mib"],
        "theirs_peak_mib": pairs[-1][1]["peak_mib"],
        "mode": ours.ready["mode"],
        "ours_start_seconds": ours.ready["start_seconds"],
        "theirs_start_seconds": theirs.ready["start_seconds"],
        "ours_ms_a_step": [1e3 * value for value in seconds[0]],
        "theirs_ms_a_step": [1e3 * value for value in seconds[1]],
    }


def work(name: str, row: str, compile_mode: str) -> None:
    """A contestant: builds its step, says so, and trains for as long as each line of standard input says."""
    started = time.perf_counter()
    shape_name, dtype = row.split("-")
    shape = SHAPES[shape_name]
    train, mode = our_step(shape, dtype, compile_mode) if name == "ours" else their_step(shape, dtype)
    train(1)
    begun = time.perf_counter()
    loss = train(1)
    estimate = time.perf_counter() - begun
    if not 0.0 < loss < 2.0 * math.log(shape.vocabulary_size):
        raise SystemExit(f"{name}: the loss is {loss}, the contestants do not train the same thing")
    print(json.dumps({"mode": mode, "start_seconds": begun - started}), flush=True)
    for line in sys.stdin:
        steps = max(1, round(float(line) / estimate))
        begun = time.perf_counter()
        train(steps)
        estimate = (time.perf_counter() - begun) / steps
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": estimate, "peak_mib": peak}), flush=True)


def our_step(shape: Shape, dtype: str, compile_mode: str) -> tuple[Callable[[int], float], str]:
    """Updates of the trainer as `python -m tfgpt.train` makes it."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.path.insert(0, str(ROOT))
    import numpy as np
    import tensorflow as tf

    from tfgpt.model.decoder import Decoder
    from tfgpt.model.presets import resolve
    from tfgpt.training.compilation import choose_compilation
    from tfgpt.training.config import OptimizerConfig, StepConfig
    from tfgpt.training.losses import CausalLanguageModelingLoss
    from tfgpt.training.optimizers import build_optimizer
    from tfgpt.training.trainer import Trainer

    decoder_config = resolve(
        "gpt2",
        shape.vocabulary_size,
        {
            "num_layers": shape.num_layers,
            "num_query_heads": shape.num_heads,
            "hidden_dim": shape.hidden_dim,
            "max_sequence_length": shape.sequence_length,
            "dropout": 0.0,
        },
    )
    policy = "mixed_bfloat16" if dtype == "bfloat16" else dtype
    decoder = Decoder(decoder_config, dtype=policy)
    optimizer_config = OptimizerConfig(learning_rate=3e-4, max_grad_norm=1.0)
    trainer = Trainer(
        decoder,
        CausalLanguageModelingLoss(),
        StepConfig(dtype=policy, compile=compile_mode),
        optimizer_config,
        seed=0,
        batch_shape=(shape.batch_size, shape.sequence_length),
    )
    trainer.compile(build_optimizer(optimizer_config, 3e-4, decoder))
    ids = np.random.default_rng(0).integers(
        0, shape.vocabulary_size, (shape.batch_size, shape.sequence_length + 1), dtype=np.int32
    )
    batch = {"token_ids": ids[:, :-1], "targets": ids[:, 1:], "weights": np.ones(ids[:, 1:].shape, np.float32)}
    dataset = tf.data.Dataset.from_tensors(batch).repeat()
    mode = choose_compilation(trainer, lambda _: iter(dataset), compile_mode, log=lambda line: None)
    iterator = iter(dataset)
    return lambda steps: trainer.train_steps(iterator, steps)["loss"], mode


def their_step(shape: Shape, dtype: str) -> tuple[Callable[[int], float], str]:
    """Updates as a PyTorch training script makes them."""
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    config = transformers.GPT2Config(
        vocab_size=shape.vocabulary_size,
        n_positions=shape.sequence_length,
        n_embd=shape.hidden_dim,
        n_layer=shape.num_layers,
        n_head=shape.num_heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = transformers.GPT2LMHeadModel(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(shape.vocabulary_size, (shape.batch_size, shape.sequence_length), generator=generator)

    def train(steps: int) -> float:
        for _ in range(steps):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
                loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return train, "eager"


if __name__ == "__main__":
    main()
