"""The two ways to TensorFlow Serving, each sending a request once: gRPC and REST."""

from __future__ import annotations

import base64
import ipaddress
import json
import urllib.parse
from collections.abc import Mapping
from typing import Any

from tfgpt.common.errors import UserError
from tfgpt.serving.client import Answer, ServingError, failed, input_types
from tfgpt.serving.signatures import signature

# Larger messages than gRPC's 4 MB: long ids of full batches.
MESSAGE_BYTES = 64 << 20
# What an HTTP status means, in gRPC's names; TensorFlow Serving maps them the other way.
STATUSES = {
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


class GrpcTransport:
    """TensorFlow Serving's PredictionService.

    Args:
        address: "HOST:PORT".
        model: the model's name.
        label: a version's label, or "".
    """

    def __init__(self, address: str, model: str, label: str):
        try:
            import grpc
            from tensorflow_serving.apis import prediction_service_pb2_grpc
        except ImportError as error:
            raise UserError(
                f"{error.name} is missing, with which gRPC is spoken; pip install 'tfgpt[serve]'"
            ) from error
        self.address, self.model, self.label = address, model, label
        options = [(f"grpc.max_{way}_message_length", MESSAGE_BYTES) for way in ("send", "receive")]
        if on_this_machine(f"//{address}"):
            options.append(("grpc.enable_http_proxy", 0))
        self._channel = grpc.insecure_channel(address, options=options)
        self._stub = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._error = grpc.RpcError

    def predict(self, name: str, inputs: Mapping[str, list[Any]], seconds: float) -> Answer:
        """As `Transport.predict`."""
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2

        request = predict_pb2.PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = self.model, name
        if self.label:
            request.model_spec.version_label = self.label
        types = input_types(name)
        for key, value in inputs.items():
            values = [as_bytes(item) for item in value] if types[key] == "string" else value
            request.inputs[key].CopyFrom(tf.make_tensor_proto(values, types[key]))
        try:
            response = self._stub.Predict(request, timeout=seconds)
        except self._error as error:
            raise failed(self.address, self.model, name, error.code().name, error.details() or "") from error
        answer: Answer = {key: tf.make_ndarray(value).tolist() for key, value in response.outputs.items()}
        return with_text(name, answer)

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()


class RestTransport:
    """TensorFlow Serving's REST interface, in its column form.

    Args:
        address: "http://HOST:PORT".
        model: the model's name.
        label: a version's label, or "".
    """

    def __init__(self, address: str, model: str, label: str):
        import requests

        self.address, self.model = address.rstrip("/"), model
        place = f"/labels/{label}" if label else ""
        self._url = f"{self.address}/v1/models/{model}{place}:predict"
        self._session = requests.Session()
        self._session.trust_env = not on_this_machine(address)

    def predict(self, name: str, inputs: Mapping[str, list[Any]], seconds: float) -> Answer:
        """As `Transport.predict`."""
        import requests

        types = input_types(name)
        columns = {
            key: [as_json(item) for item in value] if types[key] == "string" else value for key, value in inputs.items()
        }
        body = json.dumps({"signature_name": name, "inputs": columns})
        try:
            response = self._session.post(self._url, data=body.encode(), timeout=seconds)
        except requests.Timeout as error:
            raise self.failed(name, "DEADLINE_EXCEEDED", "") from error
        except requests.RequestException as error:
            raise self.failed(name, "UNAVAILABLE", type(error).__name__) from error
        try:
            content = response.json()
        except ValueError:
            content = {"error": response.text}
        if response.status_code != 200:
            detail = content.get("error", "") if isinstance(content, dict) else ""
            raise self.failed(name, STATUSES.get(response.status_code, "UNKNOWN"), str(detail))
        outputs = content["outputs"]
        if not isinstance(outputs, dict):  # A single output comes without its name.
            outputs = {signature(name).outputs[0].name: outputs}
        return with_text(name, {key: [from_json(item) for item in value] for key, value in outputs.items()})

    def failed(self, name: str, code: str, detail: str) -> ServingError:
        """The error for a status."""
        return failed(self.address, self.model, name, code, detail)

    def close(self) -> None:
        """Ends the connection."""
        self._session.close()


def on_this_machine(url: str) -> bool:
    """Whether an address means this machine, which no proxy of the environment (`http_proxy`) can reach."""
    try:
        host = urllib.parse.urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def as_bytes(item: str | bytes) -> bytes:
    """Text as UTF-8."""
    return item.encode() if isinstance(item, str) else item


def as_json(item: str | bytes) -> Any:
    """Text as it is; bytes in base64, as TensorFlow Serving wants them."""
    return item if isinstance(item, str) else {"b64": base64.b64encode(item).decode()}


def from_json(item: Any) -> Any:
    """The reverse of `as_json`."""
    return base64.b64decode(item["b64"]) if isinstance(item, dict) and item.keys() == {"b64"} else item


def with_text(name: str, answer: Answer) -> Answer:
    """String outputs as str, those whose name ends in _bytes as bytes."""
    for item in signature(name).outputs:
        if item.dtype == "string" and not item.name.endswith("_bytes"):
            answer[item.name] = [text.decode() if isinstance(text, bytes) else text for text in answer[item.name]]
    return answer
