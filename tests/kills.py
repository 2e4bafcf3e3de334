"""Killing a process at each of its calls to the file system, for real. For programs without threads: it forks."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

CALLS = ("open", "os.", "shutil.", "tempfile.")
"""Audit events (https://docs.python.org/3/library/audit_events.html) of what touches the disk."""


def killed_at_every_call(before: Path, work: Path, act: Callable[[], None], check: Callable[[int], None]) -> int:
    """Kills `act` at its first call, its second, and so on until it ends by itself; returns how many kills there were.

    Each time `before` is copied to `work`, which `act` changes; `check` looks at what each kill left.
    """
    number = 0
    while True:
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(before, work)
        child = os.fork()
        if child == 0:
            seen = 0

            def kill(event: str, _, last: int = number) -> None:
                nonlocal seen
                if event.startswith(CALLS):
                    seen += 1
                    if seen > last:
                        os._exit(9)

            sys.addaudithook(kill)
            act()
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        check(number)
        if code == 0:
            return number
        assert code == 9, code
        number += 1
