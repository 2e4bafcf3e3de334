"""Training objectives: from a decoder and a batch to sums of losses over its tokens.

An objective returns sums, never means: the step adds them over micro-batches and replicas and divides once, by the
global sum of weights, so that neither accumulation nor ragged weights nor the number of replicas changes the result.

The cross-entropy is taken with the output head in one go, chunk by chunk, so that the logits of all tokens never exist
at once. Because the loss is a plain weighted sum, the gradients of the hidden states and of the head are known as soon
as a chunk's logits are, and are computed then: no logits are kept or recomputed for the backward pass. (The idea is
Liger Kernel's fused linear cross-entropy, arXiv:2410.10989.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tfgpt.model.cost import automatic_chunk_tokens

MODEL_INPUTS = ("token_ids", "positions", "segment_ids")


class CausalLanguageModelingLoss:
    """Predict the next token: cross-entropy of `targets`, weighted by `weights`.

    Args:
        label_smoothing: probability spread evenly over the vocabulary in the training target (arXiv:1512.00567).
        z_loss: factor on the squared log of the softmax's denominator (arXiv:2204.02311, section 5).
        chunk_tokens: tokens whose logits exist at once; 0: by the size of the vocabulary.
    """

    unit = "token"
    means: tuple[str, ...] = ()

    def __init__(self, label_smoothing: float = 0.0, z_loss: float = 0.0, chunk_tokens: int = 0):
        self.label_smoothing = label_smoothing
        self.z_loss = z_loss
        self.chunk_tokens = chunk_tokens

    def __call__(
        self,
        decoder: Any,
        batch: Mapping[str, tf.Tensor],
        training: bool,
        token_byte_lengths: tf.Tensor | None = None,
    ) -> dict[str, tf.Tensor]:
        """The sums of one batch.

        Args:
            decoder: a `tfgpt.model.decoder.Decoder`.
            batch: `token_ids`, `targets` [B, T] int32, `weights` [B, T] float32, and where the decoder is packed
                `positions` and `segment_ids` [B, T] int32.
            training: dropout is on and `loss_sum` can be differentiated; otherwise there is more to read.
            token_byte_lengths: [V] int32, the bytes of each token's text, 0 for special tokens; for `bytes_sum`.

        Returns:
            float32 scalars: `loss_sum`, the objective; `nll_sum`, the cross-entropy without smoothing and z-loss;
            `weight_sum`. Without `training` also `correct_sum`, the weight of the tokens that were the model's first
            guess; with `token_byte_lengths` also `bytes_sum` and `text_nll_sum`, the bytes and nll of the targets
            that are text (byte length above 0): what bits per byte is made of, counted as nanochat's
            `loss_eval.evaluate_bpb` does.
        """
        hidden = decoder.backbone({name: batch[name] for name in decoder.backbone.input}, training=training)
        width, vocabulary_size = hidden.shape[-1], decoder.config.vocabulary_size
        hidden = tf.reshape(hidden, [-1, width])
        targets, weights = tf.reshape(batch["targets"], [-1]), tf.reshape(batch["weights"], [-1])
        head = FusedLinearCrossEntropy(
            self.label_smoothing,
            self.z_loss,
            decoder.config.logit_soft_cap,
            self.chunk_tokens or automatic_chunk_tokens(hidden.shape[0], vocabulary_size),
            frozen_head=not decoder.output_variable.trainable,
        )
        weight_sum = tf.reduce_sum(weights)
        if training:
            loss_sum, nll_sum = head.differentiable(hidden, decoder.output_weights(), targets, weights)
            return {"loss_sum": loss_sum, "nll_sum": nll_sum, "weight_sum": weight_sum}
        losses, nll, correct = head.by_token(hidden, decoder.output_weights(), targets)
        sums = {
            "loss_sum": tf.reduce_sum(losses * weights),
            "nll_sum": tf.reduce_sum(nll * weights),
            "weight_sum": weight_sum,
            "correct_sum": tf.reduce_sum(correct * weights),
        }
        if token_byte_lengths is not None:
            lengths = tf.cast(tf.gather(token_byte_lengths, targets), tf.float32)
            sums["bytes_sum"] = tf.reduce_sum(lengths * weights)
            sums["text_nll_sum"] = tf.reduce_sum(tf.where(lengths > 0, nll * weights, 0.0))
        return sums


class FusedLinearCrossEntropy:
    """Cross-entropy of the softmax of `hidden · head`, for N tokens of width D and V classes, in chunks of rows.

    With `l` a token's logits (after the soft cap), `y` its target, `ε` the smoothing and `ζ` the z-loss factor, its
    loss is `logsumexp(l) - (1 - ε) l[y] - ε mean(l) + ζ logsumexp(l)²`, and its gradient in `l`
    `(1 + 2 ζ logsumexp(l)) softmax(l) - (1 - ε) onehot(y) - ε / V`.

    Args:
        label_smoothing: ε.
        z_loss: ζ.
        soft_cap: logits are `cap * tanh(logits / cap)`; None: as they are.
        chunk_tokens: rows of a chunk.
        frozen_head: the head is not trained, and its gradient is not computed.
    """

    def __init__(
        self,
        label_smoothing: float,
        z_loss: float,
        soft_cap: float | None,
        chunk_tokens: int,
        frozen_head: bool = False,
    ):
        self.label_smoothing = label_smoothing
        self.z_loss = z_loss
        self.soft_cap = soft_cap
        self.chunk_tokens = chunk_tokens
        self.frozen_head = frozen_head

    def differentiable(
        self, hidden: tf.Tensor, head: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Weighted sums of the loss and of the plain cross-entropy; gradients flow from the first only.

        Args:
            hidden: [N, D], compute dtype.
            head: [V, D].
            targets: [N] int32.
            weights: [N] float32.
        """

        @tf.custom_gradient
        def sums(hidden: tf.Tensor, head: tf.Tensor):
            loss_sum, nll_sum, hidden_gradient, head_gradient = self.sums_and_gradients(hidden, head, targets, weights)

            def gradient(upstream: tf.Tensor, _: tf.Tensor):
                return (
                    hidden_gradient * tf.cast(upstream, hidden.dtype),
                    None
                    if head_gradient is None
                    else tf.cast(head_gradient * tf.cast(upstream, head_gradient.dtype), head.dtype),
                )

            return (loss_sum, nll_sum), gradient

        return sums(hidden, head)

    def differentiable_by_token(self, hidden: tf.Tensor, head: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        """Each token's plain cross-entropy, [N] float32, for losses that are no weighted sum of it.

        How much a token counts is known in the backward pass only, which computes the logits once more.

        Args:
            hidden, head, targets: as `differentiable`'s.
        """

        @tf.custom_gradient
        def nll(hidden: tf.Tensor, head: tf.Tensor):
            def gradient(upstream: tf.Tensor):
                _, _, hidden_gradient, head_gradient = self.sums_and_gradients(hidden, head, targets, upstream)
                return hidden_gradient, None if head_gradient is None else tf.cast(head_gradient, head.dtype)

            return self.by_token(hidden, head, targets)[1], gradient

        return nll(hidden, head)

    def sums_and_gradients(self, hidden, head, targets, weights):
        """The two sums, d loss_sum / d hidden [N, D] and d loss_sum / d head [V, D] (None when the head is frozen)."""
        matrix = tf.cast(head, hidden.dtype)
        chunks = self.chunked(hidden, targets, weights)
        if chunks is None:
            return self.chunk_sums_and_gradients(hidden, matrix, targets, weights)
        count, (hidden_chunks, target_chunks, weight_chunks) = chunks

        def body(index, loss_sum, nll_sum, hidden_gradients, head_gradient):
            loss, nll, chunk_gradient, addend = self.chunk_sums_and_gradients(
                hidden_chunks[index], matrix, target_chunks[index], weight_chunks[index]
            )
            hidden_gradients = hidden_gradients.write(index, chunk_gradient)
            if addend is not None:
                head_gradient += addend
            return index + 1, loss_sum + loss, nll_sum + nll, hidden_gradients, head_gradient

        start = (
            tf.zeros((), tf.int32),
            tf.zeros(()),
            tf.zeros(()),
            tf.TensorArray(hidden.dtype, count, element_shape=[self.chunk_tokens, hidden.shape[1]]),
            tf.zeros([] if self.frozen_head else head.shape, tf.float32),
        )
        _, loss_sum, nll_sum, hidden_gradients, head_gradient = tf.while_loop(
            lambda index, *_: index < count, body, start, parallel_iterations=1, maximum_iterations=count
        )
        hidden_gradient = tf.reshape(hidden_gradients.stack(), [-1, hidden.shape[1]])[: tf.shape(hidden)[0]]
        head_gradient = None if self.frozen_head else head_gradient
        return loss_sum, nll_sum, tf.ensure_shape(hidden_gradient, hidden.shape), head_gradient

    def chunk_sums_and_gradients(self, hidden, matrix, targets, weights):
        """`sums_and_gradients` of rows whose logits fit."""
        logits, slope = self.logits(hidden, matrix)
        # TensorFlow's kernel gives softmax - onehot beside the loss, in one pass.
        nll, gradient = tf.raw_ops.SparseSoftmaxCrossEntropyWithLogits(features=logits, labels=targets)
        losses = nll
        if self.label_smoothing or self.z_loss:
            chosen = tf.gather(logits, targets, batch_dims=1)
            log_normalizer = nll + chosen
            losses = self.objective(nll, chosen, log_normalizer, logits)
            factor = 2.0 * self.z_loss * log_normalizer
            onehot = tf.one_hot(targets, logits.shape[-1], dtype=tf.float32)
            gradient = (
                gradient * (1.0 + factor)[:, tf.newaxis]
                + onehot * (factor + self.label_smoothing)[:, tf.newaxis]
                - self.label_smoothing / logits.shape[-1]
            )
        gradient *= weights[:, tf.newaxis]
        if slope is not None:
            gradient *= slope
        gradient = tf.cast(gradient, hidden.dtype)  # (rows, V)
        return (
            tf.reduce_sum(losses * weights),
            tf.reduce_sum(nll * weights),
            tf.matmul(gradient, matrix),
            None if self.frozen_head else tf.cast(tf.matmul(gradient, hidden, transpose_a=True), tf.float32),
        )

    def by_token(self, hidden: tf.Tensor, head: tf.Tensor, targets: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Each token's loss, plain cross-entropy and whether it was the first guess (1 or 0): three [N] float32."""
        matrix = tf.cast(head, hidden.dtype)
        chunks = self.chunked(hidden, targets)
        if chunks is None:
            return self.chunk_by_token(hidden, matrix, targets)
        tokens = tf.shape(targets)[0]
        columns = tf.map_fn(
            lambda rows: self.chunk_by_token(rows[0], matrix, rows[1]),
            chunks[1],
            fn_output_signature=(tf.float32,) * 3,
            parallel_iterations=1,
        )
        return tuple(tf.reshape(column, [-1])[:tokens] for column in columns)

    def chunk_by_token(self, hidden, matrix, targets):
        """`by_token` of rows whose logits fit."""
        logits, _ = self.logits(hidden, matrix)
        nll = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)
        losses = nll
        if self.label_smoothing or self.z_loss:
            chosen = tf.gather(logits, targets, batch_dims=1)
            losses = self.objective(nll, chosen, nll + chosen, logits)
        correct = tf.cast(tf.equal(tf.argmax(logits, -1, output_type=targets.dtype), targets), tf.float32)
        return losses, nll, correct

    def logits(self, hidden, matrix):
        """Logits [rows, V] float32, and the soft cap's derivative or None."""
        logits = tf.cast(tf.matmul(hidden, matrix, transpose_b=True), tf.float32)
        if not self.soft_cap:
            return logits, None
        squashed = tf.tanh(logits / self.soft_cap)
        return self.soft_cap * squashed, 1.0 - tf.square(squashed)

    def objective(self, nll, chosen, log_normalizer, logits):
        """The loss of each row, [rows]."""
        smoothing = self.label_smoothing * (chosen - tf.reduce_mean(logits, -1)) if self.label_smoothing else 0.0
        return nll + smoothing + self.z_loss * tf.square(log_normalizer)

    def chunked(self, hidden, *columns):
        """(number of chunks, tensors cut to [chunks, chunk_tokens, …]), or None when one chunk holds all rows.

        The last chunk is filled with zeros; their weights are zero too.
        """
        rows = hidden.shape[0]
        if rows is not None and rows <= self.chunk_tokens:
            return None
        size = tf.shape(hidden)[0] if rows is None else rows
        count = -(-size // self.chunk_tokens)
        missing = count * self.chunk_tokens - size

        def cut(tensor):
            padded = tf.pad(tensor, [[0, missing]] + [[0, 0]] * (len(tensor.shape) - 1))
            return tf.reshape(padded, [count, self.chunk_tokens, *tensor.shape[1:]])

        return count, tuple(cut(tensor) for tensor in (hidden, *columns))
