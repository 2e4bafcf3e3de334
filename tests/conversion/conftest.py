"""Texts for the tokenizers."""

from pydoc_data.topics import topics

import pytest


@pytest.fixture(scope="session")
def documents() -> list[str]:
    """Real text: the language reference that every Python brings along, cut to paragraphs."""
    return "\n\n".join(topics[name] for name in sorted(topics)).split("\n\n")
