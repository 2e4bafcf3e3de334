"""Prompts and pairs as people write them."""

import json

import numpy as np
import pytest

from tfgpt.common.errors import UserError
from tfgpt.tokenization.train_tokenizer import byte_tokenizer
from tfgpt.training.objectives.prompt_records import encode_answer, hash_arrays, parse_answer, parse_record

HI = {"role": "user", "content": "Hi"}
YES, NO = ({"role": "assistant", "content": content} for content in ("Yes?", "No."))
TOOL = {"type": "function", "function": {"name": "f"}}
CALL = {"id": "call00001", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}


@pytest.mark.parametrize(
    "content",
    [
        {"prompt": [HI], "chosen": [YES]},
        {"prompt": [{"role": "human", "content": "Hi"}], "chosen": {"role": "gpt", "content": "Yes?"}},
        {"messages": [{"role": "prompter", "text": "Hi"}], "chosen": [{"role": "bot", "text": "Yes?"}]},
        {"conversations": [{"from": "human", "value": "Hi"}], "chosen": {"from": "gpt", "value": "Yes?"}},
        # As trl's implicit prompts, and as UltraFeedback's, whose prompt is the text as well.
        {"chosen": [HI, YES], "rejected": [HI, NO]},
        {"prompt": "Hi", "chosen": [HI, YES], "rejected": [HI, NO]},
        {"prompt": [{**HI, "content": [{"type": "text", "text": "Hi"}]}], "chosen": [YES]},
    ],
)
def test_pairs_in_every_shape_are_the_same(content):
    made = parse_record({"rejected": "No.", **content}, "a.jsonl:1")
    assert made.prompt == [HI] and made.tools == []
    assert [parse_answer(made, name) for name in ("chosen", "rejected")] == ["Yes?", "No."]


def test_pairs_with_tools_are_given_to_the_template_with_them():
    tokenizer = byte_tokenizer()
    tokenizer.config["chat_template"] = (
        "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
        "{{ m.content or '' }}{% for call in m.tool_calls or [] %}{{ call.function.name }}{% endfor %}<|im_end|>"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    pair = {"prompt": [HI], "rejected": "No.", "chosen": [{**YES, "content": None, "tool_calls": [CALL]}]}
    made = parse_record({**pair, "tools": [TOOL]}, "a.jsonl:1")
    ids, weights = encode_answer(tokenizer, made.prompt, parse_answer(made, "chosen"), made.tools)
    assert tokenizer.decode(ids).startswith(json.dumps([TOOL]))
    assert tokenizer.decode(ids[weights > 0], skip_special_tokens=False) == "f<|im_end|>"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"prompt": [{"role": "robot", "content": "Hi"}]}, "message 1 has the role 'robot'"),
        ({"prompt": [HI], "chosen": [HI], "rejected": "x"}, '"chosen" is a message of the user, not of the assistant'),
        ({"prompt": [HI], "chosen": [YES, YES], "rejected": "x"}, '"chosen" should be a text, or a list of one '),
        ({"prompt": []}, 'has neither a "prompt"'),
        ({"chosen": "a"}, 'has neither a "prompt"'),
        ({"chosen": [HI, YES], "rejected": [HI]}, "should differ in their last message only"),
        ([], "should be a JSON object"),
        ({"prompt": [HI], "tools": [{}]}, "'tools' holds something"),
    ],
)
def test_records_that_are_none_are_named(content, problem):
    with pytest.raises(UserError, match=f"^a.jsonl:1.*{problem}"):
        parse_answer(parse_record(content, "a.jsonl:1"), "chosen")


def test_a_hash_of_rows_changes_with_each_array_name_shape_and_text():
    rows, same = np.arange(6, dtype=np.int32), np.arange(6, dtype=np.int32)
    changed = rows.copy()
    changed[3] += 1
    contents = [{"a": rows}, {"a": changed}, {"b": rows}, {"a": rows.reshape(2, 3)}, {"a": rows, "b": rows}]
    hashes = [hash_arrays(arrays) for arrays in contents] + [hash_arrays({"a": rows}, "dpo")]
    assert len({*hashes}) == 6 and hash_arrays({"a": same}) == hashes[0]
