"""Verification that an export generates what the model generates, through TensorFlow Serving's loader."""

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
from tfgpt.serving.signatures import SIGNATURES, sampling_values, signature
from tfgpt.serving.warmup import TEXTS, read_warmup
from tfgpt.tokenization.chat_template import get_chat_template

CHUNKS = (4, 8, 12)


def verify(directory: Path, generator: Generator, defaults: SamplingConfig) -> None:
    """Runs every signature of a version and compares its text with that of a generator with the saved weights."""
    with SessionModel(directory) as model:
        names = {entry.name for entry in SIGNATURES}
        if model.signatures.keys() != names:
            raise RunError(f"{directory}: has the signatures {sorted(model.signatures)}, not {sorted(names)}")
        for name, inputs in read_warmup(directory):
            outputs, rows = run(model, name, inputs), len(next(iter(inputs.values())))
            for tensor in signature(name).outputs:
                value, found = np.asarray(outputs[tensor.name]), f"the exported signature {name} outputs"
                dtype = "string" if value.dtype == object else value.dtype.name
                if value.shape[:1] != (rows,) or value.ndim != (2 if tensor.columns else 1) or dtype != tensor.dtype:
                    raise RunError(f"{found} {tensor.name} as {dtype} {list(value.shape)}")
                if value.dtype.kind == "f" and not np.isfinite(value).all():
                    raise RunError(f"{found} numbers in {tensor.name} that are not finite")
        greedy: dict[str, Any] = {"max_new_tokens": sum(CHUNKS), "temperature": 0.0}
        sampled = {**greedy, "temperature": 1.0, "top_k": 0, "seed": 7}
        filtered = {**sampled, "top_k": 40, "top_p": 0.95, "min_p": 0.01, "repetition_penalty": 1.1, "seed": -5}
        verifier = ExportVerifier(model, generator)
        for settings in (greedy, sampled, filtered):
            verifier.check_generation(SamplingConfig(**settings))
        verifier.check_defaults(defaults)


def run(model: SessionModel, name: str, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
    """Runs a signature; an error of TensorFlow becomes a RunError that names it."""
    try:
        return model(name, inputs)
    except tf.errors.OpError as error:
        raise RunError(f"the exported signature {name} fails: {error.message.splitlines()[0]}") from error


class ExportVerifier:
    """Compares an export with the generator.

    In float32 the tokens must be equal. In bfloat16 the server's graph optimizer fuses other operations than the
    generator's graphs do, numbers differ in their last (eighth) bit, and sometimes another token is drawn: then the
    generator's model must give the export's tokens the log probability that the export outputs.
    """

    def __init__(self, model: SessionModel, generator: Generator):
        self.model, self.generator, self.tokenizer = model, generator, generator.tokenizer
        self.exact = generator.decoder.compute_dtype == "float32"
        self.decoding = DecodeFunctions(generator.decoder, generator.stop_tokens)

    def check_generation(self, sampling: SamplingConfig) -> None:
        chats = [[{"role": "user", "content": text}] for text in TEXTS]
        template = get_chat_template(self.tokenizer)
        prompts = {
            "generate": [(text, encode_prompt(self.tokenizer, text)) for text in TEXTS],
            "chat": [
                (template.render(chat, add_generation_prompt=True), encode_chat(self.tokenizer, chat)) for chat in chats
            ],
        }
        for name, rows in prompts.items():
            # The context of a small model may be too short for some prompts.
            rows = [(text, ids) for text, ids in rows if len(ids) <= self.generator.context]
            if not rows:
                continue
            texts = np.array([text.encode() for text, _ in rows], object)
            outputs = self.run(name, sampling, len(rows), {signature(name).inputs[0].name: texts})
            expected = self.generator.generate([ids for _, ids in rows], sampling)
            for row, ((_, ids), [completion]) in enumerate(zip(rows, expected)):
                self.check_text(name, ids.tolist(), *text_of(outputs, row), completion)
                if name == "generate":
                    self.check_text("stream", ids.tolist(), *self.stream(sampling, ids.tolist()), completion)

    def stream(self, sampling: SamplingConfig, prompt: list[int]) -> tuple[list[int], str, float]:
        """Returns the tokens, the finish reason and the log probability of a text from several calls of `stream`."""
        tokens: list[int] = []
        reason, total = "", 0.0
        for size in CHUNKS:
            chunk, ids = dataclasses.replace(sampling, max_new_tokens=size), prompt + tokens
            outputs = self.run("stream", chunk, 1, {"ids": [ids], "length": [len(ids)]})
            new, reason, log_probability = text_of(outputs, 0)
            if abs(log_probability - outputs["token_log_probabilities"].sum()) > 0.01 and reason != "stop":
                raise RunError("the exported signature stream outputs token_log_probabilities with another sum")
            tokens, total = tokens + new, total + log_probability
            if reason == "stop":
                break
        return tokens, reason, total

    def check_defaults(self, defaults: SamplingConfig) -> None:
        prompt = encode_prompt(self.tokenizer, TEXTS[0])
        text = {"text": np.array([TEXTS[0].encode()], object)}
        outputs = run(self.model, "generate", text)
        if len(prompt) <= self.generator.context:
            [[completion]] = self.generator.generate([prompt], defaults)
            self.check_text("generate", prompt.tolist(), *text_of(outputs, 0), completion)
        if run(self.model, "serving_default", text)["text"].tolist() != outputs["text"].tolist():
            raise RunError("the exported signature serving_default differs from generate with its defaults")

    def run(self, name: str, sampling: SamplingConfig, rows: int, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
        sampling_inputs = {key: [value] * rows for key, value in sampling_values(sampling).items()}
        return run(self.model, name, {**inputs, **sampling_inputs})

    def check_text(
        self, name: str, prompt: list[int], tokens: list[int], reason: str, total: float, expected: Completion
    ) -> None:
        if (tokens, reason) == (expected.token_ids, expected.finish_reason):
            return
        if self.exact:
            raise RunError(f"the exported signature {name} generates {tokens}, the model {expected.token_ids}")
        ids = tf.constant([prompt + tokens])
        counted = tf.range(ids.shape[1])[None] >= len(prompt)
        likelihood = float(log_likelihood(self.decoding, ids, tf.constant([ids.shape[1]]), counted)[0])
        # The export's log probability includes the stop token, which is not among the tokens.
        if reason != "stop" and abs(total - likelihood) > 0.5 + 0.02 * abs(likelihood):
            raise RunError(
                f"the exported signature {name} generates {tokens} with log probability {total:.3f}; the model gives "
                f"them {likelihood:.3f}"
            )


def text_of(outputs: dict[str, np.ndarray], row: int) -> tuple[list[int], str, float]:
    tokens = outputs["tokens"][row, : outputs["num_tokens"][row]].tolist()
    return tokens, outputs["finish_reason"][row].decode(), float(outputs["log_probability"][row])
