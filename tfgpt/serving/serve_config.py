"""Settings of `python -m tfgpt.serve`."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from tfgpt.common.errors import SettingError
from tfgpt.common.settings import Settings, setting

SCHEMES = ("grpc://", "http://", "https://")
"""The schemes of a backend's address."""


@dataclasses.dataclass(frozen=True)
class ServeConfig(Settings):
    """Settings of the server: model, address and limits.

    Example:

    >>> ServeConfig(model="models/chat").host
    '127.0.0.1'
    """

    title: ClassVar[str] = "Serving"

    model: str = setting(
        "", "An export (models/chat for its newest version) or one version (models/chat/3).", path=True
    )
    backend: str = setting(
        "",
        "A TensorFlow Serving that runs the model: grpc://HOST:8500 or http://HOST:8501; empty: this process runs it.",
    )
    model_name: str = setting("", "The model's name for clients and TensorFlow Serving; empty: the export's name.")
    label: str = setting("", "A version's label at the backend, such as stable; empty: the newest version.")
    context_length: int = setting(
        0, "The most tokens of a prompt; 0: the export's context length; without an export, no limit.", minimum=0
    )
    host: str = setting("127.0.0.1", "The address to listen on; 0.0.0.0 admits other machines: then set API keys.")
    port: int = setting(8000, "The port to listen on; 0 takes a free one.", minimum=0, maximum=65535)
    api_keys_env: str = setting(
        "TFGPT_API_KEYS", "The environment variable with the API keys, separated by commas; unset: no key is needed."
    )
    cors_origin: tuple[str, ...] = setting((), "A web origin whose pages may call the API, such as https://a.example.")
    max_batch: int = setting(16, "The most texts in one call of the model.", minimum=1)
    batch_wait_ms: float = setting(
        5.0, "Milliseconds that an idle server waits for more requests to batch.", minimum=0, maximum=1000
    )
    max_queue: int = setting(64, "The most texts in the queue; more are answered with 429.", minimum=1)
    max_tokens_limit: int = setting(2048, "The most tokens that a request may ask for.", minimum=1)
    default_max_tokens: int = setting(256, "The most tokens of a text whose request sets no limit.", minimum=1)
    max_choices: int = setting(8, "The most texts of a request (prompts times n).", minimum=1)
    max_body_kb: int = setting(1024, "The largest request, in KiB; larger ones are answered with 413.", minimum=1)
    body_seconds: float = setting(
        20.0, "The most seconds that a client may take to send its request.", minimum=0.1, maximum=1e9
    )
    backend_seconds: float = setting(
        30.0,
        "The most seconds for one call of TensorFlow Serving (32 tokens), retries included.",
        minimum=0.1,
        maximum=1e9,
    )
    request_seconds: float = setting(600.0, "The most seconds for a whole request.", minimum=0.1, maximum=1e9)
    shutdown_seconds: int = setting(10, "Seconds that running requests may continue after SIGTERM.", minimum=0)
    access_log: bool = setting(True, "Print a line of JSON for each request, without its contents.")

    def check(self) -> None:
        if not self.model and not self.backend:
            raise SettingError("model", "is missing; give an export, such as models/chat, or a --backend")
        if self.backend and not self.backend.startswith(SCHEMES):
            raise SettingError("backend", f"{self.backend!r} does not begin with {', '.join(SCHEMES)}")
        if self.backend and not self.model and not self.model_name:
            raise SettingError("model_name", "is missing; give the model's name at the backend")
        if self.default_max_tokens > self.max_tokens_limit:
            raise SettingError(
                "default_max_tokens", f"{self.default_max_tokens} is above --max_tokens_limit={self.max_tokens_limit}"
            )
        for origin in self.cors_origin:
            if origin != "*" and not origin.startswith(("http://", "https://")):
                raise SettingError(
                    "cors_origin", f"{origin!r} is not an origin; give one such as https://a.example, or *"
                )
