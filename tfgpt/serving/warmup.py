"""Warm-up records: requests that TensorFlow Serving runs before a new version answers anybody.

They are PredictionLog records in `assets.extra/tf_serving_warmup_requests`. One that fails makes the server refuse the
version, so the export's verification runs each of them first. Every signature has one of one row and one of two rows;
each can be batched.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_log_pb2

from tfgpt.generation.config import SamplingConfig
from tfgpt.serving.signatures import SAMPLING, SIGNATURES, SignatureTensor
from tfgpt.tokenization.jinja_template import DEFAULT_TEMPLATE, ChatTemplate

WARMUP_FILE = Path("assets.extra", "tf_serving_warmup_requests")
NEW_TOKENS = 4
TEXTS = ["Hello", "What is the weather like today?"]


def example_inputs(
    rows: int, end_of_text_id: int, sampling: SamplingConfig, template: ChatTemplate = DEFAULT_TEMPLATE
) -> dict[str, dict[str, np.ndarray]]:
    """Inputs of every signature, by its name.

    Args:
        rows: 1 or 2.
        end_of_text_id: what ids begin with.
        sampling: what the sampling inputs are, but few tokens.
        template: what conversations are written with.
    """
    texts = TEXTS[:rows]
    conversations = [template.render([{"role": "user", "content": text}], add_generation_prompt=True) for text in texts]
    columns = {
        "text": np.array([text.encode() for text in texts], object),
        "conversation": np.array([text.encode() for text in conversations], object),
        "ids": np.full([rows, 3], end_of_text_id, np.int32),
        "length": np.array([3, 1][:rows], np.int32),
        "max_new_tokens": np.full([rows], NEW_TOKENS, np.int32),
        "sample": np.zeros([rows], np.int64),
    }

    def column(item: SignatureTensor) -> np.ndarray:
        if item.name in columns:
            return columns[item.name]
        return np.full([rows], getattr(sampling, item.name), item.dtype)

    assert {item.name for item in SAMPLING} - columns.keys() <= sampling.to_dict().keys()
    return {entry.name: {item.name: column(item) for item in entry.inputs} for entry in SIGNATURES}


def write_warmup(
    directory: Path, end_of_text_id: int, sampling: SamplingConfig, template: ChatTemplate = DEFAULT_TEMPLATE
) -> None:
    """Writes the records into a version's directory."""
    path = directory / WARMUP_FILE
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for rows in (1, 2):
            for name, inputs in example_inputs(rows, end_of_text_id, sampling, template).items():
                request = predict_pb2.PredictRequest(model_spec=model_pb2.ModelSpec(signature_name=name))
                for key, value in inputs.items():
                    request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
                log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
                writer.write(log.SerializeToString())


def read_warmup(directory: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The records of a version's directory: the signature's name and its inputs as arrays."""
    for record in tf.data.TFRecordDataset(str(directory / WARMUP_FILE)).as_numpy_iterator():
        request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        inputs = {key: tf.make_ndarray(value) for key, value in request.inputs.items()}
        yield request.model_spec.signature_name, inputs
