"""A server of the tests: the real app under the real uvicorn on a free port, in a thread of this process."""

import contextlib
import dataclasses
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import uvicorn

from tfgpt.serving.app import create_app
from tfgpt.serving.backends import open_backend
from tfgpt.serving.client import Client
from tfgpt.serving.serve_config import ServeConfig


class Counted:
    """A transport that counts the rows of calls of `stream`, and may be slow, fail or omit an output."""

    def __init__(self, transport):
        self.transport, self.address = transport, transport.address
        self.rows: list[int] = []
        self.seconds, self.left_out = 0.0, ""
        self.error: BaseException | None = None  # of every call
        self.stream_error: BaseException | None = None  # of calls of `stream`

    def predict(self, name, inputs, seconds):
        if self.error:
            raise self.error
        if name == "stream":
            self.rows.append(len(inputs["ids"]))
            time.sleep(self.seconds)
            if self.stream_error:
                raise self.stream_error
        answer = self.transport.predict(name, inputs, seconds)
        return {key: value for key, value in answer.items() if key != self.left_out}

    def close(self):
        self.transport.close()


@dataclasses.dataclass
class Running:
    url: str
    backend: Counted
    server: uvicorn.Server
    thread: threading.Thread

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join()


def until(claim: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


@contextlib.contextmanager
def running(version: Path | None, keys: tuple[str, ...] = (), port: int = 0, **settings) -> Iterator[Running]:
    """Serves an export, or a backend, until the block ends."""
    config = ServeConfig(
        model=str(version) if version else "", **{"model_name": "chat", "access_log": False, **settings}
    )
    client, info = open_backend(config)
    backend = Counted(client.transport)
    app = create_app(Client(backend, config.backend_seconds), info, config, keys)
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", port))
    server = uvicorn.Server(
        uvicorn.Config(
            app, log_level="warning", access_log=False, lifespan="on", timeout_graceful_shutdown=config.shutdown_seconds
        )
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    until(lambda: server.started or not thread.is_alive(), 300)
    found = Running(f"http://127.0.0.1:{listening.getsockname()[1]}", backend, server, thread)
    try:
        yield found
    finally:
        found.stop()
        backend.close()
