"""The entry point: `python -m tfgpt` lists the commands, `python -m tfgpt NAME …` (or `tfgpt NAME …`) runs one."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from pathlib import Path

from tfgpt.common.did_you_mean import did_you_mean

COMMANDS = tuple("prepare train tune scale evaluate generate chat convert export serve doctor cache".split())


def main(arguments: list[str] | None = None) -> int:
    """Runs the named command, or lists the commands."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        lines = ["tfgpt: train a ChatGPT-like model with TensorFlow and Keras", "", "Commands:"]
        for name in COMMANDS:  # The modules are read, not imported.
            source = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
            lines.append(f"  python -m tfgpt.{name:<10} {(ast.get_docstring(ast.parse(source)) or '').splitlines()[0]}")
        print("\n".join([*lines, "", "Every command explains its flags: python -m tfgpt.train --help"]))
        return 0
    name = arguments[0].replace("-", "_")
    if name not in COMMANDS or importlib.util.find_spec(f"tfgpt.{name}") is None:
        near = did_you_mean(name, COMMANDS) or f"; there are {', '.join(COMMANDS)}"
        print(f"tfgpt: {arguments[0]}: no such command{near}", file=sys.stderr)
        return 2
    return importlib.import_module(f"tfgpt.{name}").main(arguments[1:])


if __name__ == "__main__":
    sys.exit(main())
