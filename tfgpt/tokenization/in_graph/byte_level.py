"""The tokenizer as TensorFlow operations: text in, ids out, inside a SavedModel, equal to the other encoders.

Only core operations are used (no custom library has to be loaded by a server), there is no state and no cache, and
memory is linear in the bytes of a batch: 70 bytes a byte of text at its peak, so a server should bound what it
accepts. 1.5 MB a CPU-second, 1.5 ms for a prompt of 100 bytes (vocabulary of 4096, 2 cores). Every step works on the
flat bytes of the whole batch at once:

1. bytes → characters: which byte starts a well-formed UTF-8 sequence, and its code point (`CharacterSplitter`);
2. characters → pre-tokens: the exact vectorised form of `pretokenizer.PATTERN` (`pre_token_starts`);
3. BPE: in each round every pre-token joins all occurrences of its lowest-ranked pair; pre-tokens that are done leave
   (`BytePairMerger`). A pre-token has at most 4 × `MAXIMUM_RUN` bytes and a space, which bounds the rounds.

Pretrained models' tokenizers cut differently (`in_graph.pretokenizers`), and their pre-tokens have no bound: a text
that is one word of 30,000 letters takes seconds.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
import tiktoken
import tokenizers

from tfgpt.common.errors import UserError
from tfgpt.tokenization.in_graph.added_tokens import AddedTokens
from tfgpt.tokenization.in_graph.ignore_merges import IgnoreMergesLookup, unmerged_tokens
from tfgpt.tokenization.in_graph.nfc import NFC, RAW, utf8_bytes
from tfgpt.tokenization.in_graph.pretokenizers import (
    INVALID,
    LETTER,
    NOTHING,
    NUMBER,
    OTHER,
    SPACE,
    PretokenizerRules,
    cut_rules,
)
from tfgpt.tokenization.in_graph.pretokenizers import pre_token_starts as foreign_starts
from tfgpt.tokenization.in_graph.vector_ops import flags_at, following, position_in_run, preceding
from tfgpt.tokenization.pretokenizer import MAXIMUM_RUN
from tfgpt.tokenization.tokenizer import Tokenizer

LARGEST_RUN = {OTHER: MAXIMUM_RUN, LETTER: MAXIMUM_RUN, NUMBER: 3, SPACE: MAXIMUM_RUN, INVALID: 1, NOTHING: 1}
"""Characters of a class that one pre-token may hold."""

NO_RANK = np.int32(2**31 - 1)
"""The rank of a pair that no merge joins."""


class InGraphTokenizer(tf.Module):
    """Encodes and decodes batches of strings with core TensorFlow operations.

    Args:
        tokenizer: one of ours, the bytes tokenizer included, or one of the families of `foreign_patterns`.
        name: the module's name.

    Raises:
        UserError: the tokenizer cuts or merges text in a way that these operations do not express.
    """

    def __init__(self, tokenizer: Tokenizer, name: str = "in_graph_tokenizer"):
        super().__init__(name=name)
        reason = tokenizer.why_not_in_graph
        if reason:
            raise UserError(f"{tokenizer.origin}: cannot be run inside the TensorFlow graph: {reason}")
        self._lossy = bool(tokenizer.missing_bytes)
        with tf.device("CPU:0"):
            self._id_of_byte = tf.constant(tokenizer.id_of_byte)
            self._token_bytes = tf.constant(tokenizer.token_bytes(), tf.string)
        added = [token for token in tokenizer.document["added_tokens"] if not token["special"]]
        self._added = AddedTokens([(token["content"].encode(), token["id"]) for token in added]) if added else None
        self._normalizer = NFC() if tokenizer.document.get("normalizer") else None
        self._splitter: CharacterSplitter | None = None
        self._merger: BytePairMerger | None = None
        self._whole_tokens: IgnoreMergesLookup | None = None
        if tokenizer.merges:
            self._splitter = CharacterSplitter(cut_rules(tokenizer.document))
            self._merger = BytePairMerger(tokenizer.merges, tokenizer.vocabulary_size)
            if unmerged := unmerged_tokens(tokenizer):
                self._whole_tokens = IgnoreMergesLookup(unmerged)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def encode(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """The ids of each text, special tokens never among them.

        Args:
            texts: [B] strings, any bytes.

        Returns:
            RaggedTensor [B, (ids)] int32.
        """
        with tf.device("CPU:0"):
            lengths = tf.strings.length(texts)
            contents = tf.cast(tf.io.decode_raw(tf.strings.reduce_join(texts), tf.uint8), tf.int32)  # (T)
            if self._added is not None or self._normalizer is not None:
                return self._pieces_encoded(contents, lengths)
            splits = tf.concat([[0], tf.cumsum(lengths)], 0)  # (B + 1): where each text starts among all bytes
            first = flags_at(tf.boolean_mask(splits[:-1], lengths > 0), tf.size(contents))
            ids = self._ids(contents, first)
            if self._lossy or self._merger is not None:
                kept = ids >= 0
                ids = tf.boolean_mask(ids, kept)
                splits = tf.gather(tf.concat([[0], tf.cumsum(tf.cast(kept, tf.int32))], 0), splits)
            return tf.RaggedTensor.from_row_splits(ids, tf.cast(splits, tf.int64), validate=False)

    def _pieces_encoded(self, contents: tf.Tensor, lengths: tf.Tensor) -> tf.RaggedTensor:
        """As `encode`, for tokenizers that look for tokens in the text, or that normalize it.

        Args:
            contents: [T] int32, the bytes of all texts.
            lengths: [B] int32, how many each has.
        """
        texts = tf.repeat(tf.range(tf.size(lengths)), lengths)  # (T)
        pieces, text_of_piece = texts, tf.range(tf.size(lengths))
        token_pieces, token_ids = tf.zeros([0], tf.int32), tf.zeros([0], tf.int32)
        if self._added is not None:
            pieces, rest, token_pieces, token_ids = self._added(contents, texts)
            text_of_piece = tf.math.segment_max(texts, pieces)
            contents, pieces = tf.boolean_mask(contents, rest), tf.boolean_mask(pieces, rest)
        if self._normalizer is not None:
            code_points, valid, where = characters(contents, pieces != preceding(pieces, 1, filler=-1))
            raw = RAW + tf.gather(contents, where)
            normalized = self._normalizer(tf.where(valid, code_points, raw), tf.gather(pieces, where))
            contents, pieces = utf8_bytes(*normalized)
        ids = self._ids(contents, pieces != preceding(pieces, 1, filler=-1))
        ids, pieces = tf.boolean_mask(ids, ids >= 0), tf.boolean_mask(pieces, ids >= 0)
        order = tf.argsort(tf.concat([pieces, token_pieces], 0), stable=True)
        ids = tf.gather(tf.concat([ids, token_ids], 0), order)
        owner = tf.gather(text_of_piece, tf.gather(tf.concat([pieces, token_pieces], 0), order))
        return tf.RaggedTensor.from_value_rowids(ids, owner, tf.size(lengths), validate=False)

    def _ids(self, contents: tf.Tensor, first: tf.Tensor) -> tf.Tensor:
        """[T] int32: each token's id at its first byte, -1 at its others and at bytes without a token."""
        ids = tf.gather(self._id_of_byte, contents)
        if self._splitter is None:
            return ids
        return self._merged(contents, ids, self._splitter(contents, first))

    def _merged(self, contents: tf.Tensor, ids: tf.Tensor, starts: tf.Tensor) -> tf.Tensor:
        """As `_ids`, from the ids of single bytes and where pre-tokens start."""
        assert self._merger is not None
        words = tf.cumsum(tf.cast(starts, tf.int32)) - 1
        known, left = tf.fill([tf.size(ids)], -1), ids >= 0
        if self._whole_tokens is not None:
            known, found = self._whole_tokens(contents, words)
            left &= ~found
        elif not self._lossy:
            return self._merger(ids, words)
        places = tf.where(left)
        merged = self._merger(tf.gather_nd(ids, places), tf.gather_nd(words, places))
        return tf.tensor_scatter_nd_update(known, places, merged)

    def decode(self, ids: tf.RaggedTensor | tf.Tensor) -> tf.Tensor:
        """The bytes that each row of ids stands for; special tokens, padding among them, stand for nothing.

        Args:
            ids: RaggedTensor [B, (ids)] or tensor [B, T], int32; an id outside the vocabulary raises
                InvalidArgumentError.

        Returns:
            [B] strings, whatever bytes the ids hold (a text cut inside a character is not valid UTF-8).
        """
        with tf.device("CPU:0"):
            return tf.strings.reduce_join(tf.gather(self._token_bytes, ids), axis=-1)


class CharacterSplitter(tf.Module):
    """Cuts the bytes of a batch of texts into pre-tokens.

    Args:
        rules: how a foreign tokenizer cuts; None: as ours.
    """

    def __init__(self, rules: PretokenizerRules | None = None) -> None:
        super().__init__()
        self._rules = rules
        pages, page_of = class_pages(rules is not None and rules.numbers_apart)
        with tf.device("CPU:0"):
            self._pages = tf.constant(pages)
            self._page_of = tf.constant(page_of)
            self._largest_run = tf.constant([LARGEST_RUN[kind] for kind in range(6)])

    def __call__(self, contents: tf.Tensor, first: tf.Tensor) -> tf.Tensor:
        """Which bytes start a pre-token.

        Args:
            contents: [T] int32, the bytes of all texts.
            first: [T] bool, the bytes that start a text.

        Returns:
            [T] bool.
        """
        code_points, valid, where = characters(contents, first)  # from here (C): one entry a character
        first = tf.gather(first, where)
        page = tf.gather(self._page_of, code_points // 256)
        kinds = tf.cast(tf.gather(self._pages, page * 256 + code_points % 256), tf.int32)
        kinds = tf.where(valid, kinds, INVALID)
        if self._rules is None:
            starts = pre_token_starts(code_points, kinds, first, self._largest_run)
        else:
            starts = foreign_starts(code_points, kinds, first, self._rules)
        return flags_at(tf.boolean_mask(where, starts), tf.size(contents))


class BytePairMerger(tf.Module):
    """Byte-pair merging of all pre-tokens of a batch side by side.

    Args:
        merges: (left id, right id, id of the result) in order of rank.
        vocabulary_size: one more than the largest id.
    """

    def __init__(self, merges: Sequence[tuple[int, int, int]], vocabulary_size: int):
        super().__init__()
        left, right, result = np.array(merges, np.int64).T
        keys = left * vocabulary_size + right
        order = np.argsort(keys)
        self._vocabulary_size = vocabulary_size
        with tf.device("CPU:0"):
            self._keys = tf.constant(keys[order])
            self._ranks = tf.constant(order.astype(np.int32))
            self._results = tf.constant(result.astype(np.int32))

    def __call__(self, ids: tf.Tensor, words: tf.Tensor) -> tf.Tensor:
        """Merges within pre-tokens.

        Args:
            ids: [T] int32, the ids of the single bytes.
            words: [T] int32, ascending: the pre-token of each.

        Returns:
            [T] int32: each token's id at its first byte, -1 at its others.
        """
        unfinished = [tf.TensorShape([None])] * 4
        result, *_ = tf.while_loop(
            lambda result, positions, ids, words: tf.size(ids) > 0,
            self._round,
            [ids, tf.range(tf.size(ids)), ids, words],
            shape_invariants=unfinished,
            parallel_iterations=1,
        )
        return result

    def _round(
        self, result: tf.Tensor, positions: tf.Tensor, ids: tf.Tensor, words: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """One merge (of all its occurrences) in every word that still has one; words without any leave.

        Args:
            result: [T] what the merger returns, as far as it is.
            positions: [m] where the tokens of unfinished words start in `result`.
            ids: [m] their ids.
            words: [m] the number of the word that each belongs to, in ascending order.
        """
        starts = words != preceding(words, 1, filler=-1)
        words = tf.cumsum(tf.cast(starts, tf.int32)) - 1  # numbered without gaps
        ranks = self._ranks_with_next(ids, ~following(starts, True))  # (m)
        best = tf.gather(tf.math.segment_min(ranks, words), words)
        joins = (ranks == best) & (ranks != NO_RANK)
        joins &= position_in_run(joins) % 2 == 0  # of "aaaa" join (aa)(aa), not the overlapping pair between
        joined = preceding(joins, 1)
        new = tf.gather(self._results, tf.where(joins, ranks, 0))
        ids = tf.where(joins, new, tf.where(joined, -1, ids))
        changed = joins | joined
        result = tf.tensor_scatter_nd_update(
            result, tf.boolean_mask(positions, changed)[:, None], tf.boolean_mask(ids, changed)
        )
        left = tf.where(~joined & (best != NO_RANK))[:, 0]
        return result, tf.gather(positions, left), tf.gather(ids, left), tf.gather(words, left)

    def _ranks_with_next(self, ids: tf.Tensor, next_in_word: tf.Tensor) -> tf.Tensor:
        """[m] int32: the rank of the merge of each token with the next, NO_RANK where there is none."""
        wide = tf.cast(ids, tf.int64)
        keys = wide * self._vocabulary_size + following(wide, tf.constant(0, tf.int64))
        place = tf.minimum(tf.searchsorted(self._keys, keys), tf.size(self._keys) - 1)
        known = (tf.gather(self._keys, place) == keys) & next_in_word
        return tf.where(known, tf.gather(self._ranks, place), NO_RANK)


def utf8_sequences(contents: tf.Tensor, first: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The well-formed UTF-8 sequences in bytes (The Unicode Standard, table 3-7).

    Args:
        contents: [T] int32 bytes.
        first: [T] bool, where a text starts: no sequence reaches across.

    Returns:
        [T] int32 code points and [T] int32 lengths (1 to 4) of the sequence that starts at a byte; 0 and 0 where none
        does. No two sequences overlap: a byte that starts one is never a continuation.
    """
    ends = following(first, True)
    second = tf.where(ends, 0, following(contents, 0))
    third = tf.where(ends, 0, following(second, 0))
    fourth = tf.where(ends, 0, following(third, 0))
    two, three, four = (
        (contents >= lead) & (contents < next_lead) for lead, next_lead in ((0xC0, 0xE0), (0xE0, 0xF0), (0xF0, 0xF8))
    )
    continued = is_continuation(second)
    continued_twice = continued & is_continuation(third)
    of_two = (contents - 0xC0) * 64 + (second - 0x80)
    of_three = ((contents - 0xE0) * 64 + (second - 0x80)) * 64 + (third - 0x80)
    of_four = (((contents - 0xF0) * 64 + (second - 0x80)) * 64 + (third - 0x80)) * 64 + (fourth - 0x80)
    # The bounds refuse what could be written shorter, the surrogates, and what lies beyond Unicode.
    two &= continued & (of_two >= 0x80)
    three &= continued_twice & (of_three >= 0x800) & ((of_three < 0xD800) | (of_three > 0xDFFF))
    four &= continued_twice & is_continuation(fourth) & (of_four >= 0x10000) & (of_four <= 0x10FFFF)
    one = contents < 0x80
    code_points, lengths = tf.zeros_like(contents), tf.zeros_like(contents)
    for length, (found, value) in enumerate([(one, contents), (two, of_two), (three, of_three), (four, of_four)], 1):
        code_points = tf.where(found, value, code_points)
        lengths = tf.where(found, length, lengths)
    return code_points, lengths


def characters(contents: tf.Tensor, first: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The characters in bytes: well-formed sequences, and each byte that is in none.

    Args:
        contents, first: as `utf8_sequences`'.

    Returns:
        [C] int32 code points, [C] bool whether they are well-formed, [C] int32 where each begins.
    """
    code_points, lengths = utf8_sequences(contents, first)
    covered = preceding(lengths > 1, 1) | preceding(lengths > 2, 2) | preceding(lengths > 3, 3)
    where = tf.cast(tf.where(~covered)[:, 0], tf.int32)
    return tf.gather(code_points, where), tf.gather(lengths > 0, where), where


def is_continuation(contents: tf.Tensor) -> tf.Tensor:
    """Which bytes can only continue a sequence: 80 to BF."""
    return (contents >= 0x80) & (contents < 0xC0)


def pre_token_starts(code_points: tf.Tensor, kinds: tf.Tensor, first: tf.Tensor, largest_run: tf.Tensor) -> tf.Tensor:
    r"""Which characters start a pre-token: `pretokenizer.PATTERN` without a regular expression.

    Why this is exact: between two classes the expression always cuts, except that a letter, number or other sign takes
    a single U+0020 before it. A run of one class is cut every `largest_run` characters from its own start (the space
    that it takes is not counted). White space before something else leaves its last character for itself or for the
    next word: `\s{1,32}(?!\S)` steps back by one exactly when it would reach the end of the run, so a run is cut
    every 32 characters and before its last one; at the end of the text it is not.

    Args:
        code_points: [C] int32.
        kinds: [C] int32 classes.
        first: [C] bool, the characters that start a text.
        largest_run: [6] int32 by class.

    Returns:
        [C] bool.
    """
    before = tf.where(first, NOTHING, preceding(kinds, 1, filler=NOTHING))
    after = tf.where(following(first, True), NOTHING, following(kinds, NOTHING))
    place = position_in_run((kinds == before) & ~first, counted_from_start=True)
    cut = place % tf.gather(largest_run, kinds) == 0
    takes_space = (place == 0) & (preceding(code_points, 1) == 0x20) & (before == SPACE)
    last_space = (after != SPACE) & (after != NOTHING) & (after != INVALID)
    is_space, is_invalid = kinds == SPACE, kinds == INVALID
    return tf.where(is_space, cut | last_space, cut & (is_invalid | ~takes_space))


@functools.cache
def class_pages(digits_step: bool = False) -> tuple[np.ndarray, np.ndarray]:
    r"""The class of every code point, as pages of 256 of which equal ones are kept once.

    The classes are asked of the regular-expression engine itself, and not of Python's `unicodedata`, because versions
    of Unicode differ. (tiktoken's engine is the quick one to ask; that Oniguruma inside `tokenizers` agrees with it on
    every code point is tested.)

    Args:
        digits_step: numbers are what the Digits step of `tokenizers` takes for them; its Unicode is a newer one.

    Returns:
        [pages × 256] uint8 classes and [0x1100] int32 page of each code point's upper bits.
    """
    every_character = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
    ranks = {bytes([byte]): byte for byte in range(256)}
    classes = np.full(0x110000, OTHER, np.uint8)
    for kind, expression in ((LETTER, r"\p{L}+"), (NUMBER, r"\p{N}+"), (SPACE, r"\s+")):
        # An encoding drops what its expression does not match, so what comes out is the class.
        matcher = tiktoken.Encoding("class", pat_str=expression, mergeable_ranks=ranks, special_tokens={})
        members = bytes(matcher.encode_ordinary(every_character)).decode().encode("utf-32-le")
        classes[np.frombuffer(members, np.uint32)] = kind
    if digits_step:
        classes[digits(every_character)] = NUMBER
    pages, page_of = np.unique(classes.reshape(-1, 256), axis=0, return_inverse=True)
    return pages.reshape(-1), page_of.reshape(-1).astype(np.int32)


def digits(characters: str) -> list[int]:
    """The code points that the Digits step of `tokenizers` cuts out."""
    step = tokenizers.pre_tokenizers.Digits(individual_digits=True)
    likely = [piece for piece, _ in step.pre_tokenize_str(characters) if len(piece) == 1]
    # A character between two digits is a piece as well; between letters it is not.
    found = {piece for piece, _ in step.pre_tokenize_str("a".join(["", *likely, ""]))}
    return [ord(character) for character in likely if character in found]
