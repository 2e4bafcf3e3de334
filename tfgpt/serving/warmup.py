"""Warm-up records: requests that TensorFlow Serving runs before a new version answers clients.

They are PredictionLog records in `assets.extra/tf_serving_warmup_requests`, one with one row and one with two rows for
each signature. The server refuses a version whose record fails, so the export's verification runs every record.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_log_pb2

from tfgpt.generation.config import SamplingConfig
from tfgpt.serving.signatures import SIGNATURES, sampling_values
from tfgpt.tokenization.jinja_template import DEFAULT_TEMPLATE, ChatTemplate

WARMUP_FILE = Path("assets.extra", "tf_serving_warmup_requests")
NEW_TOKENS = 4
TEXTS = ["Hello", "What is the weather like today?"]


def write_warmup(
    directory: Path, end_of_text_id: int, sampling: SamplingConfig, template: ChatTemplate = DEFAULT_TEMPLATE
) -> None:
    """Writes the records into a version's directory; the sampling inputs are `sampling` with few new tokens."""
    path = directory / WARMUP_FILE
    path.parent.mkdir(exist_ok=True)
    values = {**sampling_values(sampling), "max_new_tokens": NEW_TOKENS}
    columns: dict[str, list[Any]] = {
        **{name: [value] * 2 for name, value in values.items()},
        "text": TEXTS,
        "conversation": [
            template.render([{"role": "user", "content": text}], add_generation_prompt=True) for text in TEXTS
        ],
        "ids": [[end_of_text_id] * 3] * 2,
        "length": [3, 1],
    }
    with tf.io.TFRecordWriter(str(path)) as writer:
        for rows in (1, 2):
            for entry in SIGNATURES:
                request = predict_pb2.PredictRequest(model_spec=model_pb2.ModelSpec(signature_name=entry.name))
                for tensor in entry.inputs:
                    request.inputs[tensor.name].CopyFrom(
                        tf.make_tensor_proto(columns[tensor.name][:rows], tensor.dtype)
                    )
                log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
                writer.write(log.SerializeToString())


def read_warmup(directory: Path) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yields the signature's name and the inputs of each record of a version."""
    for record in tf.data.TFRecordDataset(str(directory / WARMUP_FILE)).as_numpy_iterator():
        request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        inputs = {key: tf.make_ndarray(value) for key, value in request.inputs.items()}
        yield request.model_spec.signature_name, inputs
