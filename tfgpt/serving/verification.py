"""The proof that an export answers as the model does, through the loader that TensorFlow Serving uses."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfgpt.common.errors import RunError
from tfgpt.generation.config import SamplingConfig
from tfgpt.generation.engine import Completion, Generator
from tfgpt.generation.prompts import encode_chat, encode_prompt
from tfgpt.serving.session import SessionModel
from tfgpt.serving.signatures import SAMPLING, SIGNATURES, signature
from tfgpt.serving.warmup import TEXTS, read_warmup
from tfgpt.tokenization.chat_template import render_messages

NEW_TOKENS = 24
CHUNKS = (4, 8, 12)


def verify(directory: Path, generator: Generator, defaults: SamplingConfig) -> None:
    """Opens a written version and runs every signature.

    Args:
        directory: the version.
        generator: with the weights that were saved.
        defaults: the export's settings.

    Raises:
        RunError: a signature is missing, fails or answers otherwise than the generator; the line says which.
    """
    with SessionModel(directory) as model:
        names = {entry.name for entry in SIGNATURES}
        if model.signatures.keys() != names:
            raise RunError(f"{directory}: holds the signatures {sorted(model.signatures)}, not {sorted(names)}")
        for name, inputs in read_warmup(directory):
            check_answer(name, run(model, name, inputs), len(next(iter(inputs.values()))))
        greedy: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "temperature": 0.0}
        drawn = {**greedy, "temperature": 1.0, "top_k": 0, "seed": 7}
        filtered = {**drawn, "top_k": 40, "top_p": 0.95, "min_p": 0.01, "repetition_penalty": 1.1, "seed": -5}
        for values in (greedy, drawn, filtered):
            sampling = SamplingConfig(**values)
            check_written(model, generator, sampling)
        check_default(model, generator, defaults)


def run(model: SessionModel, name: str, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
    """A signature's answer, or a RunError that names it."""
    try:
        return model(name, inputs)
    except tf.errors.OpError as error:
        raise RunError(f"the exported signature {name} fails: {error.message.splitlines()[0]}") from error


def check_answer(name: str, answer: dict[str, np.ndarray], rows: int) -> None:
    """Compares an answer's tensors with the signature's table."""
    for item in signature(name).outputs:
        value = np.asarray(answer[item.name])
        dtype = "string" if value.dtype == object else value.dtype.name
        if value.shape[:1] != (rows,) or value.ndim != (2 if item.columns else 1) or dtype != item.dtype:
            raise RunError(f"the exported signature {name} gives {item.name} as {dtype} {list(value.shape)}")
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise RunError(f"the exported signature {name} gives {item.name} that are no finite numbers")


def sampling_inputs(sampling: SamplingConfig, rows: int) -> dict[str, np.ndarray]:
    """The sampling inputs of a request."""
    values = {**sampling.to_dict(), "sample": 0}
    return {item.name: np.full([rows], values[item.name], item.dtype) for item in SAMPLING}


def check_written(model: SessionModel, generator: Generator, sampling: SamplingConfig) -> None:
    """`generate`, `chat` and `stream` against the generator."""
    prompts = [text for text in TEXTS if fits(encode_prompt(generator.tokenizer, text), generator)]
    texts = np.array([text.encode() for text in prompts], object)
    inputs = sampling_inputs(sampling, len(prompts))
    expected = [found for [found] in generator.generate(prompts, sampling)]
    compare("generate", run(model, "generate", {"text": texts, **inputs}), expected)
    for text, found in zip(prompts, expected):
        check_stream(model, generator, sampling, text, found)
    dialogues = [[{"role": "user", "content": text}] for text in TEXTS]
    asked = [(encode_chat(generator.tokenizer, dialogue), render_messages(dialogue)) for dialogue in dialogues]
    asked = [(ids, rendered) for ids, rendered in asked if fits(ids, generator)]
    expected = [found for [found] in generator.generate([ids for ids, _ in asked], sampling)]
    conversations = np.array([rendered.encode() for _, rendered in asked], object)
    inputs = sampling_inputs(sampling, len(asked))
    compare("chat", run(model, "chat", {"conversation": conversations, **inputs}), expected)


def fits(ids: np.ndarray, generator: Generator) -> bool:
    """Whether the generator takes the prompt: a small model's context may be too short for it."""
    return len(ids) <= generator.context


def check_stream(
    model: SessionModel, generator: Generator, sampling: SamplingConfig, text: str, whole: Completion
) -> None:
    """`stream`, a few tokens at a time, against the generator.

    The chunks together are the text in one piece where numbers are float32. In bfloat16 a token's number differs a
    little between a pass over the prompt and a step behind it, so there each chunk is compared for itself.
    """
    encoded = run(model, "tokenize", {"text": np.array([text.encode()], object)})
    ids = [generator.tokenizer.end_of_text_id, *encoded["ids"][0, : encoded["num_tokens"][0]].tolist()]
    first = len(ids)
    for size in CHUNKS:
        chunk = dataclasses.replace(sampling, max_new_tokens=size)
        inputs = {"ids": np.array([ids], np.int32), "length": np.array([len(ids)], np.int32)}
        answer = run(model, "stream", inputs | sampling_inputs(chunk, 1))
        if len(ids) <= generator.context:
            compare("stream", answer, generator.generate([np.array(ids)], chunk)[0])
        ids += answer["tokens"][0, : answer["num_tokens"][0]].tolist()
        if answer["finish_reason"][0] == b"stop":
            break
    if generator.decoder.compute_dtype == "float32" and ids[first:] != whole.token_ids:
        raise RunError(f"the exported signature stream writes {ids[first:]}, generate {whole.token_ids}")


def compare(name: str, answer: dict[str, np.ndarray], expected: list[Completion]) -> None:
    """A writing signature's answer with the generator's."""
    for row, found in enumerate(expected):
        tokens = answer["tokens"][row, : answer["num_tokens"][row]].tolist()
        if tokens != found.token_ids or answer["finish_reason"][row].decode() != found.finish_reason:
            raise RunError(f"the exported signature {name} writes {tokens}, generate {found.token_ids}")


def check_default(model: SessionModel, generator: Generator, defaults: SamplingConfig) -> None:
    """`serving_default` against `generate` with nothing but the text, and with the defaults' own values."""
    texts = np.array([TEXTS[0].encode()], object)
    alone = run(model, "serving_default", {"text": texts})["text"]
    implied = run(model, "generate", {"text": texts})
    [[found]] = generator.generate(TEXTS[:1], defaults)
    compare("generate", implied, [found])
    if alone.tolist() != implied["text"].tolist():
        raise RunError("the exported signature serving_default answers otherwise than generate with its defaults")
