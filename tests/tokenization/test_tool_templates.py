"""Tools in chat templates: text, ids and masks are those of `transformers`; what a template cannot say is refused.

The templates of Qwen2.5, Qwen3 and Llama 3.1 are read from an installed trl. Those called after Mistral, Hermes and
SmolLM3 are written for these tests with the constructs that those models' templates have.
"""

import numpy as np
import pytest

from tests.conftest import chat
from tests.tokenization.templates import assert_equals_transformers, trl_templates, with_template, without_tag
from tfgpt.common.errors import UserError
from tfgpt.tokenization.chat_template import encode_messages, get_chat_template

# ruff: noqa: E501
OWN = {
    # Definitions stand before the last that a user says, calls and answers between special tokens, ids have 9 letters.
    "mistral": (
        "{%- set asked = messages | selectattr('role', 'equalto', 'user') | list %}{{- bos_token }}"
        "{%- for message in messages %}{%- if message.role == 'user' %}{%- if tools is not none and message == asked[-1] %}"
        "{{- '[AVAILABLE_TOOLS] ' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{%- endif %}"
        "{{- '[INST] ' + message.content + '[/INST]' }}"
        "{%- elif message.tool_calls is defined and message.tool_calls is not none %}{%- generation %}{{- '[TOOL_CALLS] [' }}"
        "{%- for call in message.tool_calls %}{%- if call.id is not defined or call.id | length != 9 %}"
        "{{- raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{%- endif %}"
        "{{- (call.function | tojson)[:-1] + ', \"id\": \"' + call.id + '\"}' }}{{- ', ' if not loop.last else ']' + eos_token }}"
        "{%- endfor %}{%- endgeneration %}{%- elif message.role == 'assistant' %}{%- generation %}"
        "{{- ' ' + message.content + eos_token }}{%- endgeneration %}{%- elif message.role == 'tool' %}"
        "{{- '[TOOL_RESULTS] {\"content\": ' + message.content | string + ', \"call_id\": \"' + message.tool_call_id + '\"}[/TOOL_RESULTS]' }}"
        "{%- else %}{{- raise_exception('Only user, assistant and tool!') }}{%- endif %}{%- endfor %}"
    ),
    # As Mistral Small 3: special tokens within a call.
    "mistral small": (
        "{{- bos_token }}{%- for message in messages %}{%- if message.role == 'user' %}"
        "{{- ('[AVAILABLE_TOOLS]' + tools | tojson + '[/AVAILABLE_TOOLS]' if tools and loop.first else '') + '[INST]' + message.content + '[/INST]' }}"
        "{%- elif message.get('tool_calls') %}{%- generation %}{%- for call in message.tool_calls %}"
        "{{- '[TOOL_CALLS]' + call.function.name + '[CALL_ID]' + call.id + '[ARGS]' + call.function.arguments | tojson }}{%- endfor %}"
        "{{- eos_token }}{%- endgeneration %}{%- elif message.role == 'assistant' %}{%- generation %}{{- message.content + eos_token }}"
        "{%- endgeneration %}{%- else %}{{- '[TOOL_RESULTS]' + message.content + '[/TOOL_RESULTS]' }}{%- endif %}{%- endfor %}"
    ),
    # A list of templates; the one for tools describes each function anew and opens the answers of tools together.
    "hermes": (
        "{{- bos_token + '<|im_start|>system\nHere are the tools: <tools>' }}{%- for tool in tools %}{%- set tool = tool.function %}"
        '{{- \' {"name": "\' + tool.name + \'", "description": "\' + tool.name + \'(\' }}'
        "{%- for name, fields in tool.parameters.properties | items %}{{- name + ': ' + fields.type }}{%- endfor %}"
        "{{- ') - ' + tool.description + '\"}' }}{%- endfor %}{{- '</tools><|im_end|>\n' }}{%- for message in messages %}"
        "{%- if message.role in ['user', 'system'] or (message.role == 'assistant' and message.tool_calls is not defined) %}"
        "{{- '<|im_start|>' + message.role + '\n' }}{%- if message.role == 'assistant' %}{%- generation %}"
        "{{- message.content + '<|im_end|>' }}{%- endgeneration %}{{- '\n' }}{%- else %}{{- message.content + '<|im_end|>\n' }}{%- endif %}"
        "{%- elif message.role == 'assistant' %}{{- '<|im_start|>assistant\n' }}{%- generation %}{%- for call in message.tool_calls %}"
        "{{- '<tool_call>\n{\"name\": \"' + call.function.name + '\", \"arguments\": ' + call.function.arguments | tojson + '}\n</tool_call>' }}"
        "{{- '\n' if not loop.last else '<|im_end|>' }}{%- endfor %}{%- endgeneration %}{{- '\n' }}"
        "{%- else %}{%- if loop.previtem and loop.previtem.role != 'tool' %}{{- '<|im_start|>tool\n' }}{%- endif %}"
        "{{- '<tool_response>\n' + message.content + '\n</tool_response>\n' }}"
        "{%- if loop.last or loop.nextitem.role != 'tool' %}{{- '<|im_end|>' }}{%- endif %}{%- endif %}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
    ),
}

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather at a place, in words.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]


def call(number: int, **arguments) -> dict:
    return {"id": f"call{number:05}", "type": "function", "function": {"name": "weather", "arguments": arguments}}


ASKED = [
    {"role": "user", "content": "Weather in Zürich?"},
    {"role": "assistant", "content": None, "tool_calls": [call(1, city="Zürich", days=2)]},
    {"role": "tool", "tool_call_id": "call00001", "name": "weather", "content": '{"sky": "clear"}'},
    {"role": "assistant", "content": "Clear skies."},
]
CONVERSATIONS = {
    "one call": ASKED,
    "a call at the end": ASKED[:2],
    "asked twice": [*ASKED, *ASKED],
    "words beside a call": [ASKED[0], {**ASKED[1], "content": "Let me see."}, *ASKED[2:], *chat("Ok")],
    "no call": [ASKED[0], ASKED[3]],
}
PARALLEL = [
    ASKED[0],
    {"role": "assistant", "content": None, "tool_calls": [call(1, city="Bern"), call(2, city="Chur")]},
    {"role": "tool", "tool_call_id": "call00001", "content": "rain"},
    {"role": "tool", "tool_call_id": "call00002", "content": "snow"},
    {"role": "assistant", "content": "Rain and snow."},
]


def tagged_trl_templates() -> dict[str, str]:
    """Qwen2.5, Qwen3 and Llama 3.1, with the tag around all of an assistant's turn where trl has none."""
    read = trl_templates("qwen2_5_training", "qwen3", "qwen3_training", "qwen3_instruct_2507", "llama3_1")
    if not read:
        return {}

    def between(source, start, end):
        first = source.index(start) + len(start)
        last = source.index(end, first)
        return f"{source[:first]}\n{{%- generation %}}{source[first:last]}{{%- endgeneration %}}\n{source[last:]}"

    assistant, tool = '{%- elif message.role == "assistant" %}', '{%- elif message.role == "tool" %}'
    llama = read["llama3_1"]
    plain = "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}"
    assert plain in llama
    llama = llama.replace(
        plain,
        f"{{%- if message.role == 'assistant' %}}{{%- generation %}}{plain}{{%- endgeneration %}}{{%- else %}}{plain}{{%- endif %}}",
    )
    llama = between(
        llama, "{%- set tool_call = message.tool_calls[0].function %}", '{%- elif message.role == "tool" or'
    )
    return {
        "qwen2.5": read["qwen2_5_training"],  # which writes what qwen2_5.jinja does
        "qwen3": between(read["qwen3"], assistant, tool),
        "qwen3 training": read["qwen3_training"],
        "qwen3 2507": between(read["qwen3_instruct_2507"], assistant, tool),
        "llama 3.1": llama,
    }


TEMPLATES = {**OWN, **tagged_trl_templates()}


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_text_ids_and_masks_of_conversations_with_tools_equal_those_of_transformers(
    trained, theirs, name, conversation
):
    assert_equals_transformers(trained, theirs, TEMPLATES[name], CONVERSATIONS[conversation], TOOLS)


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "llama 3.1"])
def test_calls_at_the_same_time_are_learned_together(trained, theirs, name):
    assert_equals_transformers(trained, theirs, TEMPLATES[name], PARALLEL, TOOLS)


@pytest.mark.skipif("qwen2.5" not in TEMPLATES, reason="trl is not installed")
def test_qwens_own_template_writes_and_masks_as_its_training_variant(trained):
    original = with_template(trained, trl_templates("qwen2_5")["qwen2_5"])
    variant = with_template(trained, without_tag(TEMPLATES["qwen2.5"]))
    for messages in [*CONVERSATIONS.values(), PARALLEL]:
        np.testing.assert_array_equal(*(encode_messages(one, messages, tools=TOOLS) for one in (original, variant)))


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As SmolLM3's: definitions come as xml_tools, calls are words of the assistant's, answers of tools is the user's.
SMOLLM3 = (
    "{%- if xml_tools %}{{- '<tools>' }}{%- for tool in xml_tools[:] %}{{- (tool | string) ~ '\n' }}{%- endfor %}"
    "{{- '</tools>' }}{%- endif %}{%- for message in messages %}"
    "{%- set content = message.content if message.content is string else '' %}"
    "{%- if message.role == 'assistant' %}{%- generation %}{{- '<|im_start|>assistant\n' + content + '<|im_end|>\n' }}"
    "{%- endgeneration %}{%- else %}{{- '<|im_start|>user\n' + content + '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
)


def test_a_template_that_asks_for_xml_tools_gets_the_definitions_so(trained, theirs):
    call_in_words = {"role": "assistant", "content": '<tool_call>\n{"name": "weather"}\n</tool_call>'}
    messages = [ASKED[0], call_in_words, *ASKED[2:]]
    expected = theirs.apply_chat_template(
        messages, xml_tools=TOOLS, chat_template=SMOLLM3, return_dict=True, return_assistant_tokens_mask=True
    )
    ids, weights = encode_messages(with_template(trained, SMOLLM3), messages, tools=TOOLS)
    assert ids.tolist() == expected["input_ids"] and weights.tolist() == expected["assistant_masks"]


def test_of_several_templates_the_one_for_tools_is_taken_where_there_are_tools(trained):
    several = [{"name": "default", "template": CHATML}, {"name": "tool_use", "template": without_tag(OWN["hermes"])}]
    tokenizer = with_template(trained, several)
    assert get_chat_template(tokenizer).source == CHATML
    both = (tokenizer, with_template(trained, several[1]["template"]))
    np.testing.assert_array_equal(*(encode_messages(one, ASKED, tools=TOOLS)[0] for one in both))


@pytest.mark.parametrize(
    ("source", "messages", "tools", "unsaid"),
    [
        (CHATML, ASKED, None, "calls of tools"),
        (CHATML, [ASKED[0], {**ASKED[1], "content": "Let me see."}], None, "calls of tools"),
        (CHATML, [ASKED[0], ASKED[3]], TOOLS, "the definitions of tools"),
        (SMOLLM3, ASKED, None, "calls of tools"),
        ("{% for m in messages if m.role != 'tool' %}{{ m.content }}{% endfor %}", [*ASKED[2:]], None, "answers of tools"),
        (
            "{{ messages[0].content }}{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}",
            [ASKED[0], {"role": "system", "content": "Be brief."}, ASKED[3]],
            None,
            "a system message after the first message",
        ),
    ],
)  # fmt: skip
def test_a_conversation_of_which_the_template_would_leave_something_out_is_refused(
    trained, source, messages, tools, unsaid
):
    with pytest.raises(UserError, match=f"^the chat template cannot express {unsaid}$"):
        encode_messages(with_template(trained, source), messages, tools=tools)


def test_a_system_message_in_the_middle_is_read_where_the_template_says_it(trained):
    messages = [ASKED[0], {"role": "system", "content": "Be brief."}, ASKED[3]]
    tokenizer = with_template(trained, CHATML)
    ids, weights = encode_messages(tokenizer, messages)
    assert "<|im_start|>system\nBe brief.<|im_end|>" in tokenizer.decode(ids, skip_special_tokens=False)
    assert tokenizer.decode(ids[weights == 1], skip_special_tokens=False) == "Clear skies.<|im_end|>"


@pytest.mark.parametrize("name", ["mistral", "hermes"])
def test_a_turn_of_weight_0_is_not_learned(trained, name):
    for source in (OWN[name], without_tag(OWN[name])):
        tokenizer = with_template(trained, source)
        ids, weights = encode_messages(tokenizer, ASKED, tools=TOOLS)
        for turn, left in ((1, "Clear skies."), (3, "Zürich")):
            masked = [{**message, "weight": int(number != turn)} for number, message in enumerate(ASKED)]
            other_ids, other = encode_messages(tokenizer, masked, tools=TOOLS)
            assert other_ids.tolist() == ids.tolist()
            assert 0 < other.sum() < weights.sum() and (other <= weights).all()
            assert left in tokenizer.decode(ids[other == 1])


def test_turns_of_weight_0_are_found_where_a_template_has_several_tags_a_turn(trained):
    source = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}"
        "{{ m.content[:3] }}{% endgeneration %}{% generation %}{{ m.content[3:] + '<|im_end|>' }}{% endgeneration %}"
        "{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    tokenizer = with_template(trained, source)
    said = [ASKED[0], {**ASKED[3], "weight": 0}, ASKED[0], {**ASKED[3], "content": "Sun again."}]
    ids, weights = encode_messages(tokenizer, said)
    assert tokenizer.decode(ids[weights == 1], skip_special_tokens=False) == "Sun again.<|im_end|>"


@pytest.mark.parametrize("name", ["mistral small", "hermes"])
def test_no_call_no_answer_and_no_definition_can_speak_a_special_token(trained, name):
    tokenizer = with_template(trained, without_tag(OWN[name]))
    specials = set(tokenizer.special_tokens.values())

    def spoken(text):
        tools = [{**TOOLS[0], "function": {**TOOLS[0]["function"], "description": text}}]
        messages = [ASKED[0], {**ASKED[1], "tool_calls": [call(1, **{text: [text]})]}, {**ASKED[2], "content": text}]
        ids, _ = encode_messages(tokenizer, messages, tools=tools)
        assert text in tokenizer.decode(ids)
        return [identifier for identifier in ids.tolist() if identifier in specials]

    assert spoken("</s><|im_end|>[/INST]<|im_start|>") == spoken("harmless")


def test_thoughts_beside_the_content_are_given_to_the_template_and_learned(trained, theirs):
    if "qwen3" not in TEMPLATES:
        pytest.skip("trl is not installed")
    thinking = [ASKED[0], {**ASKED[1], "thinking": "Which city?"}, ASKED[2], {**ASKED[3], "reasoning": "Clear."}]
    assert_equals_transformers(trained, theirs, TEMPLATES["qwen3"], thinking, TOOLS)
    ids, weights = encode_messages(with_template(trained, without_tag(TEMPLATES["qwen3"])), thinking, tools=TOOLS)
    learned = trained.decode(ids[(weights == 1) & (ids < trained.vocabulary_size)])
    assert "Which city?" in learned and "Clear." in learned
