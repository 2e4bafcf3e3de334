"""Loss functions: from a decoder and a batch to sums of losses over its tokens.

A loss function returns sums, never means: the step adds them over micro-batches and replicas and divides once by the
global sum of weights, so that accumulation, ragged weights and the number of replicas do not change the result.

The cross-entropy is fused with the output head and computed in chunks of rows, so that the logits of all tokens never
exist at once. The loss is a weighted sum, so the gradients of hidden states and head are known, and computed, as soon
as a chunk's logits are: the backward pass keeps or recomputes no logits (Liger Kernel's fused linear cross-entropy,
arXiv:2410.10989).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tfgpt.model.cost import automatic_chunk_tokens


class CausalLanguageModelingLoss:
    """Cross-entropy of the next tokens, `targets`, weighted by `weights`.

    Args:
        label_smoothing: probability spread evenly over the vocabulary in the training target (arXiv:1512.00567).
        z_loss: factor on the squared log of the softmax's denominator (arXiv:2204.02311, section 5).
        chunk_tokens: tokens whose logits exist at once; 0: by the size of the vocabulary.

    Example:

    >>> from tfgpt.model.config import DecoderConfig
    >>> from tfgpt.model.decoder import Decoder
    >>> shape = {"vocabulary_size": 8, "num_layers": 1, "hidden_dim": 8, "num_query_heads": 2}
    >>> decoder = Decoder(DecoderConfig(**shape, max_sequence_length=4))
    >>> ids = tf.zeros([2, 4], "int32")
    >>> batch = {"token_ids": ids, "targets": ids, "weights": tf.ones([2, 4])}
    >>> float(CausalLanguageModelingLoss()(decoder, batch, training=False)["weight_sum"])
    8.0
    """

    means: tuple[str, ...] = ()

    def __init__(self, label_smoothing: float = 0.0, z_loss: float = 0.0, chunk_tokens: int = 0):
        self.label_smoothing = label_smoothing
        self.z_loss = z_loss
        self.chunk_tokens = chunk_tokens

    def __call__(
        self, decoder: Any, batch: Mapping[str, tf.Tensor], training: bool, token_byte_lengths: tf.Tensor | None = None
    ) -> dict[str, tf.Tensor]:
        """Returns the sums of one batch.

        Args:
            batch: `token_ids`, `targets` [B, T] int32, `weights` [B, T] float32, and where the decoder is packed
                `positions` and `segment_ids` [B, T] int32.
            training: whether dropout is on and `loss_sum` can be differentiated; otherwise there are more sums.
            token_byte_lengths: [V] int32, the bytes of each token's text, 0 for special tokens; for `bytes_sum`.

        Returns:
            float32 scalars: `loss_sum`, the loss; `nll_sum`, the cross-entropy without smoothing and z-loss;
            `weight_sum`. Without `training` also `correct_sum`, the weight of the tokens that were the model's first
            guess; with `token_byte_lengths` also `bytes_sum` and `text_nll_sum`, the bytes and NLL of the targets
            with a byte length above 0, for bits per byte as in nanochat's `loss_eval.evaluate_bpb`.
        """
        hidden = decoder.backbone({name: batch[name] for name in decoder.backbone.input}, training=training)
        hidden = tf.reshape(hidden, [-1, hidden.shape[-1]])
        targets, weights = tf.reshape(batch["targets"], [-1]), tf.reshape(batch["weights"], [-1])
        head = FusedLinearCrossEntropy(
            self.label_smoothing,
            self.z_loss,
            decoder.config.logit_soft_cap,
            self.chunk_tokens or automatic_chunk_tokens(hidden.shape[0], decoder.config.vocabulary_size),
            frozen_head=not decoder.output_variable.trainable,
        )
        weight_sum = tf.reduce_sum(weights)
        if training:
            loss_sum, nll_sum = head.loss_sums(hidden, decoder.output_weights(), targets, weights)
            return {"loss_sum": loss_sum, "nll_sum": nll_sum, "weight_sum": weight_sum}
        losses, nll, correct = head.per_token(hidden, decoder.output_weights(), targets)
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
    loss is `logsumexp(l) - (1 - ε) l[y] - ε mean(l) + ζ logsumexp(l)²`.

    Args:
        label_smoothing: ε.
        z_loss: ζ.
        soft_cap: logits are `cap * tanh(logits / cap)`; None: unchanged.
        chunk_tokens: rows of a chunk.
        frozen_head: whether the head is not trained, so that its gradient is not computed.

    Example:

    >>> cross_entropy = FusedLinearCrossEntropy(0.0, 0.0, soft_cap=None, chunk_tokens=2)
    >>> losses, nll, correct = cross_entropy.per_token(tf.ones([3, 2]), tf.eye(2), tf.constant([0, 1, 0]))
    >>> [round(value, 4) for value in losses.numpy().tolist()]
    [0.6931, 0.6931, 0.6931]
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

    def loss_sums(
        self, hidden: tf.Tensor, head: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns weighted sums of the loss and of the plain cross-entropy; only the first has gradients.

        Args:
            hidden: [N, D], compute dtype.
            head: [V, D].
            targets: [N] int32.
            weights: [N] float32.
        """

        @tf.custom_gradient
        def sums(hidden: tf.Tensor, head: tf.Tensor):
            *sums, hidden_gradient, head_gradient = self.forward_and_backward(hidden, head, targets, weights)

            def gradient(upstream: tf.Tensor, _: tf.Tensor):
                for_hidden = hidden_gradient * tf.cast(upstream, hidden.dtype)
                return for_hidden, None if head_gradient is None else tf.cast(head_gradient * upstream, head.dtype)

            return tuple(sums), gradient

        return sums(hidden, head)

    def per_token_nll(self, hidden: tf.Tensor, head: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        """Returns the plain cross-entropy of each token, [N] float32, for losses that are not a weighted sum of it.

        The weight of a token is only known in the backward pass, which computes the logits again. Arguments are those
        of `loss_sums`.
        """

        @tf.custom_gradient
        def nll(hidden: tf.Tensor, head: tf.Tensor):
            def gradient(upstream: tf.Tensor):
                _, _, hidden_gradient, head_gradient = self.forward_and_backward(hidden, head, targets, upstream)
                return hidden_gradient, None if head_gradient is None else tf.cast(head_gradient, head.dtype)

            return self.per_token(hidden, head, targets)[1], gradient

        return nll(hidden, head)

    def forward_and_backward(self, hidden, head, targets, weights):
        """Returns loss sum, NLL sum, d loss / d hidden [N, D] and d loss / d head [V, D] (None when it is frozen)."""
        matrix = tf.cast(head, hidden.dtype)
        chunks = self.chunked(hidden, targets, weights)
        if chunks is None:
            return self.chunk_forward_and_backward(hidden, matrix, targets, weights)
        count, (hidden_chunks, target_chunks, weight_chunks) = chunks

        def body(index, loss_sum, nll_sum, hidden_gradients, head_gradient):
            loss, nll, chunk_gradient, addend = self.chunk_forward_and_backward(
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

    def chunk_forward_and_backward(self, hidden, matrix, targets, weights):
        with tf.GradientTape() as tape:
            products = tf.cast(tf.matmul(hidden, matrix, transpose_b=True), tf.float32)  # (rows, V)
            tape.watch(products)
            losses, nll, _ = self.row_losses(products, targets)
            loss_sum = tf.reduce_sum(losses * weights)
        gradient = tf.cast(tape.gradient(loss_sum, products), hidden.dtype)
        head_gradient = None
        if not self.frozen_head:
            head_gradient = tf.cast(tf.matmul(gradient, hidden, transpose_a=True), tf.float32)
        return loss_sum, tf.reduce_sum(nll * weights), tf.matmul(gradient, matrix), head_gradient

    def per_token(self, hidden: tf.Tensor, head: tf.Tensor, targets: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Returns loss, plain cross-entropy and 1 for a right first guess (else 0) of each token: three [N] float32."""
        matrix = tf.cast(head, hidden.dtype)
        chunks = self.chunked(hidden, targets)
        if chunks is None:
            return self.chunk_per_token(hidden, matrix, targets)
        tokens = tf.shape(targets)[0]
        columns = tf.map_fn(
            lambda rows: self.chunk_per_token(rows[0], matrix, rows[1]),
            chunks[1],
            fn_output_signature=(tf.float32,) * 3,
            parallel_iterations=1,
        )
        return tuple(tf.reshape(column, [-1])[:tokens] for column in columns)

    def chunk_per_token(self, hidden, matrix, targets):
        products = tf.cast(tf.matmul(hidden, matrix, transpose_b=True), tf.float32)
        losses, nll, logits = self.row_losses(products, targets)
        correct = tf.cast(tf.equal(tf.argmax(logits, -1, output_type=targets.dtype), targets), tf.float32)
        return losses, nll, correct

    def row_losses(self, products, targets):
        """Returns losses [rows], plain cross-entropy [rows] and logits [rows, V], given `hidden · head`."""
        logits = self.soft_cap * tf.tanh(products / self.soft_cap) if self.soft_cap else products
        nll = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)
        losses = nll
        if self.label_smoothing or self.z_loss:
            log_normalizer = tf.reduce_logsumexp(logits, -1)
            losses += self.z_loss * tf.square(log_normalizer)
            # The logit of the target is log_normalizer - nll.
            losses += self.label_smoothing * (log_normalizer - nll - tf.reduce_mean(logits, -1))
        return losses, nll, logits

    def chunked(self, hidden, *columns):
        """Returns the number of chunks and the tensors as [chunks, chunk_tokens, …]; None if one chunk holds all rows.

        The last chunk is padded with zeros, whose weights are zero too.
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
