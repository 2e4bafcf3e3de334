"""Makes dialogues of the sample corpora that are dialogues: chitchat-dataset, chatterbot-corpus, countryinfo."""

from __future__ import annotations

import collections
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tfgpt.common.errors import UserError
from tfgpt.corpus.sources.base import Document

# Words that say enough about a chat to leave it out, in small letters as the text they are looked for in. Mild ones
# ("crap", "damn", "hell") are left in.
PROFANITY = re.compile(
    r"\b(?:fuck\w*|(?:bull|horse)?shit\w*|bitch\w*|bastards?|assholes?|cunts?|dicks?|pussy|slut\w*|whor(?:e|es|ing)|porn\w*|nudes?|"
    r"horny|tits?|boobs?|retard(?:ed|s)?|rap(?:e|ed|es|ist|ists)|piss(?:ed)?|sex|sexy|sexting|nigg\w*|fag(?:got)?s?)\b"
)
# How to reach somebody: what must be in a text before the pattern is worth the search, and the pattern.
CONTACT = (
    ("@", re.compile(r"(?<=[\w.+-])@[\w-]+\.\w{2,}")),  # name@example.org
    ("@", re.compile(r"(?<![\w@])@(?!the\b)[a-z_][\w.]{2,}")),  # @name
    # North American telephone numbers: 808 782 1557, with or without brackets, points, dashes, country code.
    ("", re.compile(r"(?<![\d.])[2-9]\d\d\)?[ .-]?\d{3}[ .-]?\d{4}(?!\d)")),
    ("://", re.compile(r"https?://")),
    (".", re.compile(r"\bwww\.\w")),
    (".", re.compile(r"\.(?:com|org|net|edu|gov|games|io|me|ly|gg)\b")),
)


def alternating(turns: Sequence[str]) -> list[dict[str, str]]:
    """Messages whose first, third, … are the user's and whose others are the assistant's."""
    return [{"role": "assistant" if number % 2 else "user", "content": turn} for number, turn in enumerate(turns)]


def reason_not_to_learn(turns: Sequence[str]) -> str | None:
    """Why a chat is left out: profanity, or how to reach somebody."""
    text = "\n".join(turns).lower()
    if PROFANITY.search(text):
        return "profanity"
    if any(mark in text and pattern.search(text) for mark, pattern in CONTACT):
        return "contact data"
    return None


def chitchat(files: Sequence[Path], dropped: collections.Counter[str]) -> Iterator[Document]:
    """The chats of chitchat-dataset.

    Who speaks first is the user, who answers the assistant; what one of them writes in a row is one message, its
    parts on lines of their own. Chats in which nobody answers are left out, and those with profanity or contact data.
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
        reason = "nobody answers" if len(turns) < 2 else reason_not_to_learn(turns)
        if reason:
            dropped[reason] += 1
        else:
            yield {"messages": alternating(turns), "id": f"chitchat/{identity}"}


def chatterbot(files: Sequence[Path], dropped: collections.Counter[str]) -> Iterator[Document]:
    """The conversations of chatterbot-corpus; those that begin with the same words belong together."""
    yaml = yaml_module(files[0])
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    numbers: collections.Counter[str] = collections.Counter()
    for path in files:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
        for conversation in content.get("conversations") or []:
            turns = [str(turn).strip() for turn in conversation]
            if len(turns) < 2 or not all(turns):
                dropped["no answer"] += 1
                continue
            opening = hashlib.sha256(turns[0].casefold().encode("utf-8")).hexdigest()[:16]
            numbers[opening] += 1
            yield {"messages": alternating(turns), "id": f"chatterbot/{opening}#{numbers[opening]}"}


def yaml_module(path: Path) -> Any:
    """PyYAML.

    Raises:
        UserError: it is not installed.
    """
    try:
        import yaml
    except ImportError:
        raise UserError(f"{path}: reading it needs PyYAML; pip install PyYAML") from None
    return yaml


def countryinfo(files: Sequence[Path], dropped: collections.Counter[str]) -> Iterator[Document]:
    """Questions about countries with their answers; those about one country belong together."""
    countries = [read_json(path) for path in files]
    names = {code: country["name"] for country in countries if (code := (country.get("ISO") or {}).get("alpha3"))}
    for path, country in zip(files, countries):
        name = country.get("name")
        if not name:
            dropped["no name"] += 1
            continue
        for topic, question, answer in country_questions(country, names):
            yield {"messages": alternating([question, answer]), "id": f"countryinfo/{path.stem}#{topic}"}


def country_questions(country: dict[str, Any], names: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    """Topic, question and answer, as far as they are known."""
    name = country["name"]
    if country.get("capital"):
        yield "capital", f"What is the capital of {name}?", f"The capital of {name} is {country['capital']}."
        yield "capital_of", f"Which country has the capital {country['capital']}?", f"{name}."
    if country.get("subregion"):
        yield "region", f"Where is {name}?", f"{name} is in {country['subregion']}."
    if country.get("demonym"):
        yield "demonym", f"What are people from {name} called?", f"{country['demonym']}."
    neighbours = sorted(names[code] for code in country.get("borders") or [] if code in names)
    if neighbours:
        listed = ", ".join(neighbours[:-1]) + f" and {neighbours[-1]}" if len(neighbours) > 1 else neighbours[0]
        yield "borders", f"Which countries does {name} share a border with?", f"{name} borders {listed}."
    if country.get("area"):
        yield "area", f"How big is {name}?", f"About {country['area']:,} square kilometres."
    if country.get("currencies"):
        currencies = " and ".join(country["currencies"])
        yield "currency", f"Which currency is used in {name}? Give the code.", f"{currencies}."


def read_json(path: Path) -> Any:
    """A JSON file of a package.

    Raises:
        UserError: it is damaged; the line names it.
    """
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); install its package again") from None
