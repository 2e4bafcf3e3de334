"""What `python -m tfgpt.serve` serves, to whom, and within which limits."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from tfgpt.common.errors import SettingError
from tfgpt.common.settings import Settings, setting

SCHEMES = ("grpc://", "http://", "https://")
"""What a backend's address begins with."""


@dataclasses.dataclass(frozen=True)
class ServeConfig(Settings):
    """The model, the address, the limits."""

    title: ClassVar[str] = "Serving"

    model: str = setting(
        "", "An export (models/chat; its newest version is taken) or one version (models/chat/3).", path=True
    )
    backend: str = setting(
        "",
        "Empty: the model runs in this process. Otherwise a TensorFlow Serving that runs it: grpc://HOST:8500 or "
        "http://HOST:8501.",
    )
    model_name: str = setting("", "The name clients and TensorFlow Serving know the model by; empty: the export's.")
    label: str = setting("", "A version's label at the backend, such as stable; empty: the newest version.")
    context_length: int = setting(
        0, "Tokens that a prompt may have; 0: as the export says. Without an export, 0 is no limit.", minimum=0
    )
    host: str = setting("127.0.0.1", "The address to listen on; 0.0.0.0 lets other machines in: set API keys then.")
    port: int = setting(8000, "The port to listen on; 0 takes a free one.", minimum=0, maximum=65535)
    api_keys_env: str = setting(
        "TFGPT_API_KEYS", "The environment variable that holds the API keys, comma between; unset: no key is asked for."
    )
    cors_origin: tuple[str, ...] = setting((), "A web origin whose pages may call the API, such as https://a.example.")
    max_batch: int = setting(16, "Texts written together in one call of the model.", minimum=1)
    batch_wait_ms: float = setting(
        5.0, "Milliseconds an idle server waits for more requests to write together.", minimum=0, maximum=1000
    )
    max_queue: int = setting(64, "Texts that may wait for their turn; more are answered 429.", minimum=1)
    max_tokens_limit: int = setting(2048, "The most tokens a request may ask for.", minimum=1)
    default_max_tokens: int = setting(256, "Tokens written where a request does not say how many.", minimum=1)
    max_choices: int = setting(8, "The most texts a request may ask for (prompts times n).", minimum=1)
    max_body_kb: int = setting(1024, "The largest request, in KiB; larger ones are answered 413.", minimum=1)
    body_seconds: float = setting(20.0, "How long a client may take to send its request.", minimum=0.1, maximum=1e9)
    backend_seconds: float = setting(
        30.0,
        "How long TensorFlow Serving may take for one call of 32 tokens, repeated tries included.",
        minimum=0.1,
        maximum=1e9,
    )
    request_seconds: float = setting(600.0, "How long a request may take altogether.", minimum=0.1, maximum=1e9)
    shutdown_seconds: int = setting(10, "How long running requests may go on after SIGTERM.", minimum=0)
    access_log: bool = setting(True, "Write a line of JSON for each request to standard output, without its contents.")

    def check(self) -> None:
        if not self.model and not self.backend:
            raise SettingError("model", "is missing; give an export, such as models/chat, or a --backend")
        if self.backend and not self.backend.startswith(SCHEMES):
            raise SettingError("backend", f"{self.backend!r} does not begin with {', '.join(SCHEMES)}")
        if self.backend and not self.model and not self.model_name:
            raise SettingError("model_name", "is missing; say which model of the backend to use")
        if self.default_max_tokens > self.max_tokens_limit:
            raise SettingError(
                "default_max_tokens", f"{self.default_max_tokens} is above --max_tokens_limit={self.max_tokens_limit}"
            )
        for origin in self.cors_origin:
            if origin != "*" and not origin.startswith(("http://", "https://")):
                raise SettingError("cors_origin", f"{origin!r} is no origin; write https://a.example or *")
