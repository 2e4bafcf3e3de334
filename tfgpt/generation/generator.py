"""`Generator`: text generation for many rows at a time, each with its own settings.

The graphs are in `decode_steps.py`; the code between them is here: finished rows, texts and stop strings. When a row's
context is full, the model continues from its last half (with another pass over that half), so a text can be longer
than the context. Beam search is limited to the context.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from tfgpt.common.errors import UserError
from tfgpt.generation.beam_search import BeamSearch
from tfgpt.generation.config import SamplingConfig
from tfgpt.generation.decode_steps import CompiledDecodeFunctions, choose, window_start
from tfgpt.generation.detokenizer import StreamingDetokenizer, detokenize
from tfgpt.generation.prompts import check_lengths, encode_prompt
from tfgpt.generation.sampling import SamplingParameters
from tfgpt.model.decoder import Decoder
from tfgpt.model.lora import projections
from tfgpt.tokenization.load import load_tokenizer
from tfgpt.tokenization.tokenizer import Tokenizer

# Tokens that a loop generates before Python reads them: few for streams and stop strings.
STREAMING_STEPS = 8
SILENT_STEPS = 32
# Prompt tokens of one pass: the attention scores of 8 prompts of 1024 tokens take 400 MB with 12 heads.
PROMPT_TOKENS = 8192


@dataclasses.dataclass(frozen=True)
class Completion:
    """A finished text.

    Example:

    >>> Completion("Hello", token_ids=[72, 5], finish_reason="stop", log_probability=-1.5, stop_token=0).text
    'Hello'
    """

    text: str  # the new text without the prompt and special tokens, cut before a stop string
    token_ids: list[int]  # every new token except a final stop token; they continue after a stop string's cut
    finish_reason: str  # "stop" (end-of-text, end of turn or a stop string) or "length" (max_new_tokens)
    log_probability: float  # natural, of new tokens and stop token, without temperature, filters and penalties
    stop_token: int | None = None  # the final stop token, if there is one


@dataclasses.dataclass(frozen=True)
class TextChunk:
    """A part of a text; the last part of a text has its `completion`."""

    text: str
    completion: Completion | None = None


class Generator:
    """Generates text with a decoder.

    Args:
        decoder: the model; each call reads its current weights.
        stop_ids: ids that end a text in addition to the tokenizer's `stop_ids`.

    Example:

    >>> from tfgpt.model.config import DecoderConfig
    >>> from tfgpt.tokenization.train_tokenizer import byte_tokenizer
    >>> tokenizer = byte_tokenizer()
    >>> config = DecoderConfig(vocabulary_size=tokenizer.vocabulary_size, num_layers=1, hidden_dim=8, num_query_heads=2)
    >>> generator = Generator(Decoder(config), tokenizer)
    >>> [[completion]] = generator.generate(["Hello"], SamplingConfig(max_new_tokens=3, temperature=0.0))
    >>> len(completion.token_ids)
    3
    """

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer, stop_ids: Sequence[int] = ()):
        if tokenizer.vocabulary_size > decoder.config.vocabulary_size:
            raise UserError(
                f"the tokenizer has {tokenizer.vocabulary_size} ids, the model {decoder.config.vocabulary_size}: "
                "they do not belong together"
            )
        self.decoder, self.tokenizer = decoder, tokenizer
        self.context = decoder.config.max_sequence_length
        self.stop_tokens = tuple(dict.fromkeys([*tokenizer.stop_ids, *stop_ids]))
        # Ids of the model without a token have no bytes.
        unused = decoder.config.vocabulary_size - tokenizer.vocabulary_size
        self.token_bytes = [*tokenizer.token_bytes(), *[b""] * unused]
        self.decoding = CompiledDecodeFunctions(decoder, self.stop_tokens)

    @classmethod
    def load(cls, directory: str | os.PathLike, dtype: str | None = None) -> Generator:
        """Loads a model directory (`config.json`, `model.safetensors`, `tokenizer.json`, `generation_config.json`).

        `dtype` is the type of weights and computation, "float32" or "bfloat16"; None for Keras's default.
        """
        from tfgpt.model.checkpoints.huggingface import load_decoder, load_stop_ids

        decoder = transpose_kernels_for_decoding(load_decoder(directory, dtype=dtype))
        return cls(decoder, load_tokenizer(directory), load_stop_ids(directory))

    def generate(
        self,
        prompts: Sequence[str | np.ndarray],
        sampling: SamplingConfig | Sequence[SamplingConfig],
        *,
        batch_size: int = 32,
        steps: int | None = None,
    ) -> list[list[Completion]]:
        """Continues each prompt; returns `num_samples` completions for each, those of beam search best first.

        A text depends only on its prompt, settings, seed and sample number, not on the other rows of the batch.

        Args:
            prompts: texts, or ids [n].
            sampling: settings for all prompts, or one for each.
            batch_size: the most rows at a time; long prompts make batches smaller.
            steps: tokens to generate before stop strings are checked; None chooses.
        """
        configs = [sampling] * len(prompts) if isinstance(sampling, SamplingConfig) else list(sampling)
        encoded = [
            encode_prompt(self.tokenizer, prompt, config.add_end_of_text)
            for prompt, config in zip(prompts, configs, strict=True)
        ]
        check_lengths(encoded, self.context)
        completions: list[list[Completion]] = [[] for _ in prompts]
        rows: list[tuple[int, SequenceInProgress]] = []
        for number, (prompt, config) in enumerate(zip(encoded, configs)):
            if config.num_beams > 1:
                completions[number] = self._beam_search(prompt, config)
            else:
                rows += [(number, SequenceInProgress(prompt, config, sample)) for sample in range(config.num_samples)]
        # Rows of similar length need little padding.
        by_length = sorted((row for _, row in rows), key=lambda row: len(row.prompt))
        for batch in split_batches(by_length, batch_size):
            for _ in self._generate(batch, steps):
                pass
        for number, row in rows:
            completions[number].append(row.completion(self.stop_tokens))
        return completions

    def stream(
        self, prompt: str | np.ndarray, sampling: SamplingConfig, *, steps: int | None = None
    ) -> Iterator[TextChunk]:
        """Yields one text as it is generated, in whole characters; the last chunk has the completion.

        Args:
            prompt: text, or ids [n].
            sampling: the settings; `num_samples` must be 1. Beam search yields one chunk.
            steps: tokens per chunk; None for a few.
        """
        if sampling.num_samples != 1:
            raise UserError(f"--num_samples: {sampling.num_samples} texts cannot be streamed at once; stream one")
        if sampling.num_beams > 1:
            [[completion]] = self.generate([prompt], sampling)
            yield TextChunk(completion.text, completion)
            return
        ids = encode_prompt(self.tokenizer, prompt, sampling.add_end_of_text)
        check_lengths([ids], self.context)
        row = SequenceInProgress(ids, sampling, 0)
        num_yielded = 0
        for _ in self._generate([row], steps or STREAMING_STEPS):
            text, num_yielded = "".join(row.pieces[num_yielded:]), len(row.pieces)
            if row.finish_reason is not None:
                yield TextChunk(text, row.completion(self.stop_tokens))
            elif text:
                yield TextChunk(text)

    def seen_tokens(self, texts: Sequence[Sequence[int]], configs: Sequence[SamplingConfig]) -> np.ndarray:
        """Returns the tokens of each text, [texts, vocabulary] bool; no columns without a repetition penalty."""
        if all(config.repetition_penalty == 1 for config in configs):
            return np.zeros([len(texts), 0], bool)
        seen = np.zeros([len(texts), self.decoder.config.vocabulary_size], bool)
        for row, tokens in zip(seen, texts):
            row[list(tokens)] = True
        return seen

    def _generate(self, rows: list[SequenceInProgress], steps: int | None) -> Iterator[None]:
        """Generates all rows to their ends; yields after each loop of steps."""
        steps = steps or (STREAMING_STEPS if any(row.config.stop for row in rows) else SILENT_STEPS)
        while rows:
            batch = DecodeBatch(self, rows)
            yield
            while batch.drop_finished() and batch.room() > 0:
                batch.advance(min(steps, batch.room()))
                yield
            rows = batch.rows

    def _beam_search(self, prompt: np.ndarray, config: SamplingConfig) -> list[Completion]:
        if len(prompt) + config.max_new_tokens > self.context:
            raise UserError(
                f"--max_new_tokens: {config.max_new_tokens} tokens after a prompt of {len(prompt)} do not fit in the "
                f"model's context of {self.context}, which limits beam search; give at most "
                f"{self.context - len(prompt)}"
            )

        def extend(stream: StreamingDetokenizer, token: int) -> tuple[StreamingDetokenizer, bool]:
            if config.stop:
                stream = stream.extended(self.token_bytes[token])
            return stream, token in self.stop_tokens or stream.stopped

        beams = BeamSearch(
            config.num_beams, config.max_new_tokens, config.length_penalty, extend, StreamingDetokenizer(config.stop)
        )
        logits, cache = self.decoding.prefill(prompt[None], [len(prompt)])
        past, cache = self.decoding.as_past(cache), self.decoder.empty_cache(config.num_beams, 0)
        logits = tf.repeat(logits, config.num_beams, 0)
        seen = self.seen_tokens([prompt.tolist()] * config.num_beams, [config])
        for slot in range(config.max_new_tokens):
            scores, _, _ = beams.padded()
            candidates = self.decoding.beam_candidates(logits, [scores], seen, config.repetition_penalty)
            beams.advance(*(part.numpy()[0] for part in candidates))
            if beams.done():
                break
            _, tokens, parents = beams.padded()
            logits, cache = self.decoding.beam_step(past, cache, slot, parents, tokens)
            seen = seen[parents]
            if seen.size:
                seen[range(config.num_beams), tokens] = True
        completions = []
        for finished in beams.finished[: config.num_samples]:
            tokens = finished.beam.tokens()
            if tokens[-1] in self.stop_tokens:
                tokens.pop()
            text = detokenize([self.token_bytes[token] for token in tokens], config.stop)
            completions.append(Completion(text, tokens, finished.finish_reason, finished.beam.log_probability))
        return completions


class SequenceInProgress:
    """A text that is being generated: `sample` is its number among those of the prompt [n] int32, n ≥ 1."""

    def __init__(self, prompt: np.ndarray, config: SamplingConfig, sample: int):
        self.prompt, self.config, self.sample = prompt, config, sample
        self.ids = prompt.tolist()
        self.log_probability = 0.0
        self.detokenizer = StreamingDetokenizer(config.stop)
        self.pieces: list[str] = []
        self.finish_reason: str | None = None

    def remaining(self) -> int:
        return self.config.max_new_tokens - (len(self.ids) - len(self.prompt))

    def add(self, token: int, log_probability: float, content: bytes, stop_tokens: tuple[int, ...]) -> None:
        self.ids.append(token)
        self.log_probability += log_probability
        # The model's files may name an ordinary token as a stop token.
        self.pieces.append(self.detokenizer.add(b"" if token in stop_tokens else content))
        if token in stop_tokens or self.detokenizer.stopped:
            self.finish_reason = "stop"
        elif self.remaining() == 0:
            self.finish_reason = "length"
        if self.finish_reason is not None:
            self.pieces.append(self.detokenizer.end())

    def completion(self, stop_tokens: tuple[int, ...]) -> Completion:
        tokens, stop_token = self.ids[len(self.prompt) :], None
        if tokens and tokens[-1] in stop_tokens:
            *tokens, stop_token = tokens
        reason = self.finish_reason or "length"
        return Completion("".join(self.pieces), tokens, reason, self.log_probability, stop_token)


class DecodeBatch:
    """Rows that share a cache, from the pass over their windows until one of them has filled its context."""

    def __init__(self, generator: Generator, rows: list[SequenceInProgress]):
        self.generator, self.decoding, self.rows = generator, generator.decoding, rows
        windows = [np.array(row.ids[window_start(len(row.ids), generator.context) :], np.int32) for row in rows]
        # Samples of one prompt share a row of the pass.
        distinct = {window.tobytes(): window for window in windows}
        lengths = np.array([len(window) for window in distinct.values()], np.int32)
        self.slots = int(lengths.max())
        token_ids = np.stack([np.pad(window, (self.slots - len(window), 0)) for window in distinct.values()])
        logits, self.cache = self.decoding.prefill(token_ids, lengths)
        places = {content: place for place, content in enumerate(distinct)}
        rows_of = np.array([places[window.tobytes()] for window in windows], np.int32)
        if len(distinct) < len(rows):
            logits, self.cache = tf.gather(logits, rows_of), self.decoding.take_rows(self.cache, rows_of)
        self.padding = (self.slots - lengths)[rows_of]
        tokens, log_probabilities = choose(logits, *self.sampling_inputs())
        self.add_tokens(tokens.numpy()[:, None], log_probabilities.numpy()[:, None])

    def sampling_inputs(self) -> tuple[SamplingParameters, np.ndarray, np.ndarray]:
        """Returns the inputs of `sampling.choose` after the logits."""
        parameters = SamplingParameters.of([(row.config, row.sample) for row in self.rows])
        seen = self.generator.seen_tokens([row.ids for row in self.rows], [row.config for row in self.rows])
        return parameters, seen, np.array([len(row.ids) for row in self.rows], np.int32)

    def add_tokens(self, tokens: np.ndarray, log_probabilities: np.ndarray) -> None:
        for row, row_tokens, row_log_probabilities in zip(self.rows, tokens.tolist(), log_probabilities.tolist()):
            for token, log_probability in zip(row_tokens, row_log_probabilities):
                row.add(token, log_probability, self.generator.token_bytes[token], self.generator.stop_tokens)
                if row.finish_reason is not None:
                    break

    def drop_finished(self) -> bool:
        """Removes finished rows; returns whether any row remains."""
        live = [number for number, row in enumerate(self.rows) if row.finish_reason is None]
        if live and len(live) < len(self.rows):
            self.cache = self.decoding.take_rows(self.cache, live)
            self.padding = self.padding[live]
        self.rows = [self.rows[number] for number in live]
        return bool(live)

    def room(self) -> int:
        """Returns the number of tokens that every row can still read within the context."""
        return int(self.generator.context - self.slots + self.padding.min())

    def advance(self, steps: int) -> None:
        """Generates up to `steps` tokens, at most `room()`."""
        remaining = [row.remaining() for row in self.rows]
        steps = min(steps, max(remaining))
        last = [row.ids[-1] for row in self.rows]
        parameters, seen, positions = self.sampling_inputs()
        tokens, log_probabilities, self.cache = self.decoding.steps(
            self.cache, self.padding, last, positions, remaining, parameters, seen, steps
        )
        self.slots += steps
        self.add_tokens(tokens.numpy(), log_probabilities.numpy())


def split_batches(rows: list[SequenceInProgress], batch_size: int) -> Iterator[list[SequenceInProgress]]:
    """Splits rows, shortest prompt first, into at most `batch_size` rows and about PROMPT_TOKENS padded tokens."""
    batch: list[SequenceInProgress] = []
    for row in rows:
        if batch and (len(batch) >= batch_size or (len(batch) + 1) * len(row.prompt) > PROMPT_TOKENS):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def transpose_kernels_for_decoding(decoder: Decoder) -> Decoder:
    """Transposes bfloat16 kernels, one at a time, for fast products with few rows; returns the decoder.

    The decoder can then neither be trained nor saved.
    """
    if decoder.dtype_policy.variable_dtype == "bfloat16":
        for _, _, layer in projections(decoder):
            layer.transpose_kernel()
    return decoder
