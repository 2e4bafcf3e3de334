"""A server that speaks TensorFlow Serving's gRPC and REST interfaces around a real SavedModel.

It stands in for `tensorflow_model_server` where that is not installed. What it does as the real one does: the protos
and paths, versions and labels, signature defaults over gRPC but not over REST, base64 for names that end in `_bytes`,
statuses and their HTTP codes. What it does not do: batching, warm-up, loading and unloading.
"""

import base64
import json
import re
import threading
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from tfgpt.serving.saved_model_session import SessionModel

HTTP = {"INVALID_ARGUMENT": 400, "NOT_FOUND": 404, "UNAVAILABLE": 503, "RESOURCE_EXHAUSTED": 429}


class Refused(Exception):
    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code


class Loopback:
    """Both interfaces on free ports of this machine; the next requests are answered with the statuses in `refusals`."""

    def __init__(self, name: str, model: SessionModel, labels: tuple[str, ...] = ("stable",)):
        self.name, self.model, self.labels = name, model, labels
        self.refusals: list[str] = []
        self.requests = 0
        self._lock = threading.Lock()
        self._grpc = grpc.server(futures.ThreadPoolExecutor(4))
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Service(self), self._grpc)
        self.grpc_address = f"127.0.0.1:{self._grpc.add_insecure_port('127.0.0.1:0')}"
        self._rest = ThreadingHTTPServer(("127.0.0.1", 0), handler(self))
        self.rest_address = f"http://127.0.0.1:{self._rest.server_port}"

    def __enter__(self):
        self._grpc.start()
        threading.Thread(target=self._rest.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._grpc.stop(None)
        self._rest.shutdown()
        self._rest.server_close()

    def predict(self, name: str, label: str, signature: str, inputs: dict[str, Any], defaults: bool) -> dict[str, Any]:
        with self._lock:
            self.requests += 1
            if self.refusals:
                raise Refused(self.refusals.pop(0), "told to")
        if name != self.name:
            raise Refused("NOT_FOUND", f"Servable not found for request: Latest({name})")
        if label and label not in self.labels:
            raise Refused("NOT_FOUND", f"Unrecognized servable version label: {label}")
        signature = signature or "serving_default"
        if signature not in self.model.signatures:
            raise Refused("NOT_FOUND", f'Serving signature name: "{signature}" not found in signature def')
        definition = self.model.signatures[signature]
        missing = definition.inputs.keys() - inputs.keys() - (definition.defaults.keys() if defaults else set())
        if missing or inputs.keys() - definition.inputs.keys():
            raise Refused("INVALID_ARGUMENT", f"input sizes do not match: {sorted(missing)} are missing")
        try:
            return self.model(signature, inputs)
        except tf.errors.OpError as error:
            raise Refused("INVALID_ARGUMENT", error.message) from error


class Service(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, server: Loopback):
        self.server = server

    def Predict(self, request, context):  # The service's own name.
        spec = request.model_spec
        inputs = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
        try:
            outputs = self.server.predict(spec.name, spec.version_label, spec.signature_name, inputs, defaults=True)
        except Refused as refused:
            context.abort(grpc.StatusCode[refused.code], str(refused))
        response = predict_pb2.PredictResponse()
        for name, value in outputs.items():
            response.outputs[name].CopyFrom(tf.make_tensor_proto(value))
        return response


def handler(server: Loopback) -> type:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            try:
                status, answer = 200, self.answer()
            except Refused as refused:
                status, answer = HTTP[refused.code], {"error": str(refused)}
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def answer(self) -> dict[str, Any]:
            place = re.fullmatch(r"/v1/models/([^/:]+)(?:/labels/([^/:]+))?:predict", self.path)
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not place:
                raise Refused("NOT_FOUND", f"Malformed request: POST {self.path}")
            signature = body.get("signature_name", "serving_default")
            if signature not in server.model.signatures:
                raise Refused("NOT_FOUND", f'Serving signature name: "{signature}" not found in signature def')
            types = {name: info.dtype for name, info in server.model.signatures[signature].inputs.items()}
            columns = body["inputs"] if isinstance(body["inputs"], dict) else {"text": body["inputs"]}
            inputs = {name: array(value, types.get(name, tf.string)) for name, value in columns.items()}
            outputs = server.predict(place[1], place[2] or "", signature, inputs, defaults=False)
            written = {name: [as_json(name, item) for item in value.tolist()] for name, value in outputs.items()}
            return {"outputs": written if len(written) > 1 else next(iter(written.values()))}

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def array(value: list[Any], dtype: Any) -> np.ndarray:
    if tf.dtypes.as_dtype(dtype) == tf.string:
        return np.array([base64.b64decode(v["b64"]) if isinstance(v, dict) else v.encode() for v in value], object)
    return np.array(value, tf.dtypes.as_dtype(dtype).as_numpy_dtype)


def as_json(name: str, item: Any) -> Any:
    if isinstance(item, list):
        return [as_json(name, one) for one in item]
    if isinstance(item, bytes):
        return {"b64": base64.b64encode(item).decode()} if name.endswith("_bytes") else item.decode()
    return item
