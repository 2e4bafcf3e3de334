"""Runs commands as forks of one process that has imported everything: a search then starts in no time.

Reads a line of JSON for each command: {"module", "arguments", "log", "environment", "file_size"}; the command's process
id and exit code appear beside its log, in LOG.pid and LOG.code.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import traceback
from pathlib import Path

from tfgpt.common.standard_streams import redirect_output
from tfgpt.common.tf_logging import import_tensorflow


def child(order: dict) -> int:
    os.setsid()
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    redirect_output(log)
    os.environ.update(order["environment"])
    if order["file_size"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_size"], order["file_size"]))
    return importlib.import_module(f"tfgpt.{order['module']}").main(order["arguments"])


def main() -> None:
    import_tensorflow()
    for module in ("tfgpt.tune", "tfgpt.train", "tfgpt.training.run", "tfgpt.search.tuner", "tfgpt.search.cluster",
                   "tfgpt.search.report", "tfgpt.search.seed_comparison", "plotly.graph_objects"):  # fmt: skip
        importlib.import_module(module)
    for line in sys.stdin:
        order = json.loads(line)
        if os.fork():
            os.wait()
            continue
        # A process that waits for the command, so that this one need not.
        if os.fork():
            os._exit(0)
        pid = os.fork()
        if pid == 0:
            code = 99
            try:
                code = child(order)
                sys.stdout.flush()
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
            finally:
                os._exit(code)
        Path(order["log"] + ".pid").write_text(str(pid))
        _, status = os.waitpid(pid, 0)
        Path(order["log"] + ".code").write_text(str(os.waitstatus_to_exitcode(status)))
        os._exit(0)


if __name__ == "__main__":
    main()
