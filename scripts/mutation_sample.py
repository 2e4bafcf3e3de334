"""Puts random bugs into the code, one at a time, and counts how many of them the tests notice.

    python scripts/mutation_sample.py --seed=1 --count=60

The bugs are cosmic-ray's mutations, such as another operator, a number that is off by one, a negated condition. The
script draws places with equal chances, then one mutation of each place. It changes no annotations and leaves out what
does not compile. In a copy of the working tree it runs the tests of the changed module: its mirror
`tests/ROOM/test_MODULE.py`, or else the test files that import the module, or else those that import what imports it;
never those marked slow. A mutant is killed when a test fails, or when the tests take longer than a minute and three
times their seconds without the bug. It is untested when the tests fail without the bug, or take longer than --limit.
Where these tests pass, the other tests of the room run for at most --room_seconds, those that import the module first;
the mutant is killed by the room when one of them fails, and passes without the bug.

`scripts/judged_mutants.jsonl` lists the mutants that a person found to be equivalent, which do not run. Each line is a
JSON object with `file`, `before`, `after` (the changed line without its indentation) and `why`.

The output is a line for each mutant, the change of each survivor, and a line of JSON.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import difflib
import functools
import itertools
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cosmic_ray.ast import get_ast
from cosmic_ray.operators.provider import OperatorProvider

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("training", "pipeline", "model", "generation", "tokenization", "serving", "common")
JUDGED = Path("scripts/judged_mutants.jsonl")
MEMORY = 16 << 30  # The most bytes that a process of the tests may take.
# These need the names of variables.
LEFT_OUT = {"VariableReplacer", "VariableInserter"}
OPERATORS = {name: OperatorProvider()[name]() for name in OperatorProvider() if name not in LEFT_OUT}
# The number of the node, which of its mutations, its line, the operator.
Mutation = tuple[int, int, int, str]


def code_nodes(node: Any) -> Iterator[Any]:
    """Yields the nodes of a syntax tree without its annotations."""
    parent = node.parent
    place = {"annassign": 1, "tfpdef": 2}.get(parent.type if parent else "")
    if (place and node is parent.children[place]) or (
        parent and parent.type == "funcdef" and node is parent.annotation
    ):
        return
    yield node
    for child in getattr(node, "children", ()):
        yield from code_nodes(child)


def mutations(source: str) -> list[list[Mutation]]:
    """Lists the mutations for each place and kind of operator."""
    found = collections.defaultdict(list)
    for number, node in enumerate(code_nodes(get_ast(source))):
        for name, operator in OPERATORS.items():
            for index, (start, _) in enumerate(operator.mutation_positions(node)):
                found[number, name.split("_")[0]].append((number, index, start[0], name))
    return [found[key] for key in sorted(found)]


def mutated(source: str, mutation: Mutation) -> str | None:
    """Returns the changed source, or None when it is the same or does not compile."""
    tree, (number, index, _, operator) = get_ast(source), mutation
    node = list(code_nodes(tree))[number]
    siblings = node.parent.children
    place = next(number for number, sibling in enumerate(siblings) if sibling is node)
    new = OPERATORS[operator].mutate(node, index)
    siblings[place : place + 1] = [] if new is None else [new]
    with contextlib.suppress(SyntaxError):
        compile(code := tree.get_code(), "mutant", "exec", dont_inherit=True)
        return code if code != source else None
    return None


def change(source: str, mutant: str) -> tuple[str, str]:
    """Returns the lines that differ, without indentation, before and after the mutation."""
    lines = list(difflib.unified_diff(source.splitlines(), mutant.splitlines(), n=0))[2:]
    before, after = ([line[1:].strip() for line in lines if line.startswith(sign)] for sign in "-+")
    return " ".join(before), " ".join(after)


def importers(files: list[Path], modules: set[Path]) -> list[Path]:
    """Returns the files that import one of the modules; all paths are relative to the current folder."""
    names = (re.escape(".".join(module.with_suffix("").parts)).rsplit(r"\.", 1) for module in modules)
    either = "|".join(rf"{package}\.{name}\b|from {package} import .*\b{name}\b" for package, name in names)
    return [path for path in files if re.search(either, path.read_text(encoding="utf-8"))]


@functools.cache
def tests_of(module: Path) -> tuple[str, ...]:
    """Returns the test files of a module."""
    room, name = Path("tests", module.parts[1]), f"test_{module.name}"
    found = [path for path in (Path("tests", *module.parts[1:]).with_name(name), room / name) if path.is_file()][:1]
    code, reached = sorted(Path("tfgpt").rglob("*.py")), {module}
    while not found:
        found = importers(sorted(room.rglob("test_*.py")), reached)
        found = found or importers(sorted(Path("tests").rglob("test_*.py")), reached)
        if not found and reached == (reached := reached | set(importers(code, reached))):
            found = [room]
    return tuple(path.as_posix() for path in found)


def room_tests_of(module: Path) -> tuple[str, ...]:
    """Returns the room's other test files, nearest first: by how many imports are between them and the module."""
    files, code = sorted(Path("tests", module.parts[1]).rglob("test_*.py")), sorted(Path("tfgpt").rglob("*.py"))
    found, reached, before = list[Path](), {module}, set[Path]()
    while reached != before:
        found += [path for path in importers(files, reached) if path not in found]
        reached, before = reached | set(importers(code, reached)), reached
    return tuple(path.as_posix() for path in found if path.as_posix() not in tests_of(module))


def run_tests(tests: tuple[str, ...], seconds: float) -> str:
    """Returns "" when the tests pass, else what ended them: the first test that failed, or the time limit."""
    command = [sys.executable, *"-m pytest -x -q --tb=no -rfE -p no:cacheprovider -m".split(), "not slow", *tests]
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "PYTHONDONTWRITEBYTECODE": "1"}  # It may be stale.
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            return "the time limit"
        finally:
            with contextlib.suppress(ProcessLookupError):  # Also what tests have started and left.
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        file.seek(0)
        failed = re.search(r"^(?:FAILED|ERROR) (\S.*?)(?: - .*)?$", file.read(), re.MULTILINE)
    return "" if process.returncode == 0 else failed[1] if failed else f"exit code {process.returncode}"


def drawn(files: list[Path], seed: int) -> Iterator[tuple[Path, Mutation, str]]:
    """Yields mutants in random order: the file, the mutation, the changed source."""
    chance = random.Random(seed)
    places = [(path, found) for path in files for found in mutations(path.read_text(encoding="utf-8"))]
    chance.shuffle(places)
    for path, found in places:
        mutation = chance.choice(found)
        if code := mutated(path.read_text(encoding="utf-8"), mutation):
            yield path, mutation, code


def sample(files: list[Path], seed: int, count: int, limit: float, room_seconds: float) -> dict[str, Any]:
    """Runs and prints mutants of the files in the current folder, which is a copy of the project."""
    lines = JUDGED.read_text(encoding="utf-8").splitlines() if JUDGED.is_file() else []
    equivalent = {(entry["file"], entry["before"], entry["after"]) for entry in map(json.loads, lines)}
    ends = {"killed": 0, "killed by the room": 0, "survived": 0, "equivalent": 0, "untested": 0}

    @functools.cache
    def without_bug(tests: tuple[str, ...]) -> tuple[str, float]:
        begun = time.monotonic()
        return run_tests(tests, limit), 3 * (time.monotonic() - begun) + 60

    for path, (*_, line, operator), code in itertools.islice(drawn(files, seed), count):
        source, tests, by = path.read_text(encoding="utf-8"), tests_of(path), ""
        before, after = change(source, code)
        if (path.as_posix(), before, after) in equivalent:
            end = "equivalent"
        elif (found := without_bug(tests))[0]:
            end, by = "untested", f"{found[0]} without any bug"
        else:
            try:
                path.write_text(code, encoding="utf-8", newline="\n")
                by = run_tests(tests, found[1])
                end = "killed" if by else "survived"
                if not by and room_seconds and room_tests_of(path):
                    by = run_tests(room_tests_of(path), room_seconds)
            finally:
                path.write_text(source, encoding="utf-8", newline="\n")
            if end == "survived" and "::" in by and not run_tests((by.split("@")[0],), limit):
                end = "killed by the room"
        ends[end] += 1
        print(f"{f'{path}:{line}':<48} {operator:<40} {end:<10} {by if end != 'survived' else ''}".rstrip(), flush=True)
        if end == "survived":
            print(f"    - {before}\n    + {after}", flush=True)
    killed = ends["killed"] + ends["killed by the room"]
    ran = killed + ends["survived"]
    return {"seed": seed, **ends, "share_killed": round(killed / ran, 3) if ran else None}


def main() -> None:
    """Copies the project and samples its mutants."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the choice of mutants")
    parser.add_argument("--count", type=int, default=60, help="how many mutants")
    parser.add_argument("--rooms", default=",".join(ROOMS), help="packages of tfgpt, with commas between")
    parser.add_argument("--limit", type=float, default=900, help="the most seconds that a module's tests may take")
    parser.add_argument("--room_seconds", type=float, default=0, help="for the room's other tests; 0: they do not run")
    given = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder, contextlib.chdir(folder):
        shutil.copytree(ROOT, ".", ignore=shutil.ignore_patterns(".git", ".venv", "__pycache__"), dirs_exist_ok=True)
        files = [path for room in given.rooms.split(",") for path in Path("tfgpt", room).rglob("*.py")]
        print(json.dumps(sample(sorted(files), given.seed, given.count, given.limit, given.room_seconds)))


if __name__ == "__main__":
    main()
