"""Losses of pairs of answers, as functions of log probabilities.

With p the log probability that the model gives an answer and q the one that the reference gives it (sums over the
answer's tokens, or means with length normalization), and d the difference between the chosen and the rejected one:

- dpo: -log sigmoid(beta (d p - d q)), Rafailov et al. 2023 (arXiv:2305.18290, equation 7); with label smoothing e
  (1 - e) of it and e of the swapped one (Mitchell's conservative DPO).
- ipo: (d p - d q - 1 / (2 beta))^2, Azar et al. 2023 (arXiv:2310.12036, equation 17), with means, as trl has it.
- orpo: -p chosen - beta log sigmoid(log odds), odds e^p / (1 - e^p), Hong et al. 2024 (arXiv:2403.07691, equations 4
  to 7), with means. No reference.
- simpo: -log sigmoid(beta d p - margin), Meng et al. 2024 (arXiv:2405.14734, equation 6), with means. No reference.
"""

from __future__ import annotations

import tensorflow as tf

from tfgpt.training.objective_config import PreferenceConfig

WITH_REFERENCE = ("dpo", "ipo")


def normalizes_length(objective: str, config: PreferenceConfig) -> bool:
    """Returns whether log probabilities are means over an answer's tokens."""
    chosen = config.preference_length_normalization
    return objective != "dpo" if chosen is None else chosen


def pair_losses(
    objective: str, config: PreferenceConfig, policy: tf.Tensor, reference: tf.Tensor | None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the loss and the implicit rewards of each pair.

    Args:
        objective: dpo, ipo, orpo or simpo.
        config: the settings.
        policy: [pairs, 2] float32, log probabilities of the chosen and the rejected answer, sums or means.
        reference: the same by the reference model; None for orpo and simpo.

    Returns:
        [pairs] and [pairs, 2], float32: rewards are beta (p - q), or beta p without reference (as trl logs them).
    """
    beta = config.preference_beta
    scores = policy if reference is None else policy - reference
    difference = scores[:, 0] - scores[:, 1]
    rewards = beta * scores
    if objective == "ipo":
        return tf.square(difference - 1.0 / (2.0 * beta)), rewards
    if objective == "orpo":
        log_odds = policy - log_of_one_minus_exp(policy)
        odds_ratio = log_odds[:, 0] - log_odds[:, 1]
        return -policy[:, 0] - beta * tf.math.log_sigmoid(odds_ratio), rewards
    logits = beta * difference - (config.preference_margin if objective == "simpo" else 0.0)
    smoothing = config.preference_label_smoothing
    losses = -(1.0 - smoothing) * tf.math.log_sigmoid(logits) - smoothing * tf.math.log_sigmoid(-logits)
    return losses, rewards


def log_of_one_minus_exp(values: tf.Tensor) -> tf.Tensor:
    """Returns log(1 - e^x) for x < 0, exact near 0 and far from it (Mächler 2012)."""
    values = tf.minimum(values, -1e-7)
    near = values > -0.6931472
    # Each branch gets arguments for which it is finite: the gradient of the branch not taken counts as well.
    first = tf.math.log(-tf.math.expm1(tf.where(near, values, -0.6931472)))
    second = tf.math.log1p(-tf.exp(tf.where(near, -0.6931472, values)))
    return tf.where(near, first, second)
