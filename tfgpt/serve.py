"""Serves an exported model: OpenAI's API and a chat page, in one process.

The shortest form is `python -m tfgpt.serve --model=models/chat`; then open http://127.0.0.1:8000 or point an OpenAI
client at http://127.0.0.1:8000/v1. With --backend=grpc://HOST:8500 or http://HOST:8501 TensorFlow Serving runs the
model for this process. After SIGTERM and Ctrl-C running responses continue for --shutdown_seconds.
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

# Idle connections stay open longer than those in the pools of proxies (60 to 120 s), which could otherwise send a
# request to a closing one.
KEEP_ALIVE_SECONDS = 125
REQUIRED_MODULES = ("fastapi", "uvicorn", "prometheus_client")


def run(serve: ServeConfig) -> None:
    """Checks the inputs without TensorFlow, opens the port and the model, then serves."""
    for name in REQUIRED_MODULES:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"{name} is missing, which serving needs; pip install 'tfgpt[serve]'")
    keys = [key.strip() for key in os.environ.get(serve.api_keys_env, "").split(",") if key.strip()]
    if serve.model:
        read_description(find_export(serve.model))
    with contextlib.ExitStack() as stack:
        serve_on(open_sockets(serve.host, serve.port, stack), serve, keys)


def serve_on(sockets: list[socket.socket], serve: ServeConfig, keys: list[str]) -> None:
    import_tensorflow()
    import uvicorn

    from tfgpt.serving.app import create_app
    from tfgpt.serving.backends import open_backend

    client, info = open_backend(serve)
    host, port = sockets[0].getsockname()[:2]
    shown_host = serve.host if len(sockets) > 1 else f"[{host}]" if ":" in host else host
    print(f"Model:  {info.name} ({serve.backend or client.transport.address})", flush=True)
    if not info.context_length:
        print("Note:   the context length is unknown; give --context_length or --model", flush=True)
    if not keys and not all(ipaddress.ip_address(found.getsockname()[0]).is_loopback for found in sockets):
        print(f"Note:   anyone who reaches {shown_host}:{port} may use the model; set {serve.api_keys_env}", flush=True)
    print(f"Serving: http://{shown_host}:{port}", flush=True)
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
    # A request that the shutdown cancels has had its response, so its cancellation is not an error.
    logging.getLogger("uvicorn.error").addFilter(
        lambda record: not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))
    )
    try:
        uvicorn.Server(config).run(sockets=sockets)
    except KeyboardInterrupt:
        pass  # uvicorn raises the signal again after its shutdown.
    finally:
        client.close()
    print("Stopped.", flush=True)


def open_sockets(host: str, port: int, stack: contextlib.ExitStack) -> list[socket.socket]:
    """Returns listening sockets, one for each address of the host ("localhost" has two), which `stack` closes."""
    sockets: list[socket.socket] = []
    requested = f"{host}:{port}"
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = dict.fromkeys((family, address[0]) for family, *_, address in found)
        for family, address in addresses:
            listening = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            if os.name == "posix":  # On Windows two servers could then have the same port.
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6 and len(addresses) > 1:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                listening.bind((address, port))
            except OSError as error:
                # A name may have an address of a network that this machine does not belong to.
                if error.errno == errno.EADDRNOTAVAIL and (sockets or address != [*addresses][-1][1]):
                    continue
                raise
            listening.listen(2048)  # From now on connections wait for the model and are not refused.
            port = listening.getsockname()[1]
            sockets.append(listening)
    except (socket.gaierror, UnicodeError) as error:  # UnicodeError: the name is too long or malformed.
        reason = error.strerror if isinstance(error, socket.gaierror) else "is not a host name"
        raise UserError(f"--host: {host}: {reason}") from error
    except OSError as error:
        raise UserError(f"--port: cannot listen on {requested}: {error.strerror}") from error
    return sockets


COMMAND = Command("serve", __doc__, [ServeConfig], run)
main = COMMAND.run

if __name__ == "__main__":
    sys.exit(main())
