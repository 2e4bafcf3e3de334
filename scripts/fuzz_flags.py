"""Gives every command hostile flags: infinities, NaN, negative, zero, huge, empty and unicode values, misspelled names.

    python scripts/fuzz_flags.py --seed=0 --count=1000

A command runs in this process, with small inputs, up to where it would import TensorFlow: by then its flags have been
checked. Right is exit code 2 with one line on standard error, in under a second; or that the values do, which then is
seen by the command's being done or its wanting TensorFlow. Anything else is printed with its command line: a crash,
another exit code, several lines, a slow answer. The last line is JSON; the exit code is 1 when anything was wrong.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import importlib
import importlib.abc
import io
import json
import os
import random
import resource
import shlex
import sys
import tempfile
import time
import typing
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tfgpt.__main__ import COMMANDS  # noqa: E402
from tfgpt.common.command_line import Command  # noqa: E402
from tfgpt.common.flags import Overrides, flag_names  # noqa: E402
from tfgpt.common.settings import plain_type  # noqa: E402
from tfgpt.search import worker_pool  # noqa: E402

NUMBERS = [
    "inf", "-inf", "nan", "1e400", "-1e400", "-1", "0", "-0.0", "0.0", "1", "-3.5", "1e308", "3e38", "-1e308", "1e-320",
    "2147483647", "2147483648", "-2147483649", "9223372036854775807", "9223372036854775808", "9" * 100, "9" * 5000,
    "1e30", "", " ", "abc", "0x10", "1_000", "１２", "٣", "½", "∞", "1,5", "1e3", "--1", "None", "true", "💥",
]  # fmt: skip
TEXTS = [
    "", " ", "\n", "a\nb", "💥", "é" * 200, "x" * 5000, "..", ".", "/dev/null", "no/such", "~nobody/x", "gs://a/b",
    "%s{}", "'\"", "[1]", "*", "?", "\udcff", "\u202e", "\x1b[31m", "-1", "nan", "1e400", "{", "a,b", "sample:",
    "tfds:", "sample:shakespear", ":", "=", "==", "0.5:text.txt", "nan:text.txt", "inf:text.txt", "text.txt:0",
]  # fmt: skip
TRUTHS = ["", "maybe", "2", "💥", "nan", "true", "false"]
NOTES = ("reading:", "split:", "encoding:")
SLOW = 1.0  # seconds


class ChecksDone(BaseException):
    """The command wants TensorFlow."""


def checks_done(*_: object) -> None:
    """Ends a command."""
    raise ChecksDone


class NoTensorFlow(importlib.abc.MetaPathFinder):
    """Ends a command where it would import TensorFlow, or what does."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "keras", "tensorboard", "matplotlib"):
            raise ChecksDone
        return


def small_inputs(folder: Path) -> dict[str, list[str]]:
    """Writes a text, a search space and a model that are just enough for the checks; the flags that name them."""
    from tfgpt.model.checkpoints.huggingface_config import to_hugging_face
    from tfgpt.model.config import DecoderConfig
    from tfgpt.tokenization.train_tokenizer import byte_tokenizer

    (folder / "text.txt").write_text("One two three.\n<|endoftext|>\n" * 40, encoding="utf-8")
    (folder / "space.toml").write_text("[search.learning_rate]\nchoices = [0.1, 0.2]\n", encoding="utf-8")
    tokenizer = byte_tokenizer()
    (folder / "model").mkdir()
    tokenizer.save(folder / "model")
    config = to_hugging_face(DecoderConfig(vocabulary_size=tokenizer.vocabulary_size))
    (folder / "model" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    text = ["--train_text=text.txt", "--cache_dir=cache"]
    return {
        "prepare": [*text, "--vocabulary_size=300"],
        "train": [*text, "--run_dir=run"],
        "tune": [*text, "--search_space=space.toml", "--search_dir=search"],
        "scale": [f"--flagfile={ROOT / 'configs' / 'transfer.cfg'}", *text, "--scaling_dir=scale"],
        "doctor": text,
        "evaluate": ["--model=model", "--text=text.txt"],
        "generate": ["--model=model", "--prompt=One"],
        "chat": ["--model=model"],
        "convert": ["--suggest", "--task=chat", "--data_size=20MB", "--memory=16GiB"],
        "export": ["--model=model", "--output=exported"],
        "cache": ["--cache_dir=cache"],
        "serve": ["--backend=http://127.0.0.1:1", "--model_name=m", "--backend_seconds=0.1", "--port=0"],
    }


def hostile_flag(command: Command, draw: random.Random) -> str:
    """A flag of the command with a value that should not be, or a flag that is none."""
    group = draw.choice(command.groups)
    cls = group.settings if isinstance(group, Overrides) else group
    names = flag_names(group)
    if not names:
        return "--verbosity=" + draw.choice(NUMBERS)
    name = draw.choice(names)
    if draw.random() < 0.05:
        position = draw.randrange(len(name))
        return f"--{name[:position]}{draw.choice(['', 'x', 'é'])}{name[position + 1 :]}=1"
    kind, _ = plain_type(typing.get_type_hints(cls)[name])
    if kind in (int, float):
        values = NUMBERS
    elif kind is bool:
        values = TRUTHS
    else:
        values = TEXTS if draw.random() < 0.8 else NUMBERS
    return f"--{name}={draw.choice(values)}"


def outcome(command: Command, arguments: list[str]) -> tuple[str, str]:
    """Runs a command: "refused", "accepted", or what was wrong; and its words."""
    out, err = io.StringIO(), io.StringIO()
    began = time.monotonic()
    code: object = None
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = command.run(arguments)
    except ChecksDone:
        return "accepted", ""
    except BaseException as error:
        return f"raised {type(error).__name__}", str(error)
    seconds = time.monotonic() - began
    words = err.getvalue()
    if code == 0:
        return "accepted", ""
    if code != 2:
        return f"exit code {code}", words
    # Above the line may stand how far the text was read.
    *notes, line = words.splitlines() or [""]
    if not line.startswith(f"tfgpt.{command.name}: ") or any(not note.startswith(NOTES) for note in notes):
        return "not one line", words
    return ("refused" if seconds < SLOW else f"slow: {seconds:.1f} s"), words


def main() -> int:
    """Tries `--count` command lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--show", action="store_true", help="print every case")
    options = parser.parse_args()
    # What a value that does could make of memory is the doctor's to say; here it may not take the machine down.
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    draw = random.Random(options.seed)
    commands = {name: importlib.import_module(f"tfgpt.{name}").COMMAND for name in COMMANDS}
    counts: collections.Counter[str] = collections.Counter()
    wrong = 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "a" / "b"
        work.mkdir(parents=True)
        os.chdir(work)
        os.environ.update(
            HOME=folder, XDG_STATE_HOME=folder, XDG_CACHE_HOME=folder, HF_HUB_OFFLINE="1", TF_CPP_MIN_LOG_LEVEL="0"
        )
        base = small_inputs(work)
        sys.meta_path.insert(0, NoTensorFlow())
        worker_pool.run_search = checks_done  # type: ignore[assignment] # A search imports TensorFlow in child processes.
        for name, arguments in base.items():
            assert outcome(commands[name], arguments)[0] == "accepted", (name, outcome(commands[name], arguments))
        for _ in range(options.count):
            name = draw.choice([name for name in commands if name in base])
            flags = [hostile_flag(commands[name], draw) for _ in range(draw.choice([1, 1, 1, 2, 3]))]
            arguments = [*base[name], *flags]
            kind, words = outcome(commands[name], arguments)
            good = kind in ("refused", "accepted")
            counts[kind] += 1
            wrong += not good
            if options.show or not good:
                line = shlex.join(["python", "-m", f"tfgpt.{name}", *arguments])
                shown = line if len(line) <= 400 else f"{line[:400]}…"
                print(f"{kind}: {shown.encode('utf-8', 'backslashreplace').decode()}\n    {words[-400:].strip()}")
        os.chdir(ROOT)
    summary = {"cases": options.count, **dict(sorted(counts.items())), "wrong": wrong}
    print(json.dumps({**summary, "seconds": round(time.monotonic() - began, 1)}))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
