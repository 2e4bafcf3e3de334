"""SentencePiece models inside the TensorFlow graph, by `tensorflow_text`; and the right operations for a tokenizer."""

from __future__ import annotations

import tensorflow as tf

from tfgpt.common.errors import UserError
from tfgpt.tokenization.in_graph.byte_level import InGraphTokenizer
from tfgpt.tokenization.sentencepiece_tokenizer import SentencePieceTokenizer
from tfgpt.tokenization.tokenizer import Tokenizer


def in_graph_tokenizer(tokenizer: Tokenizer) -> InGraphTokenizer | InGraphSentencePiece:
    """The operations that give a tokenizer's ids.

    Raises:
        UserError: there are none.
    """
    if isinstance(tokenizer, SentencePieceTokenizer):
        return InGraphSentencePiece(tokenizer)
    return InGraphTokenizer(tokenizer)


class InGraphSentencePiece(tf.Module):
    """Encodes and decodes batches of strings as `SentencePieceTokenizer` does; the interface is `InGraphTokenizer`'s.

    A program that loads a SavedModel of it has to have `tensorflow_text`'s operations registered (`import
    tensorflow_text`, or a server that is linked with them, as TensorFlow Serving's images are).

    Args:
        tokenizer: the tokenizer.
        name: the module's name.

    Raises:
        UserError: `tensorflow_text` is not installed.
    """

    def __init__(self, tokenizer: SentencePieceTokenizer, name: str = "in_graph_sentencepiece"):
        super().__init__(name=name)
        try:
            import tensorflow_text
        except ImportError as error:
            raise UserError(
                f"{tokenizer.origin}: a SentencePiece model runs inside a graph by tensorflow-text, which cannot be "
                f"imported here ({error}; there is none for Windows); export it on Linux or macOS"
            ) from None

        with tf.device("CPU:0"):
            self._model = tensorflow_text.SentencepieceTokenizer(model=tokenizer.model, out_type=tf.int32)
            self._token_bytes = tf.constant(tokenizer.token_bytes(), tf.string)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def encode(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """The ids of each text [B] as RaggedTensor [B, (ids)] int32; special tokens are never among them."""
        with tf.device("CPU:0"):
            # As `valid_text`: what is not UTF-8 becomes U+FFFD.
            valid = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="replace", replacement_char=0xFFFD)
            return self._model.tokenize(valid)

    def decode(self, ids: tf.RaggedTensor | tf.Tensor) -> tf.Tensor:
        """The bytes that rows of ids add to a text: [B] strings, with the space that stands before the first word."""
        with tf.device("CPU:0"):
            return tf.strings.reduce_join(tf.gather(self._token_bytes, ids), axis=-1)
