"""The proof that an export answers as the model does, through the loader that TensorFlow Serving uses."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfgpt.common.errors import RunError
from tfgpt.generation.config import SamplingConfig
from tfgpt.generation.decode_steps import DecodeFunctions
from tfgpt.generation.generator import Completion, Generator
from tfgpt.generation.prompts import encode_chat, encode_prompt
from tfgpt.generation.scoring import log_likelihood
from tfgpt.serving.saved_model_session import SessionModel
from tfgpt.serving.signatures import SAMPLING, SIGNATURES, signature
from tfgpt.serving.warmup import TEXTS, read_warmup
from tfgpt.tokenization.chat_template import get_chat_template

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
        comparison = ExportVerifier(model, generator)
        for values in (greedy, drawn, filtered):
            comparison.written(SamplingConfig(**values))
        comparison.default(defaults)


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


class ExportVerifier:
    """An opened export beside the generator that it must agree with.

    In float32 the tokens are equal. In bfloat16 the server's graph optimizer joins other operations than the
    generator's graphs do, numbers differ in their last (eighth) bit, and now and then another token is drawn: there the
    export's tokens must be as probable as it says, by the generator's model.

    Args:
        model: the export.
        generator: with the weights that were saved.
    """

    def __init__(self, model: SessionModel, generator: Generator):
        self.model, self.generator = model, generator
        self.exact = generator.decoder.compute_dtype == "float32"
        self.decoding = DecodeFunctions(generator.decoder, generator.stop_tokens)

    def written(self, sampling: SamplingConfig) -> None:
        """`generate`, `chat` and `stream` against the generator."""
        tokenizer = self.generator.tokenizer
        dialogues = [[{"role": "user", "content": text}] for text in TEXTS]
        texts = [(encode_prompt(tokenizer, text), text) for text in TEXTS]
        template = get_chat_template(tokenizer)
        chats = [
            (encode_chat(tokenizer, dialogue), template.render(dialogue, add_generation_prompt=True))
            for dialogue in dialogues
        ]
        for name, column, prompts in (("generate", "text", texts), ("chat", "conversation", chats)):
            # A small model's context may be too short for them.
            prompts = [(ids, text) for ids, text in prompts if len(ids) <= self.generator.context]
            if not prompts:
                continue
            asked = np.array([text.encode() for _, text in prompts], object)
            answer = run(self.model, name, {column: asked, **sampling_inputs(sampling, len(prompts))})
            expected = self.generator.generate([ids for ids, _ in prompts], sampling)
            for row, ((ids, _), [found]) in enumerate(zip(prompts, expected)):
                self.row(name, answer, row, ids.tolist(), found)
                if name == "generate":
                    self.stream(sampling, ids.tolist(), found)

    def stream(self, sampling: SamplingConfig, prompt: list[int], whole: Completion) -> None:
        """`stream`, a few tokens at a time: each chunk, and where tokens are equal all chunks together."""
        ids = [*prompt]
        for size in CHUNKS:
            chunk = dataclasses.replace(sampling, max_new_tokens=size)
            inputs = {"ids": np.array([ids], np.int32), "length": np.array([len(ids)], np.int32)}
            answer = run(self.model, "stream", inputs | sampling_inputs(chunk, 1))
            # The generator refuses longer prompts, and ids that the model has but its tokenizer does not.
            if len(ids) <= self.generator.context and max(ids) < self.generator.tokenizer.vocabulary_size:
                [[found]] = self.generator.generate([np.array(ids)], chunk)
                self.row("stream", answer, 0, ids, found)
            ids += tokens_of(answer, 0)
            if answer["finish_reason"][0] == b"stop":
                break
        if self.exact and ids[len(prompt) :] != whole.token_ids:
            raise RunError(
                f"the exported signature stream writes {ids[len(prompt) :]} in chunks, generate {whole.token_ids}"
            )

    def default(self, defaults: SamplingConfig) -> None:
        """`serving_default`, and `generate` with nothing but the text, against the generator."""
        prompt = encode_prompt(self.generator.tokenizer, TEXTS[0])
        texts = np.array([TEXTS[0].encode()], object)
        alone = run(self.model, "serving_default", {"text": texts})
        implied = run(self.model, "generate", {"text": texts})
        if len(prompt) <= self.generator.context:
            [[found]] = self.generator.generate([prompt], defaults)
            self.row("generate", implied, 0, prompt.tolist(), found)
        if alone["text"].tolist() != implied["text"].tolist():
            raise RunError("the exported signature serving_default answers otherwise than generate with its defaults")

    def row(self, name: str, answer: dict[str, np.ndarray], row: int, prompt: list[int], found: Completion) -> None:
        """A row of a writing signature's answer with the generator's."""
        tokens, reason = tokens_of(answer, row), answer["finish_reason"][row].decode()
        if (tokens, reason) == (found.token_ids, found.finish_reason):
            return
        if self.exact:
            raise RunError(f"the exported signature {name} writes {tokens}, generate {found.token_ids}")
        ids = tf.constant([prompt + tokens])
        counted = tf.range(ids.shape[1])[None] >= len(prompt)
        likelihood = float(log_likelihood(self.decoding, ids, tf.constant([ids.shape[1]]), counted)[0])
        said = float(answer["log_probability"][row])
        # The stop token's probability, which counts in what was said, is known to the export alone.
        if reason != "stop" and abs(said - likelihood) > 0.5 + 0.02 * abs(likelihood):
            raise RunError(
                f"the exported signature {name} writes {tokens} with log probability {said:.3f}; by the model "
                f"it is {likelihood:.3f}"
            )


def tokens_of(answer: dict[str, np.ndarray], row: int) -> list[int]:
    """A row's new tokens."""
    return answer["tokens"][row, : answer["num_tokens"][row]].tolist()
