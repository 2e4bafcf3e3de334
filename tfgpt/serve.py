"""Serves an exported model: OpenAI's API and a chat page, in one process.

The shortest form is `python -m tfgpt.serve --model=models/chat`; then open http://127.0.0.1:8000 or point an OpenAI
client at http://127.0.0.1:8000/v1. With --backend=grpc://HOST:8500 or http://HOST:8501 a TensorFlow Serving runs the
model and this process only fronts it. SIGTERM and Ctrl-C let running answers go on for --shutdown_seconds.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import sys

from tfgpt.common.command import Command
from tfgpt.common.errors import UserError
from tfgpt.common.quiet import import_tensorflow
from tfgpt.serving.backends import newest_version
from tfgpt.serving.serve_config import ServeConfig

NEEDED = ("fastapi", "uvicorn", "prometheus_client")


def run(serve: ServeConfig) -> None:
    """Checks what can be checked without TensorFlow, opens the model and the port, then serves."""
    for name in NEEDED:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"{name} is missing, with which models are served; pip install 'tfgpt[serve]'")
    keys = [key.strip() for key in os.environ.get(serve.api_keys_env, "").split(",") if key.strip()]
    if serve.model:
        newest_version(serve.model)
    listening = listener(serve)
    import_tensorflow()
    import uvicorn

    from tfgpt.serving.app import create_app
    from tfgpt.serving.backends import open_backend

    client, info = open_backend(serve)
    app = create_app(client, info, serve, keys)
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    where = serve.backend or client.transport.address
    print(f"Model:  {info.name} ({where})", flush=True)
    if not info.context_length:
        print("Note:   the context's length is unknown; give --context_length or --model", flush=True)
    if not keys and host not in ("127.0.0.1", "::1"):
        print(f"Note:   anyone who reaches {shown}:{port} may use the model; set {serve.api_keys_env}", flush=True)
    print(f"Serving: http://{shown}:{port}", flush=True)
    config = uvicorn.Config(
        app,
        access_log=False,
        log_level="warning",
        server_header=False,
        lifespan="on",
        ws="none",
        timeout_graceful_shutdown=serve.shutdown_seconds,
    )
    try:
        uvicorn.Server(config).run(sockets=[listening])
    except KeyboardInterrupt:
        pass  # uvicorn raises the signal again after it has shut down.
    finally:
        client.close()
    print("Stopped.", flush=True)


def listener(serve: ServeConfig) -> socket.socket:
    """The listening socket: a port that is taken is noticed before the model is loaded.

    Raises:
        UserError: the address cannot be had.
    """
    try:
        family = socket.getaddrinfo(serve.host, serve.port, type=socket.SOCK_STREAM)[0][0]
        found = socket.socket(family, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((serve.host, serve.port))
        found.listen(2048)  # From now on connections wait for the model instead of being refused.
    except socket.gaierror as error:
        raise UserError(f"--host: {serve.host}: {error.strerror}") from error
    except OSError as error:
        raise UserError(f"--port: cannot listen on {serve.host}:{serve.port}: {error.strerror}") from error
    return found


COMMAND = Command("serve", __doc__, [ServeConfig], run)
main = COMMAND.run

if __name__ == "__main__":
    sys.exit(main())
