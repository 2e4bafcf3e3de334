"""`Generator`: prompts in, texts out. Many rows at a time, each with its own settings, its own end and its own text.

The graphs are in `decode_steps.py`; here is what happens between them: which rows go on, what their text is, whether a
stop string has come up. When a row's context is full, the model goes on with the last half of it (the pass over that
half is run again), so a text can be longer than the model's context. Beam search does not go beyond the context.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from tfgpt.common.errors import UserError
from tfgpt.generation.beam_search import BeamSearch, Finished
from tfgpt.generation.config import SamplingConfig
from tfgpt.generation.decode_steps import CompiledDecodeFunctions, choose, padded_left, window_start
from tfgpt.generation.detokenizer import StreamingDetokenizer, text_of
from tfgpt.generation.kernel_layout import transpose_kernels_for_decoding
from tfgpt.generation.prompts import check_lengths, encode_prompt
from tfgpt.generation.sampling import SamplingParameters
from tfgpt.model.decoder import Decoder
from tfgpt.tokenization.load import load_tokenizer
from tfgpt.tokenization.tokenizer import Tokenizer

# Tokens a loop writes before Python looks at the text: few where somebody waits for it or it may stop.
STREAMING_STEPS = 8
SILENT_STEPS = 32
# Prompt tokens that one pass reads: attention scores of 8 prompts of 1024 tokens take 400 MB with 12 heads.
PROMPT_TOKENS = 8192


@dataclasses.dataclass(frozen=True)
class Completion:
    """A finished text.

    Attributes:
        text: the new text, without the prompt, cut before a stop string; special tokens are not in it.
        token_ids: every new token but a stop token at the end; behind a stop string's cut they say more than `text`.
        finish_reason: "stop" (end-of-text, end of turn, or a stop string) or "length" (max_new_tokens).
        log_probability: the natural log probability that the model itself gives the new tokens, the stop token
            included; temperature, filters and penalties do not change it.
        stop_token: the stop token at the end that `token_ids` leaves out, if there was one.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    log_probability: float
    stop_token: int | None = None


@dataclasses.dataclass(frozen=True)
class TextChunk:
    """A part of a text being written; the last one has the finished `completion`, whose text is all pieces joined."""

    text: str
    completion: Completion | None = None


class SequenceInProgress:
    """One text being written.

    Args:
        prompt: [n] int32, n ≥ 1.
        config: its settings.
        sample: its number among the samples of the prompt.
    """

    def __init__(self, prompt: np.ndarray, config: SamplingConfig, sample: int):
        self.prompt, self.config, self.sample = prompt, config, sample
        self.ids = prompt.tolist()
        self.log_probability = 0.0
        self.stream = StreamingDetokenizer(config.stop)
        self.pieces: list[str] = []
        self.finish_reason: str | None = None

    def remaining(self) -> int:
        """How many tokens may still come."""
        return self.config.max_new_tokens - (len(self.ids) - len(self.prompt))

    def add(self, token: int, log_probability: float, content: bytes, stop_tokens: tuple[int, ...]) -> None:
        """Takes the next token, and ends the row where it must end."""
        self.ids.append(token)
        self.log_probability += log_probability
        # An ordinary token may end a text too, where the model's files say so.
        self.pieces.append(self.stream.add(b"" if token in stop_tokens else content))
        if token in stop_tokens or self.stream.stopped:
            self.finish_reason = "stop"
        elif self.remaining() == 0:
            self.finish_reason = "length"
        if self.finish_reason is not None:
            self.pieces.append(self.stream.end())

    def window(self, context: int) -> np.ndarray:
        """What the model reads for the next token: everything, or from some token on once it is too long."""
        return np.array(self.ids[window_start(len(self.ids), context) :], np.int32)

    def completion(self, stop_tokens: tuple[int, ...]) -> Completion:
        """The finished text."""
        tokens, stop_token = self.ids[len(self.prompt) :], None
        if tokens and tokens[-1] in stop_tokens:
            *tokens, stop_token = tokens
        reason = self.finish_reason or "length"
        return Completion("".join(self.pieces), tokens, reason, self.log_probability, stop_token)


def in_batches(rows: list[SequenceInProgress], batch_size: int) -> Iterator[list[SequenceInProgress]]:
    """Rows, shortest prompt first, in lists of at most `batch_size` rows and about PROMPT_TOKENS padded tokens."""
    batch: list[SequenceInProgress] = []
    for row in rows:
        if batch and (len(batch) >= batch_size or (len(batch) + 1) * len(row.prompt) > PROMPT_TOKENS):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


class Generator:
    """Writes text with a decoder.

    Args:
        decoder: the model; each call reads its weights as they are then.
        tokenizer: its tokenizer.
        stop_ids: what ends a text beside the tokenizer's own `stop_ids`.
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
        # A model may have more rows of logits than its tokenizer has ids; such ids have no bytes.
        unused = decoder.config.vocabulary_size - tokenizer.vocabulary_size
        self.token_bytes = [*tokenizer.token_bytes(), *[b""] * unused]
        self.decoding = CompiledDecodeFunctions(decoder, self.stop_tokens)

    @classmethod
    def load(cls, directory: str | os.PathLike, dtype: str | None = None) -> Generator:
        """Reads a model directory (`config.json`, `model.safetensors`, `tokenizer.json`, `generation_config.json`).

        Args:
            directory: the model directory.
            dtype: weights and computation, "float32" or "bfloat16"; None for Keras's default.

        Raises:
            UserError: something is missing or damaged; the line names it.
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
        """Texts for each prompt.

        A text depends on its prompt, its settings, its seed and its sample number only, not on what else is in the
        batch.

        Args:
            prompts: texts, or ids [n] that are taken as they are.
            sampling: settings for all, or one for each prompt.
            batch_size: the most rows to write at a time; long prompts make it fewer.
            steps: tokens to write between looks at the text; None chooses.

        Returns:
            For each prompt `num_samples` completions; with beams, best first.

        Raises:
            UserError: a prompt is longer than the context, or with beams does not leave room in it.
        """
        configs = [sampling] * len(prompts) if isinstance(sampling, SamplingConfig) else list(sampling)
        encoded = [
            encode_prompt(self.tokenizer, prompt, config.add_end_of_text)
            for prompt, config in zip(prompts, configs, strict=True)
        ]
        check_lengths(encoded, self.context)
        found: list[list[Completion]] = [[] for _ in prompts]
        rows: list[tuple[int, SequenceInProgress]] = []
        for number, (prompt, config) in enumerate(zip(encoded, configs)):
            if config.num_beams > 1:
                found[number] = self._beam_search(prompt, config)
            else:
                rows += [(number, SequenceInProgress(prompt, config, sample)) for sample in range(config.num_samples)]
        # Rows of like length together need little padding.
        by_length = sorted((row for _, row in rows), key=lambda row: len(row.prompt))
        for batch in in_batches(by_length, batch_size):
            for _ in self._write(batch, steps):
                pass
        for number, row in rows:
            found[number].append(row.completion(self.stop_tokens))
        return found

    def stream(
        self, prompt: str | np.ndarray, sampling: SamplingConfig, *, steps: int | None = None
    ) -> Iterator[TextChunk]:
        """One text as it is written, in whole characters.

        Args:
            prompt: text, or ids [n].
            sampling: the settings; `num_samples` must be 1. With beams the text comes in one piece.
            steps: tokens to write between pieces; None for a few.

        Yields:
            Pieces; the last one has the completion.
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
        given = 0
        for _ in self._write([row], steps or STREAMING_STEPS):
            text, given = "".join(row.pieces[given:]), len(row.pieces)
            if row.finish_reason is not None:
                yield TextChunk(text, row.completion(self.stop_tokens))
            elif text:
                yield TextChunk(text)

    def _write(self, rows: list[SequenceInProgress], steps: int | None) -> Iterator[None]:
        """Writes all rows to their ends; comes back after each look at the text."""
        steps = steps or (STREAMING_STEPS if any(row.config.stop for row in rows) else SILENT_STEPS)
        while rows:
            batch = DecodeBatch(self, rows)
            yield
            while batch.drop_finished() and batch.room() > 0:
                batch.advance(min(steps, batch.room()))
                yield
            rows = batch.rows

    def _beam_search(self, prompt: np.ndarray, config: SamplingConfig) -> list[Completion]:
        """The `num_samples` best texts for one prompt, best first."""
        if len(prompt) + config.max_new_tokens > self.context:
            raise UserError(
                f"--max_new_tokens: {config.max_new_tokens} tokens behind a prompt of {len(prompt)} do not fit in the "
                f"model's {self.context}, and beams cannot go beyond; at most {self.context - len(prompt)}"
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
        seen = self._seen([prompt.tolist()] * config.num_beams, [config])
        for slot in range(config.max_new_tokens):
            candidates = self.decoding.beam_candidates(logits, [beams.scores()], seen, config.repetition_penalty)
            beams.advance(*(part.numpy()[0] for part in candidates))
            if beams.done():
                break
            parents, tokens = beams.parent_places(), beams.last_tokens()
            logits, cache = self.decoding.beam_step(past, cache, slot, parents, tokens)
            seen = seen[parents]
            if seen.size:
                seen[range(config.num_beams), tokens] = True
        return [self._beam_completion(text, config) for text in beams.finished[: config.num_samples]]

    def _beam_completion(self, text: Finished, config: SamplingConfig) -> Completion:
        tokens = text.beam.tokens()
        if tokens[-1] in self.stop_tokens:
            tokens.pop()
        written = text_of([self.token_bytes[token] for token in tokens], config.stop)
        return Completion(written, tokens, text.finish_reason, text.beam.log_probability)

    def _seen(self, texts: Sequence[Sequence[int]], configs: Sequence[SamplingConfig]) -> np.ndarray:
        """[texts, vocabulary] bool: the tokens of each text; without columns where nobody asks."""
        if all(config.repetition_penalty == 1 for config in configs):
            return np.zeros([len(texts), 0], bool)
        seen = np.zeros([len(texts), self.decoder.config.vocabulary_size], bool)
        for row, tokens in zip(seen, texts):
            row[list(tokens)] = True
        return seen


class DecodeBatch:
    """Rows that share a cache, from the pass over what they have until one of them has filled its context.

    Args:
        generator: whose graphs and tokens are used.
        rows: the unfinished rows; each receives its next token at once.
    """

    def __init__(self, generator: Generator, rows: list[SequenceInProgress]):
        self.generator, self.decoding, self.rows = generator, generator.decoding, rows
        windows = [row.window(generator.context) for row in rows]
        # Samples of one prompt start from one row of the prompt pass.
        distinct = {window.tobytes(): window for window in windows}
        places = {content: place for place, content in enumerate(distinct)}
        token_ids, lengths = padded_left(list(distinct.values()))
        rows_of = np.array([places[window.tobytes()] for window in windows], np.int32)
        logits, self.cache = self.decoding.prefill(token_ids, lengths)
        if len(distinct) < len(rows):
            logits, self.cache = tf.gather(logits, rows_of), self.decoding.take_rows(self.cache, rows_of)
        self.slots = token_ids.shape[1]
        self.padding = (self.slots - lengths)[rows_of]
        tokens, log_probabilities = choose(logits, self.parameters(), self.seen(), self.positions())
        self.take(tokens.numpy()[:, None], log_probabilities.numpy()[:, None])

    def parameters(self) -> SamplingParameters:
        """How the rows are sampled."""
        return SamplingParameters.of([(row.config, row.sample) for row in self.rows])

    def positions(self) -> np.ndarray:
        """[rows] int32: how many tokens stand before each row's next one."""
        return np.array([len(row.ids) for row in self.rows], np.int32)

    def seen(self) -> np.ndarray:
        """As `Generator._seen`."""
        return self.generator._seen([row.ids for row in self.rows], [row.config for row in self.rows])

    def take(self, tokens: np.ndarray, log_probabilities: np.ndarray) -> None:
        """Gives each row its new tokens, [rows, steps], until it ends."""
        for row, row_tokens, row_log_probabilities in zip(self.rows, tokens.tolist(), log_probabilities.tolist()):
            for token, log_probability in zip(row_tokens, row_log_probabilities):
                row.add(token, log_probability, self.generator.token_bytes[token], self.generator.stop_tokens)
                if row.finish_reason is not None:
                    break

    def drop_finished(self) -> bool:
        """Leaves finished rows out from now on; whether any row is left."""
        live = [number for number, row in enumerate(self.rows) if row.finish_reason is None]
        if live and len(live) < len(self.rows):
            self.cache = self.decoding.take_rows(self.cache, live)
            self.padding = self.padding[live]
        self.rows = [self.rows[number] for number in live]
        return bool(live)

    def room(self) -> int:
        """How many tokens every row can still read within the model's context."""
        return int(self.generator.context - self.slots + self.padding.min())

    def advance(self, steps: int) -> None:
        """Writes up to `steps` tokens more, at most `room()`."""
        remaining = [row.remaining() for row in self.rows]
        steps = min(steps, max(remaining))
        last = [row.ids[-1] for row in self.rows]
        tokens, log_probabilities, self.cache = self.decoding.steps(
            self.cache, self.padding, last, self.positions(), remaining, self.parameters(), self.seen(), steps
        )
        self.slots += steps
        self.take(tokens.numpy(), log_probabilities.numpy())
