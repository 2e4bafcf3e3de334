"""SentencePiece as TensorFlow operations, and the choice of the operations for a tokenizer."""

from __future__ import annotations

import tensorflow as tf

from tfgpt.common.errors import UserError
from tfgpt.tokenization.in_graph.byte_level import InGraphTokenizer
from tfgpt.tokenization.sentencepiece_tokenizer import SentencePieceTokenizer
from tfgpt.tokenization.tokenizer import Tokenizer


def in_graph_tokenizer(tokenizer: Tokenizer) -> InGraphTokenizer | InGraphSentencePiece:
    """Returns the TensorFlow operations that give the ids of a tokenizer, or raises UserError if there are none."""
    if isinstance(tokenizer, SentencePieceTokenizer):
        return InGraphSentencePiece(tokenizer)
    return InGraphTokenizer(tokenizer)


class InGraphSentencePiece(tf.Module):
    """The interface of `InGraphTokenizer` for a `SentencePieceTokenizer`, with the operations of `tensorflow_text`.

    A program that loads a SavedModel with it needs `import tensorflow_text`, or a server that is linked with the
    operations, such as TensorFlow Serving's images.
    """

    def __init__(self, tokenizer: SentencePieceTokenizer, name: str = "in_graph_sentencepiece"):
        super().__init__(name=name)
        try:
            import tensorflow_text
        except ImportError as error:
            raise UserError(
                f"{tokenizer.origin}: a SentencePiece model in a graph requires tensorflow-text, which cannot be "
                f"imported here ({error}; there is none for Windows); export it on Linux or macOS"
            ) from None

        with tf.device("CPU:0"):
            self._model = tensorflow_text.SentencepieceTokenizer(model=tokenizer.model, out_type=tf.int32)
            self._token_bytes = tf.constant(tokenizer.token_bytes(), tf.string)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def encode(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """Encodes texts [B] to RaggedTensor [B, (ids)] int32, without special tokens."""
        with tf.device("CPU:0"):
            # As in `SentencePieceTokenizer`, bytes that are not UTF-8 become U+FFFD.
            valid = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="replace", replacement_char=0xFFFD)
            return self._model.tokenize(valid)

    def decode(self, ids: tf.RaggedTensor | tf.Tensor) -> tf.Tensor:
        """Decodes rows of ids to [B] strings, including the space before the first word."""
        with tf.device("CPU:0"):
            return tf.strings.reduce_join(tf.gather(self._token_bytes, ids), axis=-1)
