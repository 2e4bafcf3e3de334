"""The signatures of an exported model: names, inputs, outputs, types. The README's table is made from this.

Imports neither TensorFlow nor anything that does: clients read it too.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tfgpt.generation.config import SamplingConfig


@dataclasses.dataclass(frozen=True)
class SignatureTensor:
    """An input or an output.

    Attributes:
        name: its name in requests and answers.
        dtype: "string", "int32", "int64" or "float32".
        meaning: one line.
        columns: what the second axis counts; none: the shape is [B].
    """

    name: str
    dtype: str
    meaning: str
    columns: str = ""

    def __str__(self) -> str:
        shape = f"[B, {self.columns}]" if self.columns else "[B]"
        return f"`{self.name}` {self.dtype} {shape}"


@dataclasses.dataclass(frozen=True)
class Signature:
    """One way to call the model; every tensor's first axis is the batch, B.

    Attributes:
        name: the signature's name.
        purpose: one line.
        inputs: those without defaults first.
        outputs: what comes back.
    """

    name: str
    purpose: str
    inputs: tuple[SignatureTensor, ...]
    outputs: tuple[SignatureTensor, ...]


TEXT = SignatureTensor("text", "string", "any bytes; special tokens' names in it are plain letters")
IDS = SignatureTensor("ids", "int32", "the whole text so far, end-of-text first; any number behind a row's length", "T")
LENGTH = SignatureTensor("length", "int32", "how many ids a row has")

SAMPLING = (
    SignatureTensor("max_new_tokens", "int32", "the most tokens to write; more than the export's limit is cut to it"),
    SignatureTensor("temperature", "float32", "0 always takes the likeliest token"),
    SignatureTensor("top_k", "int32", "0 is off"),
    SignatureTensor("top_p", "float32", "1 is off"),
    SignatureTensor("min_p", "float32", "0 is off"),
    SignatureTensor("repetition_penalty", "float32", "1 is off"),
    SignatureTensor("seed", "int64", "the same seed gives the same text"),
    SignatureTensor("sample", "int64", "the number of the text among several of one prompt and one seed"),
)
"""The inputs of every signature that writes, in this order; each has a default over gRPC, none over REST."""

WRITTEN = (
    SignatureTensor("tokens", "int32", "the new tokens without the stop token; the padding id behind them", "N"),
    SignatureTensor("num_tokens", "int32", "how many they are"),
    SignatureTensor("finish_reason", "string", "stop: the text or the turn ended; length: max_new_tokens were written"),
    SignatureTensor("log_probability", "float32", "natural, under the model itself, the stop token included"),
)
ANSWER = (
    SignatureTensor("text", "string", "the new text; bytes that are not UTF-8 as U+FFFD"),
    SignatureTensor("text_bytes", "string", "the same as it is; base64 over REST"),
    *WRITTEN,
    SignatureTensor("prompt_tokens", "int32", "tokens of the prompt, end-of-text included"),
)

SIGNATURES = (
    Signature(
        "serving_default",
        "text in, its continuation out, drawn as the export's flags say",
        (TEXT,),
        (SignatureTensor("text", "string", "the new text"),),
    ),
    Signature("generate", "a text's continuation", (TEXT, *SAMPLING), ANSWER),
    Signature(
        "chat",
        "the assistant's answer to a conversation",
        (
            SignatureTensor(
                "conversation",
                "string",
                "what the chat template writes, special tokens by name (`ChatTemplate.render`)",
            ),
            *SAMPLING,
        ),
        ANSWER,
    ),
    Signature(
        "stream",
        "the next few tokens of texts given as ids; the server keeps nothing",
        (IDS, LENGTH, *SAMPLING),
        (*WRITTEN, SignatureTensor("text_bytes", "string", "their bytes; they may end inside a character")),
    ),
    Signature(
        "score",
        "how likely a text is, behind an end-of-text token",
        (TEXT,),
        (
            SignatureTensor("log_likelihood", "float32", "natural, of all tokens of the text"),
            SignatureTensor("num_tokens", "int32", "tokens of the text"),
            SignatureTensor("num_bytes", "int32", "bytes of the text"),
        ),
    ),
    Signature(
        "tokenize",
        "a text's ids",
        (TEXT,),
        (
            SignatureTensor("ids", "int32", "without any special token; the padding id behind them", "T"),
            SignatureTensor("num_tokens", "int32", "how many they are"),
            SignatureTensor("end_of_text_id", "int32", "the id that `stream` wants before a text's ids; -1 for none"),
        ),
    ),
    Signature(
        "tokenize_chat",
        "a conversation's ids, as `stream` wants them",
        (SignatureTensor("conversation", "string", "as `chat`'s"),),
        (
            SignatureTensor("ids", "int32", "the padding id behind them", "T"),
            SignatureTensor("num_tokens", "int32", "how many they are"),
        ),
    ),
    Signature(
        "embed",
        "the mean of a text's last hidden states",
        (TEXT,),
        (SignatureTensor("embedding", "float32", "after the final norm, not normalized to length 1", "hidden_dim"),),
    ),
)
"""Every signature of an export."""


def signature(name: str) -> Signature:
    """The signature of this name."""
    [found] = [signature for signature in SIGNATURES if signature.name == name]
    return found


def default_of(sampling: SamplingConfig, name: str) -> Any:
    """A sampling input's value when it is not given, in an export with these settings."""
    return 0 if name == "sample" else getattr(sampling, name)


def table() -> str:
    """The signatures as Markdown tables, as they stand in the README."""
    lines = ["| signature | for | inputs | outputs |", "| --- | --- | --- | --- |"]
    for entry in SIGNATURES:
        own = [item for item in entry.inputs if item not in SAMPLING]
        inputs = ", ".join(map(str, own)) + (", sampling inputs" if len(own) < len(entry.inputs) else "")
        outputs = ", ".join(map(str, entry.outputs))
        lines.append(f"| `{entry.name}` | {entry.purpose} | {inputs} | {outputs} |")
    lines += ["", "| sampling input | default | meaning |", "| --- | --- | --- |"]
    lines += [f"| {item} | {default_of(SamplingConfig(), item.name)} | {item.meaning} |" for item in SAMPLING]
    owners: dict[tuple[str, str, str], list[str]] = {}
    for entry in SIGNATURES:
        for kind, items in (("into", entry.inputs), ("out of", entry.outputs)):
            for item in items:
                if item not in SAMPLING:
                    owners.setdefault((item.name, kind, item.meaning.replace("|", r"\|")), []).append(entry.name)
    lines += ["", "| other tensor | of | meaning |", "| --- | --- | --- |"]
    lines += [
        f"| `{name}` | {kind} {', '.join(found)} | {meaning} |" for (name, kind, meaning), found in owners.items()
    ]
    return "\n".join(lines) + "\n"
