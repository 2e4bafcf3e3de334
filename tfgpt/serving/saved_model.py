"""The module that is saved: its functions are the signatures, its weights are plain variables.

A SavedModel that tracks a Keras model loads in Python and fails in TensorFlow Serving, which restores the variables
into copies that no function reads. So only closures hold the Keras decoder, and the module tracks its `tf.Variable`s.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfgpt.generation.config import SamplingConfig
from tfgpt.generation.decode_steps import DecodeFunctions
from tfgpt.generation.in_graph_generation import GenerateOutput, generate
from tfgpt.generation.sampling import SamplingParameters
from tfgpt.generation.scoring import embedding, log_likelihood
from tfgpt.model.decoder import Decoder
from tfgpt.serving.quantization import ServedWeights
from tfgpt.serving.signatures import SAMPLING, SIGNATURES, Signature, sampling_values
from tfgpt.tokenization.in_graph.chat import encode_conversations
from tfgpt.tokenization.in_graph.sentencepiece import in_graph_tokenizer
from tfgpt.tokenization.tokenizer import Tokenizer

IDS = tf.TensorSpec([None, None], tf.int32)
COUNTS = tf.TensorSpec([None], tf.int32)


class ServedModel:
    """The signatures of an export and its module, which does not track the decoder.

    Args:
        decoder: the model; its code is traced with `weights`.
        defaults: the sampling of `serving_default` and the defaults of the sampling inputs.
        stop_tokens: the ids that end a text; by default those of the tokenizer.

    Attributes:
        module: the module that is saved, with the weights and the tokenizer's operations.
    """

    def __init__(
        self,
        decoder: Decoder,
        weights: ServedWeights,
        tokenizer: Tokenizer,
        defaults: SamplingConfig,
        max_new_tokens_limit: int,
        stop_tokens: Sequence[int] = (),
    ):
        self.decoding = DecodeFunctions(decoder, tuple(stop_tokens) or tokenizer.stop_ids)
        self.weights, self.tokenizer, self.limit = weights, tokenizer, max_new_tokens_limit
        self.in_graph = in_graph_tokenizer(tokenizer)
        self.module = tf.Module(name="tfgpt")
        self.module.weights, self.module.tokenizer = weights.variables, self.in_graph
        # All signatures share one graph for generation, which is most of an export.
        self.generate = self.with_served_weights(generate, IDS, COUNTS, COUNTS, SamplingParameters.specs())
        self.log_likelihood = self.with_served_weights(
            log_likelihood, IDS, COUNTS, tf.TensorSpec([None, None], tf.bool)
        )
        self.embedding = self.with_served_weights(embedding, IDS, COUNTS)
        values = sampling_values(defaults)
        self.defaults = {tensor.name: tf.constant([values[tensor.name]], tensor.dtype) for tensor in SAMPLING}

    def signatures(self) -> dict[str, Callable]:
        """Returns the signatures by name for `tf.saved_model.save`; saving traces them."""
        chat_ids = functools.partial(encode_conversations, self.tokenizer, self.in_graph)
        functions: dict[str, Callable] = {
            "serving_default": lambda text: {"text": self.complete(self.encode(text), *self.defaults.values())["text"]},
            "generate": lambda text, *sampling: self.complete(self.encode(text), *sampling),
            "chat": lambda text, *sampling: self.complete(chat_ids(text), *sampling),
            "stream": self.stream,
            "score": self.score,
            "tokenize": self.tokenize,
            "tokenize_chat": lambda text: dict(zip(("ids", "num_tokens"), self.pad(chat_ids(text)))),
            "embed": lambda text: {"embedding": self.embedding(*self.pad(self.encode(text)))},
        }
        return {entry.name: self.graph_function(entry, functions[entry.name]) for entry in SIGNATURES}

    def graph_function(self, entry: Signature, function: Callable) -> Callable:
        """Returns a function as a `tf.function` with the names, types and defaults of a signature's inputs."""

        def call(*inputs):
            return function(*inputs)

        # `tf.saved_model.save` reads names and defaults from the Python signature.
        call.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                inspect.Parameter(
                    tensor.name,
                    inspect.Parameter.POSITIONAL_OR_KEYWORD,
                    default=self.defaults.get(tensor.name, inspect.Parameter.empty),
                )
                for tensor in entry.inputs
            ]
        )
        specs = [
            tf.TensorSpec([None, None] if item.columns else [None], item.dtype, item.name) for item in entry.inputs
        ]
        return tf.function(call, input_signature=specs, autograph=False)

    def with_served_weights(self, function: Callable, *specs: Any) -> Callable:
        """Returns a function of `decoding` and tensors as a graph that reads the served weights."""

        def call(*inputs):
            with self.weights.in_place():
                return function(self.decoding, *inputs)

        return tf.function(call, input_signature=specs, autograph=False)

    def complete(self, prompts: tf.RaggedTensor, *sampling: tf.Tensor) -> dict[str, tf.Tensor]:
        """Continues prompts; returns `signatures.COMPLETION`."""
        ids, lengths = self.pad(prompts)
        output = self.generate_within_bounds(ids, lengths, *sampling)
        content = tf.strings.reduce_join(self.token_bytes(output), axis=1)
        text = tf.strings.unicode_transcode(content, "UTF-8", "UTF-8", errors="replace", replacement_char=0xFFFD)
        return {"text": text, "text_bytes": content, **self.generated(output), "prompt_tokens": lengths}

    def stream(self, ids: tf.Tensor, length: tf.Tensor, *sampling: tf.Tensor) -> dict[str, tf.Tensor]:
        size = self.decoding.decoder.config.vocabulary_size
        length = tf.clip_by_value(length, 1, tf.shape(ids)[1])
        ids = tf.where(tf.sequence_mask(length, tf.shape(ids)[1]), ids, 0)
        known = tf.debugging.assert_equal(
            tf.reduce_all((ids >= 0) & (ids < size)), True, message=f"ids outside the vocabulary of {size}"
        )
        with tf.control_dependencies([known]):
            output = self.generate_within_bounds(tf.identity(ids), length, *sampling)
        token_bytes = self.token_bytes(output)
        return {
            **self.generated(output),
            "text_bytes": tf.strings.reduce_join(token_bytes, axis=1),
            "token_bytes": token_bytes,
            "token_log_probabilities": output.token_log_probabilities,
        }

    def score(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        ids, lengths = self.pad(self.encode(text))
        return {
            "log_likelihood": self.log_likelihood(ids, lengths, tf.ones_like(ids, tf.bool)),
            "num_tokens": lengths - 1,
            "num_bytes": tf.strings.length(text),
        }

    def tokenize(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        ids, lengths = self.pad(self.in_graph.encode(text))
        start_ids = tf.fill([tf.size(text)], next(iter(self.tokenizer.start_ids), -1))
        return {"ids": ids, "num_tokens": lengths, "end_of_text_id": start_ids}

    def encode(self, text: tf.Tensor) -> tf.RaggedTensor:
        """Returns the ids of texts [B, (ids)] as `prompts.encode_prompt` does; no row is empty."""
        ids = self.in_graph.encode(text)
        if self.tokenizer.start_ids:
            first = tf.tile([self.tokenizer.start_ids], [tf.size(text), 1])
        else:
            empty = tf.cast(ids.row_lengths() == 0, tf.int32)
            ends = tf.fill([tf.reduce_sum(empty)], self.tokenizer.end_of_text_id)
            first = tf.RaggedTensor.from_row_lengths(ends, tf.cast(empty, tf.int64))
        return tf.concat([first, ids], 1)

    def pad(self, ids: tf.RaggedTensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Pads [B, (ids)] on the right; returns [B, longest] int32 and the lengths [B] int32."""
        return ids.to_tensor(self.tokenizer.padding_id), tf.cast(ids.row_lengths(), tf.int32)

    def generate_within_bounds(self, ids: tf.Tensor, lengths: tf.Tensor, *sampling: tf.Tensor) -> GenerateOutput:
        """Calls `in_graph_generation.generate` with every sampling input limited to its bounds."""
        new_tokens, temperature, top_k, top_p, min_p, penalty, seed, sample = (
            tf.broadcast_to(value, [tf.shape(ids)[0]]) for value in sampling
        )
        parameters = SamplingParameters(
            # Comparisons with NaN are false, so NaN turns a setting off.
            temperature=tf.where(temperature > 0, temperature, 0.0),
            top_k=top_k,
            top_p=tf.where(top_p < 1, tf.maximum(top_p, 0.0), 1.0),
            min_p=tf.where(min_p > 0, tf.minimum(min_p, 1.0), 0.0),
            repetition_penalty=tf.where(penalty > 0, penalty, 1.0),
            seed=seed,
            sample=sample,
        )
        return self.generate(ids, lengths, tf.minimum(new_tokens, self.limit), parameters)

    def generated(self, output: GenerateOutput) -> dict[str, tf.Tensor]:
        kept = tf.sequence_mask(output.counts, tf.shape(output.tokens)[1])
        return {
            "tokens": tf.where(kept, output.tokens, self.tokenizer.padding_id),
            "num_tokens": output.counts,
            "finish_reason": tf.where(output.stopped, "stop", "length"),
            "log_probability": output.log_probabilities,
        }

    def token_bytes(self, output: GenerateOutput) -> tf.Tensor:
        """Returns the bytes of each new token, strings [B, N]; ids of the model without a token have none."""
        kept = tf.sequence_mask(output.counts, tf.shape(output.tokens)[1])
        kept &= output.tokens < self.tokenizer.vocabulary_size
        return self.in_graph.decode(tf.where(kept, output.tokens, self.tokenizer.padding_id)[:, :, None])
