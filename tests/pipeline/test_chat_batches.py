"""Packed conversations: the right targets, no attention across, the same batch for a step however it is read."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest

from tests.conftest import chat as messages
from tfgpt.common.errors import UserError
from tfgpt.corpus.config import CorpusConfig
from tfgpt.pipeline.batches import MixtureReader, training_batches, validation_batches
from tfgpt.pipeline.chat_batches import ChatReader, Packing, pack_conversations
from tfgpt.pipeline.chat_shards import write_chat_shards
from tfgpt.pipeline.config import AugmentationConfig
from tfgpt.pipeline.prepare import prepare_chat
from tfgpt.tokenization.chat_template import encode_messages
from tfgpt.tokenization.config import TokenizerConfig
from tfgpt.tokenization.train_tokenizer import byte_tokenizer

LENGTH = 96
SYSTEM = {"role": "system", "content": "Be kind."}


def chat(*turns, system=None):
    return {"messages": messages(*turns, system=system)}


def prepared(tmp_path, *, augmentation=None, files=None, log=lambda line: None, **options):
    if files is None:
        files = {
            "a.jsonl": [chat(f"Hello number {n} " + "x" * (n % 17), f"Answer {n}.") for n in range(60)]
            + [chat(*(f"turn {n} of it" for n in range(12)), system=SYSTEM["content"])],
            "b.jsonl": [chat(f"Question {n}", "y" * (n % 23), "More?", "No.") for n in range(30)],
        }
    paths = []
    for name, documents in files.items():
        paths.append(str(tmp_path / name))
        (tmp_path / name).write_text("".join(json.dumps(document) + "\n" for document in documents))
    corpus = CorpusConfig(train_text=tuple(paths), validation_fraction=0.2, cache_dir=str(tmp_path / "cache"))
    return prepare_chat(
        corpus, TokenizerConfig(tokenizer="bytes"), augmentation or AugmentationConfig(**options),
        length=LENGTH, seed=3, log=log,
    )  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("chats"))


def batches(data, *, by_source=True, **options):
    changes = {"augmentation": data.augmentation, "tokenizer": data.tokenizer}
    readers = [
        ChatReader(data.train, packing, LENGTH, data.tokenizer.padding_id, **changes)
        for packing in pack_conversations(data.train, LENGTH, by_source=by_source, augmentation=data.augmentation)
    ]
    return training_batches(MixtureReader(readers, seed=5), batch_size=8, **options).as_numpy_iterator()


def counts(data) -> Counter:
    return Counter(data.train.manifest["counts"]) + Counter(data.validation.manifest["counts"])


def segments(batch):
    """Every segment of a batch as (ids and last target, which targets count)."""
    for row in range(len(batch["token_ids"])):
        for segment in range(1, batch["segment_ids"][row].max() + 1):
            here = batch["segment_ids"][row] == segment
            targets = batch["targets"][row][here]
            yield [batch["token_ids"][row][here][0], *targets], batch["weights"][row][here]
            np.testing.assert_array_equal(batch["token_ids"][row][here][1:], targets[:-1])
            np.testing.assert_array_equal(batch["positions"][row][here], np.arange(here.sum()))


def test_a_pass_over_the_rows_is_every_conversation_once_with_the_assistants_tokens_as_targets(data):
    [packed] = pack_conversations(data.train, LENGTH)
    reader = ChatReader(data.train, packed, LENGTH, data.tokenizer.padding_id)
    found = []
    for batch in validation_batches(reader, batch_size=8).as_numpy_iterator():
        padding = batch["segment_ids"] == 0
        assert (batch["token_ids"][padding] == data.tokenizer.padding_id).all()
        assert batch["weights"][padding].sum() == 0
        found += [(ids, weights.tolist()) for ids, weights in segments(batch)]
    expected = []
    for document in data.documents.documents("train"):
        ids, weights = encode_messages(data.tokenizer, document["messages"])
        end = np.flatnonzero(weights)[-1] + 1
        if end <= LENGTH + 1:
            expected.append((ids[:end].tolist(), weights[1:end].tolist()))
    short = sorted(item for item in found if item in expected)
    assert short == sorted(expected) and len(expected) > 60
    # What is left are the parts of the one long conversation.
    cut = [data.tokenizer.decode(ids) for ids, _ in found if (ids, _) not in expected]
    assert len(cut) == data.train.manifest["counts"]["cut"] + len(cut) - 1 == len(found) - len(expected)
    assert packed.efficiency == pytest.approx(sum(len(ids) - 1 for ids, _ in found) / (len(packed) * LENGTH))


def test_long_conversations_are_cut_before_what_a_user_says_and_keep_the_system_message(tmp_path):
    long = chat(*(f"turn {n} of it" for n in range(12)), system=SYSTEM["content"])
    files = {"a.jsonl": [long, *(chat("a", "b" * n) for n in range(40))]}
    for repeat_system in (True, False):
        data = prepared(tmp_path, files=files, repeat_system=repeat_system)
        side = data.train if data.train.manifest["counts"].get("cut") else data.validation
        parts = [side.dialogue(number)["messages"] for number in range(len(side))]
        parts = [part for part in parts if "turn" in part[-1]["content"]]
        begins = [part[0] == SYSTEM for part in parts]
        assert len(parts) > 1 and begins == [True] + [repeat_system] * (len(parts) - 1)
        said = [[message for message in part if message != SYSTEM] for part in parts]
        assert all(messages[0]["role"] == "user" for messages in said)
        assert [message for messages in said for message in messages] == long["messages"][1:]
        assert max(side.lengths) <= LENGTH


TOOL = {"type": "function", "function": {"name": "f", "description": "A function."}}
CALL = {"type": "function", "id": "call00001", "function": {"name": "f", "arguments": {"x": 1}}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
TOOL_TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{{ m.content or '' }}{% for call in m.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_calls_of_tools_are_learned_and_every_part_of_a_long_conversation_knows_the_tools(tmp_path):
    exchange = [{"role": "user", "content": "Go!"}, CALLING, {"role": "tool", "content": "1"},
                {"role": "assistant", "content": "One."}]  # fmt: skip
    tokenizer = byte_tokenizer()
    tokenizer.config = {**tokenizer.config, "chat_template": TOOL_TEMPLATE}
    document = {"messages": exchange * 3, "tools": [TOOL], "source": "a", "id": "1"}
    made = write_chat_shards(
        [document], tokenizer, tmp_path / "made", length=230, repeat_system=True, sources={"a": "a"}
    )
    assert len(made) == 3 and made.manifest["counts"] == {"cut": 1}
    for number in range(3):
        assert made.dialogue(number) == {"messages": exchange, "tools": [TOOL]}
        ids, weights = made.part(number)
        assert tokenizer.decode(ids).startswith('[{"type": "function"')
        learned = tokenizer.decode(ids[weights > 0], skip_special_tokens=False)
        assert learned == '{"name": "f", "arguments": {"x": 1}}<|im_end|>One.<|im_end|>'


def test_conversations_whose_tools_the_template_cannot_express_are_counted_in_one_line(tmp_path):
    files = {"a.jsonl": [{"messages": [chat("Go!")["messages"][0], CALLING]}] * 1
             + [{**chat("a", str(n)), "tools": [TOOL] if n < 9 else None} for n in range(40)]}  # fmt: skip
    lines = []
    data = prepared(tmp_path, files=files, log=lines.append)
    said = "\n".join(line for line in lines if "conversations:" in line)
    cannot = "dropped: the chat template cannot express"
    assert counts(data) == {f"{cannot} the definitions of tools": 9, f"{cannot} calls of tools": 1}
    assert cannot in said and len(data.train) + len(data.validation) == 31


def test_an_exchange_longer_than_a_row_loses_its_end_and_a_useless_one_is_dropped(tmp_path):
    long = [chat("short", "x" * 200), chat("y" * 200, "never seen")]
    data = prepared(tmp_path, files={"a.jsonl": [*long, *(chat("a", str(n)) for n in range(50))]})
    assert counts(data) == {"cut": 2, "shortened": 1, "dropped: nothing of the assistant's": 1}


@pytest.mark.parametrize("options", [{}, {"augment_casing": 0.5, "augment_word_dropout": 0.2, "augment_spacing": 0.3}])
def test_a_step_is_the_same_after_a_restart_on_hosts_and_on_replicas(tmp_path, options):
    data = prepared(tmp_path, **options)
    whole = list(itertools.islice(batches(data), 12))
    again = list(itertools.islice(batches(data, start_step=9), 3))
    halves = [batches(data, num_shards=2, shard_index=index, parts=2) for index in range(2)]
    for step in range(12):
        parts = [next(half) for half in halves for _ in range(2)]
        for name, array in whole[step].items():
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), array)
            if step >= 9:
                np.testing.assert_array_equal(again[step - 9][name], array)
    assert any((one["token_ids"] != other["token_ids"]).any() for one, other in itertools.pairwise(whole))


def test_augmentation_changes_what_users_say_in_every_epoch_and_never_the_assistant(tmp_path):
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("Question 1\tHow about 1\nMore?\tAny more?\n")
    data = prepared(tmp_path, paraphrases=str(pairs), augment_paraphrase=1.0, augment_casing=0.5, augment_spacing=0.5)
    plain = prepared(tmp_path)

    def said(data, weight):
        texts = set()
        for batch in itertools.islice(batches(data, by_source=False), 15):
            for ids, weights in segments(batch):
                chosen = [
                    identifier for identifier, counts in zip(ids[1:], weights, strict=True) if (counts > 0) == weight
                ]
                texts.add(data.tokenizer.decode(chosen))
        return texts

    assert said(data, True) == said(plain, True)
    changed = " ".join(said(data, False))
    assert "Any more?" in changed and "Any more?" not in " ".join(said(plain, False))
    assert "HELLO" in changed and "hello" in changed and "Hello" in changed


def test_a_paraphrase_that_does_not_fit_its_row_is_not_said(tmp_path):
    (tmp_path / "pairs.tsv").write_text("".join(f"Question {n}\t{'z' * 60}{n}\n" for n in range(30)))
    data = prepared(tmp_path, paraphrases=str(tmp_path / "pairs.tsv"), augment_paraphrase=1.0)
    said = data.tokenizer.decode(np.concatenate([batch["token_ids"].ravel() for batch in
                                                 itertools.islice(batches(data), 6)]))  # fmt: skip
    assert "Question 1" in said and "zz" not in said


def test_packing_fills_rows_and_never_overfills_them():
    lengths = np.random.default_rng(0).integers(1, 65, 5000)
    packed = Packing(lengths, 64)
    assert sorted(part for row in packed.rows for part in row) == list(range(5000))
    assert max(sum(lengths[row]) for row in packed.rows) <= 64
    assert packed.efficiency == lengths.sum() / (64 * len(packed.rows)) > 0.99


def test_plain_text_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"a.jsonl: holds plain text \('plain \d+'\), and --objective=chat is for"):
        prepared(tmp_path, files={"a.jsonl": [{"text": f"plain {n}"} for n in range(50)]})
