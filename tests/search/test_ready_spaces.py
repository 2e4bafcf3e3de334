"""The ready spaces of things that no other search here trains: mixtures of sources, and adapters."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from tests.conftest import ROOT
from tests.search.conftest import TINY, Start, table


def conversations(path: Path, answer: str, seed: int) -> Path:
    """120 short conversations whose answers begin alike."""
    draw = random.Random(seed)
    turns = [(f"Number {number}?", f"{answer} {draw.randrange(100)}.") for number in range(120)]
    rows = [[{"role": "user", "content": ask}, {"role": "assistant", "content": reply}] for ask, reply in turns]
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    return path


def test_the_spaces_of_mixtures_and_of_adapters_are_searched(start: Start, tmp_path: Path):
    texts = [conversations(tmp_path / f"{name}.jsonl", name, seed) for seed, name in enumerate(("likes", "sums"))]
    # One trial each: a process and its tracing cost seconds.
    search = [*TINY, "--sequence_length=64", "--objective=chat", "--validation_fraction=0.2", "--max_trials=1"]
    search += ["--max_steps=6", "--trial_validations=1", "--warmup_steps=1", "--sample_tokens=0"]
    mixtures = start(
        "tune", *search, *(f"--train_text={text}" for text in texts), f"--search_dir={tmp_path / 'mixtures'}",
        f"--search_space={ROOT / 'configs/search/mixture.toml'}",
    )  # fmt: skip
    assert mixtures.ended() == 0, mixtures.said
    (row,) = table(tmp_path / "mixtures")
    written = (tmp_path / f"mixtures/trials/{row['trial_id']}/flags.cfg").read_text()
    assert "".join(f"--mixture={weight}\n" for weight in json.loads(row["mixture"])) in written

    model = tmp_path / f"mixtures/trials/{row['trial_id']}/model"
    sizes = ("tokenizer", "preset", "num_", "_dim")
    adapters = start(
        "tune", *(flag for flag in search if not any(name in flag for name in sizes)), f"--init_from={model}",
        f"--train_text={texts[0]}", f"--search_dir={tmp_path / 'adapters'}",
        f"--search_space={ROOT / 'configs/search/lora.toml'}",
    )  # fmt: skip
    assert adapters.ended() == 0, adapters.said
    (row,) = table(tmp_path / "adapters")
    trial = tmp_path / f"adapters/trials/{row['trial_id']}"
    assert json.loads((trial / "adapter/adapter_config.json").read_text())["r"] == int(row["lora_rank"])
    before, after = (load_file(folder / "model.safetensors") for folder in (model, trial / "model"))
    changed = {name.split(".")[3] for name in before if not np.array_equal(before[name], after[name])}
    assert (
        changed == {"attention": {"self_attn"}, "mlp": {"mlp"}, "all": {"self_attn", "mlp"}}[row["lora_target_modules"]]
    )
