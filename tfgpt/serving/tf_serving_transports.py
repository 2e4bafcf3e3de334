"""Transports to TensorFlow Serving, gRPC and REST, and their errors. Each sends a request once."""

from __future__ import annotations

import base64
import ipaddress
import json
import urllib.parse
from collections.abc import Mapping
from typing import Any, Protocol

from tfgpt.common.errors import RunError, UserError
from tfgpt.serving.signatures import signature

Outputs = dict[str, list[Any]]
"""The outputs of a signature by name; each list has one item per row."""

# Larger than gRPC's default of 4 MB: full batches of long prompts exceed it.
MAX_MESSAGE_BYTES = 64 << 20
# gRPC codes of HTTP statuses, the reverse of TensorFlow Serving's mapping.
GRPC_CODES = {
    400: "INVALID_ARGUMENT",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    409: "ABORTED",
    412: "FAILED_PRECONDITION",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
# A full batching queue returns UNAVAILABLE. DEADLINE_EXCEEDED is not retried: the time is up.
RETRYABLE_CODES = ("UNAVAILABLE", "RESOURCE_EXHAUSTED", "ABORTED")
EXPLANATIONS = {
    "UNAVAILABLE": "the server does not respond or is full; is it running?",
    "RESOURCE_EXHAUSTED": "the server is full, or the message is too large",
    "DEADLINE_EXCEEDED": "no response in time; allow more seconds or ask for fewer tokens",
    "NOT_FOUND": "no such model, version or label; see models.config",
    "INVALID_ARGUMENT": "the request is wrong",
    "FAILED_PRECONDITION": "the model is not ready, or its export is wrong",
}


class ServingError(RunError):
    """A failed request; one line that names the address, the model, the signature and the gRPC code.

    The same request may succeed later if it is `retryable`.
    """

    def __init__(self, address: str, model: str, signature: str, code: str, detail: str = ""):
        explanation = EXPLANATIONS.get(code, "the server failed")
        detail = " ".join(detail.split())[:300]
        message = f"{address}: model {model}, signature {signature}: {code}: {explanation}"
        super().__init__(f"{message} ({detail})" if detail else message)
        self.code, self.retryable = code, code in RETRYABLE_CODES


class Transport(Protocol):
    """The interface of a connection to a served model."""

    address: str

    def predict(self, name: str, inputs: Mapping[str, list[Any]], seconds: float) -> Outputs:
        """Sends a request once, for at most `seconds`; strings are bytes in its inputs and outputs."""

    def close(self) -> None:
        """Closes the connection."""


class GrpcTransport:
    """A connection to TensorFlow Serving's PredictionService; see `client.connect`."""

    def __init__(self, address: str, model: str, label: str):
        try:
            import grpc
            from tensorflow_serving.apis import prediction_service_pb2_grpc
        except ImportError as error:
            raise UserError(f"{error.name} is missing, which gRPC needs; pip install 'tfgpt[serve]'") from error
        self.address, self.model, self.label = address, model, label
        options = [(f"grpc.max_{way}_message_length", MAX_MESSAGE_BYTES) for way in ("send", "receive")]
        if is_loopback(f"//{address}"):
            options.append(("grpc.enable_http_proxy", 0))
        self._channel = grpc.insecure_channel(address, options=options)
        self._stub = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._error = grpc.RpcError

    def predict(self, name: str, inputs: Mapping[str, list[Any]], seconds: float) -> Outputs:
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2

        request = predict_pb2.PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = self.model, name
        if self.label:
            request.model_spec.version_label = self.label
        for tensor in signature(name).inputs:
            if tensor.name in inputs:
                request.inputs[tensor.name].CopyFrom(tf.make_tensor_proto(inputs[tensor.name], tensor.dtype))
        try:
            response = self._stub.Predict(request, timeout=seconds)
        except self._error as error:
            raise ServingError(self.address, self.model, name, error.code().name, error.details() or "") from error
        return {key: tf.make_ndarray(value).tolist() for key, value in response.outputs.items()}

    def close(self) -> None:
        self._channel.close()


class RestTransport:
    """A connection to TensorFlow Serving's REST interface, in its column format; see `client.connect`."""

    def __init__(self, address: str, model: str, label: str):
        import requests

        self.address, self.model = address.rstrip("/"), model
        version = f"/labels/{label}" if label else ""
        self._url = f"{self.address}/v1/models/{model}{version}:predict"
        self._session = requests.Session()
        self._session.trust_env = not is_loopback(address)

    def predict(self, name: str, inputs: Mapping[str, list[Any]], seconds: float) -> Outputs:
        import requests

        request = {"signature_name": name, "inputs": inputs}
        body = json.dumps(request, default=lambda item: {"b64": base64.b64encode(item).decode()})
        try:
            response = self._session.post(self._url, data=body.encode(), timeout=seconds)
        except requests.Timeout as error:
            raise ServingError(self.address, self.model, name, "DEADLINE_EXCEEDED") from error
        except requests.RequestException as error:
            raise ServingError(self.address, self.model, name, "UNAVAILABLE", type(error).__name__) from error
        try:
            content = response.json()
        except ValueError:
            content = {"error": response.text}
        if response.status_code != 200:
            code = GRPC_CODES.get(response.status_code, "UNKNOWN")
            detail = content.get("error", "") if isinstance(content, dict) else ""
            raise ServingError(self.address, self.model, name, code, str(detail))
        outputs = content["outputs"]
        if not isinstance(outputs, dict):  # A single output has no name in the response.
            outputs = {signature(name).outputs[0].name: outputs}
        return from_json(outputs)

    def close(self) -> None:
        self._session.close()


def is_loopback(url: str) -> bool:
    """Returns whether a URL names this machine, which a proxy of the environment (`http_proxy`) cannot reach."""
    try:
        host = urllib.parse.urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def from_json(value: Any) -> Any:
    if isinstance(value, list):
        return [from_json(item) for item in value]
    if isinstance(value, dict):
        if value.keys() == {"b64"}:
            return base64.b64decode(value["b64"])
        return {key: from_json(item) for key, item in value.items()}
    return value
