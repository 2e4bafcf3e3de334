"""Tools in chat templates: text, ids and masks are those of `transformers`; what a template cannot say is refused.

The templates of Qwen2.5, Qwen3 and Llama 3.1 are read from an installed trl. Those called after Mistral, Hermes and
SmolLM3 are written for these tests with the constructs that those models' templates have.
"""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
import transformers

from tfgpt.common.errors import UserError
from tfgpt.tokenization.chat_template import encode_messages, template_of
from tfgpt.tokenization.tokenizer import Tokenizer
from tfgpt.tokenization.tokenizer_file import added_token

SPECIALS = ("<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[CALL_ID]",
            "[ARGS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "<|begin_of_text|>", "<|start_header_id|>",
            "<|end_header_id|>", "<|eot_id|>")  # fmt: skip

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
    "words beside a call": [
        ASKED[0],
        {**ASKED[1], "content": "Let me see."},
        *ASKED[2:],
        {"role": "user", "content": "Ok"},
    ],
    "no call": [ASKED[0], ASKED[3]],
}
PARALLEL = [
    ASKED[0],
    {"role": "assistant", "content": None, "tool_calls": [call(1, city="Bern"), call(2, city="Chur")]},
    {"role": "tool", "tool_call_id": "call00001", "content": "rain"},
    {"role": "tool", "tool_call_id": "call00002", "content": "snow"},
    {"role": "assistant", "content": "Rain and snow."},
]


def trl_templates() -> dict[str, str]:
    """Qwen2.5, Qwen3 and Llama 3.1, with the tag around all of an assistant's turn where trl has none."""
    spec = importlib.util.find_spec("trl")
    if spec is None or not spec.submodule_search_locations:
        return {}
    folder = Path(spec.submodule_search_locations[0], "chat_templates")

    def read(name):
        return (folder / f"{name}.jinja").read_text(encoding="utf-8")

    def between(source, start, end):
        first = source.index(start) + len(start)
        last = source.index(end, first)
        return f"{source[:first]}\n{{%- generation %}}{source[first:last]}{{%- endgeneration %}}\n{source[last:]}"

    assistant, tool = '{%- elif message.role == "assistant" %}', '{%- elif message.role == "tool" %}'
    llama = read("llama3_1")
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
        "qwen2.5": read("qwen2_5_training"),  # which writes what qwen2_5.jinja does
        "qwen3": between(read("qwen3"), assistant, tool),
        "qwen3 training": read("qwen3_training"),
        "qwen3 2507": between(read("qwen3_instruct_2507"), assistant, tool),
        "llama 3.1": llama,
    }


TEMPLATES = {**OWN, **trl_templates()}
HEADERS = re.compile(r"^(<\|im_start\|>assistant|<\|start_header_id\|>assistant<\|end_header_id\|>)")


def without_tag(source: str) -> str:
    """The same template without the tag; it writes the same."""
    return re.sub(
        r"\{%(-?)\s*(?:end)?generation\s*%\}", lambda tag: "{%- if true %}{%- endif %}" if tag[1] else "", source
    )


def with_template(trained: Tokenizer, source: object) -> Tokenizer:
    """The tokenizer with more special tokens and another template."""
    document = dict(trained.document)
    first = trained.vocabulary_size
    added = [added_token(first + number, name) for number, name in enumerate(SPECIALS)]
    document["added_tokens"] = [*document["added_tokens"], *added]
    tokenizer = Tokenizer(document)
    tokenizer.config = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": source}
    return tokenizer


@pytest.fixture(scope="module")
def theirs(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("theirs")
    with_template(trained, "").save(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    theirs.bos_token, theirs.eos_token = "<s>", "</s>"
    return theirs


def runs(tokenizer, ids, chosen) -> list[str]:
    """The texts of consecutive chosen ids, without a header or white space around them."""
    borders = np.flatnonzero(np.diff(np.concatenate([[0], chosen, [0]]))).reshape(-1, 2)
    texts = [tokenizer.decode(ids[start:end], skip_special_tokens=False) for start, end in borders]
    return [HEADERS.sub("", text.strip()).strip() for text in texts]


def assert_equal(trained, theirs, source, messages, tools=TOOLS):
    """Our text, ids and mask are those of transformers, without the tag's help; and with it."""
    untagged = without_tag(source)
    tokenizer = with_template(trained, untagged)
    for prompt in (False, True):
        text = theirs.apply_chat_template(
            messages, tools=tools, chat_template=untagged, add_generation_prompt=prompt, tokenize=False
        )
        ids, _ = encode_messages(tokenizer, messages, prompt, tools)
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
        assert ids.tolist() == theirs(text, add_special_tokens=False)["input_ids"]
    expected = theirs.apply_chat_template(
        messages, tools=tools, chat_template=source, return_dict=True, return_assistant_tokens_mask=True
    )
    ids, weights = encode_messages(tokenizer, messages, tools=tools)
    mask = np.array(expected["assistant_masks"])
    assert ids.tolist() == expected["input_ids"] and mask.sum() > 0
    assert runs(tokenizer, ids, weights) == runs(tokenizer, ids, mask)
    np.testing.assert_array_equal(encode_messages(with_template(trained, source), messages, tools=tools)[1], mask)


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_text_ids_and_masks_of_conversations_with_tools_equal_those_of_transformers(
    trained, theirs, name, conversation
):
    assert_equal(trained, theirs, TEMPLATES[name], CONVERSATIONS[conversation])


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "llama 3.1"])
def test_calls_at_the_same_time_are_learned_together(trained, theirs, name):
    assert_equal(trained, theirs, TEMPLATES[name], PARALLEL)
