"""Each public class has an example, and the examples run.

A class is public when another room of the package uses it, or when it is a Keras layer, model, loss or optimizer.
"""

import ast
import doctest
import functools
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted((ROOT / "tfgpt").rglob("*.py"))
}
KERAS = re.compile(r"\b(Layer|Model|Loss|Metric|Optimizer)$")
EXCEPTIONS = re.compile(r"(Error|Exception|Interrupt|Exit)$")


@functools.cache
def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def room(module: str) -> str:
    return ".".join(module.split(".")[:2]) if module.count(".") > 1 else "tfgpt"


def classes() -> dict[tuple[str, str], ast.ClassDef]:
    return {(name, node.name): node for name in MODULES for node in tree(name).body if isinstance(node, ast.ClassDef)}


def derived(known: dict[tuple[str, str], ast.ClassDef], pattern: re.Pattern) -> set[tuple[str, str]]:
    """Returns the classes with a base, of this package or another, whose name matches."""
    bases = {key: [ast.unparse(base).split("[")[0] for base in node.bases] for key, node in known.items()}
    found: set[tuple[str, str]] = set()
    while more := {key for key, names in bases.items() if any(map(pattern.search, names))} - found:
        found |= more
        pattern = re.compile("|".join([pattern.pattern, *(rf"\b{name}$" for _, name in more)]))
    return found


def public_classes() -> list[tuple[str, str]]:
    known, used = classes(), set()
    for importer in MODULES:
        modules = {}
        for node in ast.walk(tree(importer)):
            if isinstance(node, ast.ImportFrom) and node.module:
                used |= {(node.module, alias.name) for alias in node.names if room(node.module) != room(importer)}
                modules |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                module = modules.get(node.value.id, "tfgpt")
                used |= {(module, node.attr)} if room(module) != room(importer) else set()
    public = (used & set(known)) | derived(known, KERAS)
    return sorted(key for key in public - derived(known, EXCEPTIONS) if not key[1].startswith("_"))


@pytest.mark.parametrize(("module", "name"), public_classes(), ids=lambda part: part)
def test_public_classes_have_an_example(module: str, name: str):
    assert ">>> " in (ast.get_docstring(classes()[module, name]) or ""), f"{MODULES[module]}: {name} has no example"


@pytest.mark.parametrize(
    "module", [name for name, path in MODULES.items() if ">>> " in path.read_text(encoding="utf-8")]
)
def test_examples_give_what_they_say(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.testmod(importlib.import_module(module), optionflags=options).failed == 0
