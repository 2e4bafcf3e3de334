"""`python -m tfgpt.serve` as a user runs it: what it prints, how it ends, and what it says of wrong flags."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest
import uvicorn

from tests.conftest import ROOT
from tfgpt import serve
from tfgpt.common.model_paths import EXPORT_METADATA
from tfgpt.serving.serve_config import ServeConfig


def test_sigterm_cuts_a_stream_within_its_bound_and_ends_well(version):
    command = [sys.executable, "-m", "tfgpt.serve", f"--model={version.parent}", "--port=0", "--shutdown_seconds=1"]
    command += ["--max_tokens_limit=1000000"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TFGPT_API_KEYS": "open, other"}
    with subprocess.Popen(
        command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            lines = [process.stdout.readline(), process.stdout.readline()]
            assert lines[0] == f"Model:  chat ({version})\n", process.stderr.read()
            url = re.fullmatch(r"Serving: (http://127\.0\.0\.1:\d+)\n", lines[1])[1]
            assert httpx.get(f"{url}/readyz", timeout=60).status_code == 200
            assert httpx.get(f"{url}/v1/models", timeout=60).status_code == 401
            body = {"model": "chat", "prompt": "The", "max_tokens": 1_000_000, "temperature": 0, "stream": True}
            headers = {"Authorization": "Bearer other"}
            with httpx.stream("POST", f"{url}/v1/completions", json=body, headers=headers, timeout=60) as answer:
                events = answer.iter_lines()
                assert '"text"' in next(line for line in events if line.startswith("data:"))  # Or ": waiting".
                process.send_signal(signal.SIGTERM)
                begun = time.monotonic()
                rest = list(events)
            assert process.wait(60) == 0
            assert time.monotonic() - begun < 30  # One second, and the machine may be busy.
            last = [line for line in rest if line][-1]
            assert json.loads(last.removeprefix("data: "))["error"]["code"] == "shutting_down"
            assert process.stdout.read().splitlines()[-1] == "Stopped."
            assert "Traceback" not in process.stderr.read()
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--model: is missing"),
        (["--model=/nowhere"], "--model: /nowhere: no such file or directory; the folder /"),
        (["--backend=host:8500"], "--backend: 'host:8500' does not begin with grpc://"),
        (["--backend=grpc://host:8500"], "--model_name: is missing"),
        (["--model=a", "--default_max_tokens=9", "--max_tokens_limit=8"], "--default_max_tokens: 9 is above"),
        (["--model=a", "--cors_origin=example.com"], "--cors_origin: 'example.com' is not an origin"),
        (["--model=a", "--port=70000"], "--port: 70000 is above the largest allowed"),
    ],
)
def test_wrong_flags_get_one_line(capsys, arguments, said):
    assert serve.main(arguments) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"tfgpt.serve: {said}")


def test_a_port_that_is_taken_is_noticed_before_anything_is_loaded(capsys, version):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert serve.main([f"--model={version}", f"--port={port}"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"tfgpt.serve: --port: cannot listen on 127.0.0.1:{port}")


def test_the_server_listens_on_this_machine_only_unless_told():
    assert ServeConfig(model="a").host == "127.0.0.1"


def test_a_name_with_two_addresses_is_listened_to_on_both(monkeypatch):
    def both(host, port, **options):
        known = [(socket.AF_INET6, ("::1", port, 0, 0)), (socket.AF_INET, ("127.0.0.1", port))]
        return [(family, socket.SOCK_STREAM, 6, "", address) for family, address in known]

    try:
        socket.socket(socket.AF_INET6).bind(("::1", 0))
    except OSError:
        pytest.skip("there is no IPv6 here")
    with contextlib.ExitStack() as stack:
        with monkeypatch.context() as patched:
            patched.setattr(socket, "getaddrinfo", both)  # As most machines have it, if not this one.
            sockets = serve.open_sockets("localhost", 0, stack)
        found = [each.getsockname()[:2] for each in sockets]
        assert [host for host, _ in found] == ["::1", "127.0.0.1"] and len({port for _, port in found}) == 1
        for address in found:
            socket.create_connection(address).close()


def test_an_idle_connection_outlives_the_pools_of_proxies(version, monkeypatch):
    started = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda server, sockets: started.append(server.config))
    assert serve.main([f"--model={version}", "--port=0"]) == 0
    assert started[0].timeout_keep_alive > 120  # Azure's gateway; nginx and Amazon's balancers have 60.


def test_an_export_of_another_format_is_refused_by_name(capsys, tmp_path):
    root = tmp_path / "chat"
    (root / "1" / EXPORT_METADATA).parent.mkdir(parents=True)
    (root / "1" / "saved_model.pb").touch()
    for place, said in ((root / "1" / EXPORT_METADATA, root / "1"), (root / "tfgpt.json", root)):
        (root / "1" / EXPORT_METADATA).write_text("{}")
        place.write_text(json.dumps({"kind": "export", "format": 2}))
        assert serve.main([f"--model={root}"]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert f"{said}: is an export of format 2" in line
