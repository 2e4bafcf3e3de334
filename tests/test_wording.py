"""The words of docstrings, comments, help texts and messages: those that the Keras documentation could have.

Each pattern is a habit that made the code hard to read: riddles for titles, inversions, words of space for time and
order. The remedy stands beside the pattern.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted([*ROOT.glob("tfgpt/**/*.py"), *ROOT.glob("scripts/*.py")])

PATTERNS = {
    r"(?<!there )\b(is|are|was|were) no (?!longer\b|more\b|larger\b|smaller\b|other\b|one\b)": "write `is not a …`",
    r"\bno multiple of\b": "write `not a multiple of`",
    r"\bbehind\b": "write `after`, `to the right of` or `following`",
    r"\bbesides?\b": "write `next to`, `in addition to` or `and`",
    r"\b(goes|go|went|going) on\b": "write `continues`",
    r"\b(nobody|whoever|somebody|everybody|whatever)\b": "name the person or the thing",
    r"\b(of (its|their|one's) own|of ours|of theirs|its like)\b": "write `own …`, `our …` or leave it out",
    r"\banew\b": "write `again`",
    r"\bperson watching\b": "name the log or the terminal",
    r"\bby heart\b": "write `memorize`",
}
TITLE = r"(What|Which|How|Whether|Where|Who|Whose|Why|When|Told|Of|Also)\b"


def texts(path: Path) -> Iterator[tuple[int, str, bool]]:
    """Yields the line, the text and whether it is a docstring of each comment and string of a module."""
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value, id(node) in docstrings
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string, False


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_words_are_plain(path: Path):
    found = []
    for line, text, is_docstring in texts(path):
        if is_docstring and re.match(TITLE, text.strip()):
            found.append(f"{path}:{line}: {text.strip().splitlines()[0]!r}: begin with a noun or a verb")
        for pattern, remedy in PATTERNS.items():
            for match in re.finditer(pattern, text, re.IGNORECASE):
                found.append(f"{path}:{line + text[: match.start()].count(chr(10))}: {match[0]!r}: {remedy}")
    assert not found, "\n" + "\n".join(found)
