"""Warm-up records are what TensorFlow Serving reads, and cover every signature."""

import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from tfgpt.serving.signatures import SIGNATURES, signature
from tfgpt.serving.warmup import read_warmup


def test_every_signature_is_warmed_with_one_row_and_with_two(version):
    records = list(read_warmup(version))
    assert len(records) == 2 * len(SIGNATURES) <= 1000
    rows = {(name, len(value)) for name, inputs in records for value in inputs.values()}
    assert rows == {(entry.name, count) for entry in SIGNATURES for count in (1, 2)}
    for name, inputs in records:
        assert inputs.keys() == {item.name for item in signature(name).inputs}


def test_records_lie_where_the_server_looks_and_are_prediction_logs(version):
    path = version / "assets.extra" / "tf_serving_warmup_requests"
    for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        log = prediction_log_pb2.PredictionLog.FromString(record)
        assert log.WhichOneof("log_type") == "predict_log"
