"""Files written at commit c06a1cf, before modules, classes and flags were renamed, open and continue after it.

`tests/frozen/` holds a model directory, an adapter, a checkpoint after two of four updates with the metrics of all
four, the logits of both models, and `variables.json`: the name and shape of each variable of several decoders and of
each variable of a checkpoint. When a change of these is intended, old files do not open: say so in the release notes.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.model.options import OPTIONS
from tests.training.small_step import make_trainer
from tfgpt import train
from tfgpt.model.checkpoints.huggingface import load_decoder
from tfgpt.model.config import DecoderConfig
from tfgpt.model.decoder import Decoder
from tfgpt.model.lora import LoraConfig, enable_lora

FROZEN = Path(__file__).with_name("frozen")
VARIABLES = json.loads((FROZEN / "variables.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["modern", "gpt2", "nanochat", "query_key_value_biases", "lora_float", "lora_int8"])
def test_variables_of_decoders_keep_their_paths_and_shapes(name: str):
    decoder = Decoder(DecoderConfig.from_dict(OPTIONS["modern" if name.startswith("lora") else name]))
    if name.startswith("lora"):
        enable_lora(decoder, LoraConfig(lora_rank=3, base_weights=name.removeprefix("lora_")))
    assert {variable.path: list(variable.shape) for variable in decoder.variables} == VARIABLES[name]


@pytest.mark.parametrize("optimizer", ["adamw", "lion", "muon", "adafactor"])
def test_variables_of_checkpoints_keep_their_names_and_shapes(optimizer: str):
    trainer = make_trainer(optimizer={"optimizer": optimizer, "ema_decay": 0.9})
    found = {name: list(variable.shape) for name, variable in trainer.state_variables().items()}
    assert found == VARIABLES[optimizer]


@pytest.mark.parametrize("name", ["model", "adapter"])
def test_models_and_adapters_give_the_logits_that_they_gave(name: str):
    token_ids = np.arange(16, dtype=np.int32)[None] * 7 % 256
    logits = np.array(load_decoder(FROZEN / name)({"token_ids": token_ids}))[0, -1]
    with np.load(FROZEN / "logits.npz") as expected:
        np.testing.assert_allclose(logits, expected[name], atol=1e-5)


def test_a_checkpoint_continues_with_the_losses_that_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = "".join(f"Line {number}: the quick brown fox jumps over the lazy dog.\n" for number in range(200))
    (tmp_path / "text.txt").write_text(text, encoding="utf-8", newline="\n")
    shutil.copytree(FROZEN / "run", tmp_path / "run")
    expected = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    monkeypatch.chdir(tmp_path)
    flags = (
        "--train_text=text.txt --run_dir=run --tokenizer=bytes --preset=tiny --num_layers=1 --num_query_heads=2 "
        "--num_key_value_heads=1 --hidden_dim=16 --head_dim=8 --intermediate_dim=32 --sequence_length=16 "
        "--batch_size=4 --max_steps=4 --warmup_steps=2 --compile=graph --ema_decay=0.9 --validate_every=4 "
        "--log_every=1 --seed=3 --sample_tokens=0 --tensorboard=false"
    )
    assert train.main(flags.split()) == 0
    rows = {row["step"]: row for row in map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())}
    for row in expected[3:]:
        for name in ("train_loss", "gradient_norm", "learning_rate", "validation_loss"):
            assert rows[row["step"]].get(name) == pytest.approx(row.get(name), rel=1e-4)
    assert rows[2] == expected[2]
