"""Verification through the server's loader lets a right export pass and catches a wrong one."""

import dataclasses
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.serving.conftest import DEFAULTS
from tfgpt.common.errors import RunError
from tfgpt.generation.generator import Generator
from tfgpt.model.decoder import Decoder
from tfgpt.serving.quantization import ServedWeights
from tfgpt.serving.saved_model import ServedModel
from tfgpt.serving.saved_model_session import SessionModel
from tfgpt.serving.verification import ExportVerifier, verify


@pytest.fixture(scope="module")
def naive(generator, tmp_path_factory):
    """The same signature as one of the export's, of a module that tracks the Keras model."""
    decoder = generator.decoder
    module = tf.Module()
    module.decoder = decoder

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.int32, name="ids")])
    def logits(ids):
        return {"logits": decoder({"token_ids": ids})}

    module.logits = logits
    directory = tmp_path_factory.mktemp("naive") / "1"
    tf.saved_model.save(module, str(directory), signatures={"logits": logits})
    return directory


def test_a_naive_export_of_the_keras_model_loads_in_python_and_fails_in_the_session(naive):
    ids = np.array([[1, 2]], np.int32)
    answer = tf.saved_model.load(str(naive)).signatures["logits"](ids=tf.constant(ids))
    assert np.isfinite(answer["logits"].numpy()).all()
    with SessionModel(naive) as model, pytest.raises(tf.errors.FailedPreconditionError):
        model("logits", {"ids": ids})


def test_other_weights_and_other_defaults_do_not_pass(served, generator):
    other = Generator(Decoder(generator.decoder.config, dtype="float32"), generator.tokenizer)
    for model, defaults in ((other, DEFAULTS), (generator, dataclasses.replace(DEFAULTS, seed=4))):
        with pytest.raises(RunError, match="the exported signature generate generates"):
            ExportVerifier(served, model).check_defaults(defaults)


def test_a_missing_signature_does_not_pass(naive, generator):
    with pytest.raises(RunError, match="has the signatures"):
        verify(naive, generator, DEFAULTS)


def test_the_decoder_is_hidden_from_what_is_saved(generator):
    weights = ServedWeights(generator.decoder, "float32")
    model = ServedModel(generator.decoder, weights, generator.tokenizer, DEFAULTS, 100)
    assert not [child for child in model.module._flatten() if isinstance(child, (keras.Layer, keras.Variable))]


FRESH = """
import sys

class NothingOfOurs:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tfgpt", "tensorflow_text", "tensorflow_serving"):
            raise ImportError(name)

sys.meta_path.insert(0, NothingOfOurs())
import tensorflow as tf
model = tf.saved_model.load(sys.argv[1])
print(model.signatures["serving_default"](text=tf.constant(["The quick"]))["text"].numpy()[0].hex())
"""


def test_a_fresh_python_with_nothing_but_tensorflow_opens_it(version, generator, tmp_path):
    done = subprocess.run(
        [sys.executable, "-I", "-c", FRESH, str(version)], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    [[expected]] = generator.generate(["The quick"], DEFAULTS)
    assert bytes.fromhex(done.stdout.strip()).decode() == expected.text
