"""One export that all tests of serving share."""

from pathlib import Path

import pytest

from tests.serving.models import save_model
from tfgpt.generation.config import SamplingConfig
from tfgpt.generation.generator import Generator
from tfgpt.serving.export import export
from tfgpt.serving.export_config import ExportConfig
from tfgpt.serving.saved_model_session import SessionModel
from tfgpt.tokenization.load import load_tokenizer
from tfgpt.tokenization.train_tokenizer import train_bpe

DEFAULTS = SamplingConfig(max_new_tokens=6, temperature=0.9, seed=3)


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory, text_file) -> Path:
    """A model with a trained tokenizer, so that tokens have more than one byte."""
    tokenizer = train_bpe([text_file.read_text()], 300)
    return save_model(tmp_path_factory.mktemp("model"), tokenizer, num_layers=2)


@pytest.fixture(scope="session")
def version(model_directory, tmp_path_factory) -> Path:
    """An exported version in float32, with serving files beside it."""
    output = tmp_path_factory.mktemp("served") / "chat"
    config = ExportConfig(model=str(model_directory), output=str(output), max_new_tokens_limit=100, serving_files=True)
    return export(config, DEFAULTS, model_directory, load_tokenizer(model_directory), lambda line: None)


@pytest.fixture(scope="session")
def generator(model_directory) -> Generator:
    return Generator.load(model_directory, dtype="float32")


@pytest.fixture(scope="session")
def served(version):
    """The version, opened as TensorFlow Serving opens it."""
    with SessionModel(version) as model:
        yield model
