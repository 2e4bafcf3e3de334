"""Serves an exported model: OpenAI's API and a chat page, in one process.

The shortest form is `python -m tfgpt.serve --model=models/chat`; then open http://127.0.0.1:8000 or point an OpenAI
client at http://127.0.0.1:8000/v1. With --backend=grpc://HOST:8500 or http://HOST:8501 a TensorFlow Serving runs the
model and this process only fronts it. SIGTERM and Ctrl-C let running answers go on for --shutdown_seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import importlib.util
import ipaddress
import logging
import os
import socket
import sys

from tfgpt.common.command_line import Command
from tfgpt.common.errors import UserError
from tfgpt.common.model_paths import find_export
from tfgpt.common.tf_logging import import_tensorflow
from tfgpt.serving.export_metadata import read_description
from tfgpt.serving.serve_config import ServeConfig

# How long an idle connection stays open: longer than the pools of proxies (60 to 120 s), which would otherwise send a
# request into one that is just being closed.
KEEP_ALIVE_SECONDS = 125
NEEDED = ("fastapi", "uvicorn", "prometheus_client")


def run(serve: ServeConfig) -> None:
    """Checks what can be checked without TensorFlow, opens the model and the port, then serves."""
    for name in NEEDED:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"{name} is missing, with which models are served; pip install 'tfgpt[serve]'")
    keys = [key.strip() for key in os.environ.get(serve.api_keys_env, "").split(",") if key.strip()]
    if serve.model:
        read_description(find_export(serve.model))
    with contextlib.ExitStack() as stack:
        serve_on(listeners(serve, stack), serve, keys)


def serve_on(listening: list[socket.socket], serve: ServeConfig, keys: list[str]) -> None:
    """Opens the model and serves it until the process is told to stop."""
    import_tensorflow()
    import uvicorn

    from tfgpt.serving.app import create_app
    from tfgpt.serving.backends import open_backend

    client, info = open_backend(serve)
    host, port = listening[0].getsockname()[:2]
    shown = serve.host if len(listening) > 1 else f"[{host}]" if ":" in host else host
    where = serve.backend or client.transport.address
    print(f"Model:  {info.name} ({where})", flush=True)
    if not info.context_length:
        print("Note:   the context's length is unknown; give --context_length or --model", flush=True)
    if not keys and not all(ipaddress.ip_address(found.getsockname()[0]).is_loopback for found in listening):
        print(f"Note:   anyone who reaches {shown}:{port} may use the model; set {serve.api_keys_env}", flush=True)
    print(f"Serving: http://{shown}:{port}", flush=True)
    config = uvicorn.Config(
        create_app(client, info, serve, keys),
        access_log=False,
        log_level="warning",
        server_header=False,
        lifespan="on",
        ws="none",
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=serve.shutdown_seconds,
    )
    # Requests that shutting down cuts have had their answer: that they were cancelled is no error.
    logging.getLogger("uvicorn.error").addFilter(
        lambda record: not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))
    )
    try:
        uvicorn.Server(config).run(sockets=listening)
    except KeyboardInterrupt:
        pass  # uvicorn raises the signal again after it has shut down.
    finally:
        client.close()
    print("Stopped.", flush=True)


def listeners(serve: ServeConfig, stack: contextlib.ExitStack) -> list[socket.socket]:
    """The listening sockets: a port that is taken is noticed before the model is loaded.

    A name gets one for each of its addresses: "localhost" is ::1 to some clients and 127.0.0.1 to others.

    Args:
        serve: the host and the port.
        stack: closes them.

    Raises:
        UserError: the address cannot be had.
    """
    found: list[socket.socket] = []
    port = serve.port
    try:
        known = socket.getaddrinfo(serve.host, port, type=socket.SOCK_STREAM)
        addresses = dict.fromkeys((family, address[0]) for family, *_, address in known)
        for family, address in addresses:
            listening = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            if os.name == "posix":  # On Windows it would let two servers have the same port.
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6 and len(addresses) > 1:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                listening.bind((address, port))
            except OSError as error:
                # A name may have an address of a network that this machine is not in.
                if error.errno == errno.EADDRNOTAVAIL and (found or address != [*addresses][-1][1]):
                    continue
                raise
            listening.listen(2048)  # From now on connections wait for the model instead of being refused.
            port = listening.getsockname()[1]
            found.append(listening)
    except (socket.gaierror, UnicodeError) as error:  # UnicodeError: what no name of a host can be.
        reason = error.strerror if isinstance(error, socket.gaierror) else "is no host's name"
        raise UserError(f"--host: {serve.host}: {reason}") from error
    except OSError as error:
        raise UserError(f"--port: cannot listen on {serve.host}:{serve.port}: {error.strerror}") from error
    return found


COMMAND = Command("serve", __doc__, [ServeConfig], run)
main = COMMAND.run

if __name__ == "__main__":
    sys.exit(main())
