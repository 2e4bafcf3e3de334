"""The signatures of an exported model: names, inputs, outputs and dtypes. The README's tables are made from them.

Imports neither TensorFlow nor a module that does: clients read it too.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tfgpt.generation.config import SamplingConfig


@dataclasses.dataclass(frozen=True)
class SignatureTensor:
    """An input or output of a signature."""

    name: str  # its name in requests and responses
    dtype: str  # "string", "int32", "int64" or "float32"
    meaning: str  # one line
    columns: str = ""  # the name of the second axis; "" for tensors of shape [B]

    def __str__(self) -> str:
        shape = f"[B, {self.columns}]" if self.columns else "[B]"
        return f"`{self.name}` {self.dtype} {shape}"


@dataclasses.dataclass(frozen=True)
class Signature:
    """A way to call the model; the first axis of every tensor is the batch, B."""

    name: str  # the signature's name
    purpose: str  # one line
    inputs: tuple[SignatureTensor, ...]  # the inputs; those without defaults come first
    outputs: tuple[SignatureTensor, ...]  # the outputs


TEXT = SignatureTensor("text", "string", "any bytes; names of special tokens in it are plain text")
IDS = SignatureTensor(
    "ids", "int32", "the whole text so far, end-of-text first; values after a row's length are ignored", "T"
)
LENGTH = SignatureTensor("length", "int32", "the number of ids of a row")

SAMPLING = (
    SignatureTensor("max_new_tokens", "int32", "the most tokens to generate, at most the export's limit"),
    SignatureTensor("temperature", "float32", "0 always takes the most likely token"),
    SignatureTensor("top_k", "int32", "0 is off"),
    SignatureTensor("top_p", "float32", "1 is off"),
    SignatureTensor("min_p", "float32", "0 is off"),
    SignatureTensor("repetition_penalty", "float32", "1 is off"),
    SignatureTensor("seed", "int64", "the same seed gives the same text"),
    SignatureTensor("sample", "int64", "the number of the text among several of one prompt and one seed"),
)
"""The inputs of every signature that generates, in this order; each has a default over gRPC, none over REST."""

GENERATED = (
    SignatureTensor("tokens", "int32", "the new tokens without the stop token, then the padding id", "N"),
    SignatureTensor("num_tokens", "int32", "the number of tokens"),
    SignatureTensor("finish_reason", "string", "stop: the text or the turn ended; length: max_new_tokens was reached"),
    SignatureTensor("log_probability", "float32", "natural, under the model itself, the stop token included"),
)
COMPLETION = (
    SignatureTensor("text", "string", "the new text; bytes that are not UTF-8 as U+FFFD"),
    SignatureTensor("text_bytes", "string", "the bytes of the new text; base64 over REST"),
    *GENERATED,
    SignatureTensor("prompt_tokens", "int32", "tokens of the prompt, end-of-text included"),
)

SIGNATURES = (
    Signature(
        "serving_default",
        "continues a text with the export's sampling flags",
        (TEXT,),
        (SignatureTensor("text", "string", "the new text"),),
    ),
    Signature("generate", "continues a text", (TEXT, *SAMPLING), COMPLETION),
    Signature(
        "chat",
        "the assistant's reply to a conversation",
        (
            SignatureTensor(
                "conversation",
                "string",
                "the chat template's text with names of special tokens (`ChatTemplate.render`)",
            ),
            *SAMPLING,
        ),
        COMPLETION,
    ),
    Signature(
        "stream",
        "the next few tokens of texts given as ids; the server keeps no state",
        (IDS, LENGTH, *SAMPLING),
        (
            *GENERATED,
            SignatureTensor("text_bytes", "string", "the bytes of the tokens; they may end inside a character"),
            SignatureTensor("token_bytes", "string", "the bytes of each token; base64 over REST", "N"),
            SignatureTensor("token_log_probabilities", "float32", "the log probability of each token, then 0", "N"),
        ),
    ),
    Signature(
        "score",
        "the log-likelihood of a text after an end-of-text token",
        (TEXT,),
        (
            SignatureTensor("log_likelihood", "float32", "natural, the sum over all tokens of the text"),
            SignatureTensor("num_tokens", "int32", "tokens of the text"),
            SignatureTensor("num_bytes", "int32", "bytes of the text"),
        ),
    ),
    Signature(
        "tokenize",
        "the ids of a text",
        (TEXT,),
        (
            SignatureTensor("ids", "int32", "without special tokens, then the padding id", "T"),
            SignatureTensor("num_tokens", "int32", "the number of ids"),
            SignatureTensor("end_of_text_id", "int32", "the id that `stream` needs before a text's ids; -1 for none"),
        ),
    ),
    Signature(
        "tokenize_chat",
        "the ids of a conversation for `stream`",
        (SignatureTensor("conversation", "string", "the same as for `chat`"),),
        (
            SignatureTensor("ids", "int32", "the ids, then the padding id", "T"),
            SignatureTensor("num_tokens", "int32", "the number of ids"),
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
    return next(entry for entry in SIGNATURES if entry.name == name)


def sampling_values(sampling: SamplingConfig) -> dict[str, Any]:
    values = {**sampling.to_dict(), "sample": 0}
    return {tensor.name: values[tensor.name] for tensor in SAMPLING}
