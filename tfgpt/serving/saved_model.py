"""The module that is saved: its functions are the signatures, its weights plain variables.

A SavedModel of a module that tracks a Keras model loads in Python and fails in TensorFlow Serving: there variables are
restored into twins that no function reads. So the Keras decoder is hidden (only functions hold it, in their closures),
and the module tracks the `tf.Variable`s themselves.
"""

from __future__ import annotations

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
from tfgpt.serving.signatures import SAMPLING, SIGNATURES, Signature, default_of
from tfgpt.tokenization.in_graph.byte_level import InGraphTokenizer
from tfgpt.tokenization.in_graph.chat import encode_conversations
from tfgpt.tokenization.in_graph.sentencepiece import in_graph_tokenizer
from tfgpt.tokenization.tokenizer import Tokenizer

IDS = tf.TensorSpec([None, None], tf.int32)
COUNTS = tf.TensorSpec([None], tf.int32)


class ServedModel(tf.Module):
    """Text in, text out.

    Args:
        decoder: the model; its code is traced, its weights are those of `weights`.
        weights: what is saved.
        tokenizer: the model's.
        defaults: what `serving_default` uses and what the other signatures' inputs are when they are not given.
        max_new_tokens_limit: the most tokens that a request gets.
        stop_tokens: what ends a text; none: as the tokenizer says.

    Raises:
        UserError: the tokenizer cannot be run inside the graph.
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
        super().__init__(name="tfgpt")
        self.weights = weights.variables
        self.tokenizer = in_graph_tokenizer(tokenizer)
        self.functions = SignatureFunctions(
            decoder, weights, tokenizer, self.tokenizer, defaults, max_new_tokens_limit, stop_tokens
        )

    def signature_functions(self) -> dict[str, Callable]:
        """The signatures by name, for `tf.saved_model.save`."""
        return self.functions.signatures()


class SignatureFunctions:
    """The signatures' functions; no trackable object, so that the decoder in it is not saved.

    Args:
        decoder, weights, tokenizer, defaults, max_new_tokens_limit, stop_tokens: as `ServedModel`'s.
        in_graph: the tokenizer's operations.
    """

    def __init__(
        self,
        decoder: Decoder,
        weights: ServedWeights,
        tokenizer: Tokenizer,
        in_graph: InGraphTokenizer,
        defaults: SamplingConfig,
        max_new_tokens_limit: int,
        stop_tokens: Sequence[int],
    ):
        self.decoding = DecodeFunctions(decoder, tuple(stop_tokens) or tokenizer.stop_ids)
        self.weights, self.tokenizer, self.in_graph = weights, tokenizer, in_graph
        self.limit = max_new_tokens_limit
        # One graph for all signatures that write: it is most of what an export holds.
        self.write = self.over_weights(generate, IDS, COUNTS, COUNTS, SamplingParameters.specs())
        self.log_likelihood = self.over_weights(log_likelihood, IDS, COUNTS, tf.TensorSpec([None, None], tf.bool))
        self.embedding = self.over_weights(embedding, IDS, COUNTS)
        self.defaults = [tf.constant([default_of(defaults, item.name)], item.dtype) for item in SAMPLING]

    def signatures(self) -> dict[str, Callable]:
        """Every signature as a function that is traced once."""
        new_tokens, temperature, top_k, top_p, min_p, penalty, seed, sample = self.defaults

        # Argument names and defaults are what a saved signature takes its own from.
        def serving_default(text):
            return {"text": self.answer(self.prompts(text), self.defaults)["text"]}

        def generate(
            text, max_new_tokens=new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
            repetition_penalty=penalty, seed=seed, sample=sample,
        ):  # fmt: skip
            sampling = [max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, seed, sample]
            return self.answer(self.prompts(text), sampling)

        def chat(
            conversation, max_new_tokens=new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
            repetition_penalty=penalty, seed=seed, sample=sample,
        ):  # fmt: skip
            sampling = [max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, seed, sample]
            return self.answer(encode_conversations(self.tokenizer, self.in_graph, conversation), sampling)

        def stream(
            ids, length, max_new_tokens=new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
            repetition_penalty=penalty, seed=seed, sample=sample,
        ):  # fmt: skip
            sampling = [max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, seed, sample]
            return self.chunk(ids, length, sampling)

        functions: tuple[Callable, ...] = (
            serving_default,
            generate,
            chat,
            stream,
            self.score,
            self.tokenize,
            self.tokenize_chat,
            self.embed,
        )
        return {entry.name: traced(entry, function) for entry, function in zip(SIGNATURES, functions, strict=True)}

    def over_weights(self, function: Callable, *specs: Any) -> Callable:
        """A function of the decoding and tensors as a graph of its own that reads the served weights."""

        def with_weights(*inputs):
            with self.weights.in_place():
                return function(self.decoding, *inputs)

        return tf.function(with_weights, input_signature=specs, autograph=False)

    def score(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        """How likely texts are."""
        ids, lengths = self.padded(self.prompts(text))
        return {
            "log_likelihood": self.log_likelihood(ids, lengths, tf.ones_like(ids, tf.bool)),
            "num_tokens": lengths - 1,
            "num_bytes": tf.strings.length(text),
        }

    def tokenize(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        """Texts' ids."""
        ids, lengths = self.padded(self.in_graph.encode(text))
        return {
            "ids": ids,
            "num_tokens": lengths,
            "end_of_text_id": tf.fill([tf.size(text)], next(iter(self.tokenizer.start_ids), -1)),
        }

    def tokenize_chat(self, conversation: tf.Tensor) -> dict[str, tf.Tensor]:
        """Conversations' ids."""
        ids, lengths = self.padded(encode_conversations(self.tokenizer, self.in_graph, conversation))
        return {"ids": ids, "num_tokens": lengths}

    def embed(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        """The mean of texts' last hidden states."""
        return {"embedding": self.embedding(*self.padded(self.prompts(text)))}

    def prompts(self, text: tf.Tensor) -> tf.RaggedTensor:
        """Texts' ids [B, (ids)] as `prompts.encode_prompt` gives them: behind what texts begin with, none empty."""
        ids = self.in_graph.encode(text)
        if self.tokenizer.start_ids:
            first = tf.tile([self.tokenizer.start_ids], [tf.size(text), 1])
        else:
            empty = tf.cast(ids.row_lengths() == 0, tf.int32)
            ends = tf.fill([tf.reduce_sum(empty)], self.tokenizer.end_of_text_id)
            first = tf.RaggedTensor.from_row_lengths(ends, tf.cast(empty, tf.int64))
        return tf.concat([first, ids], 1)

    def padded(self, ids: tf.RaggedTensor) -> tuple[tf.Tensor, tf.Tensor]:
        """[B, (ids)] → [B, longest] int32 with padding behind, and the lengths [B] int32."""
        return ids.to_tensor(self.tokenizer.padding_id), tf.cast(ids.row_lengths(), tf.int32)

    def answer(self, prompts: tf.RaggedTensor, sampling: list[tf.Tensor]) -> dict[str, tf.Tensor]:
        """What is written behind prompts, as tokens and as text."""
        ids, lengths = self.padded(prompts)
        written = self.written(ids, lengths, sampling)
        content = self.bytes_of(written)
        text = tf.strings.unicode_transcode(content, "UTF-8", "UTF-8", errors="replace", replacement_char=0xFFFD)
        return {"text": text, "text_bytes": content, **self.outputs_of(written), "prompt_tokens": lengths}

    def chunk(self, ids: tf.Tensor, length: tf.Tensor, sampling: list[tf.Tensor]) -> dict[str, tf.Tensor]:
        """What is written behind ids."""
        size = self.decoding.decoder.config.vocabulary_size
        length = tf.clip_by_value(length, 1, tf.shape(ids)[1])
        read = tf.where(tf.sequence_mask(length, tf.shape(ids)[1]), ids, 0)
        known = tf.debugging.assert_equal(
            tf.reduce_all((read >= 0) & (read < size)), True, message=f"ids outside the vocabulary of {size}"
        )
        with tf.control_dependencies([known]):
            written = self.written(tf.identity(read), length, sampling)
        return {**self.outputs_of(written), "text_bytes": self.bytes_of(written)}

    def written(self, ids: tf.Tensor, lengths: tf.Tensor, sampling: list[tf.Tensor]) -> GenerateOutput:
        """`in_graph_generation.generate` with every sampling input brought into its bounds."""
        new_tokens, temperature, top_k, top_p, min_p, penalty, seed, sample = (
            tf.broadcast_to(value, [tf.shape(ids)[0]]) for value in sampling
        )
        parameters = SamplingParameters(
            # Comparisons with NaN are false: such a setting is as if it were off.
            temperature=tf.where(temperature > 0, temperature, 0.0),
            top_k=top_k,
            top_p=tf.where(top_p < 1, tf.maximum(top_p, 0.0), 1.0),
            min_p=tf.where(min_p > 0, tf.minimum(min_p, 1.0), 0.0),
            repetition_penalty=tf.where(penalty > 0, penalty, 1.0),
            seed=seed,
            sample=sample,
        )
        return self.write(ids, lengths, tf.minimum(new_tokens, self.limit), parameters)

    def outputs_of(self, written: GenerateOutput) -> dict[str, tf.Tensor]:
        """The tensors of `signatures.WRITTEN`."""
        kept = tf.sequence_mask(written.counts, tf.shape(written.tokens)[1])
        return {
            "tokens": tf.where(kept, written.tokens, self.tokenizer.padding_id),
            "num_tokens": written.counts,
            "finish_reason": tf.where(written.stopped, "stop", "length"),
            "log_probability": written.log_probabilities,
        }

    def bytes_of(self, written: GenerateOutput) -> tf.Tensor:
        """[B] strings: the bytes of the new tokens. A model may have more ids than its tokenizer; they have none."""
        kept = tf.sequence_mask(written.counts, tf.shape(written.tokens)[1])
        kept &= written.tokens < self.tokenizer.vocabulary_size
        return self.in_graph.decode(tf.where(kept, written.tokens, self.tokenizer.padding_id))


def traced(entry: Signature, function: Callable) -> Callable:
    """A signature's function with its input types; traced when it is saved."""
    specs = [tf.TensorSpec([None, None] if item.columns else [None], item.dtype, item.name) for item in entry.inputs]
    return tf.function(function, input_signature=specs, autograph=False)
