"""The scaling law L(N, D) = E + A / N^a + B / D^b: fit, evaluation, and the best size for a budget.

Hoffmann et al. 2022 ("Chinchilla", arXiv:2203.15556), approach 3. N is the number of parameters, D that of training
tokens; L is the held-out loss in nats per token; a training costs C = 6 N D floating-point operations. No TensorFlow.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from scipy import special
from scipy.optimize import minimize

HUBER_DELTA = 1e-3  # Hoffmann et al., section 3.3
FLOPS_PER_PARAMETER_AND_TOKEN = 6.0


@dataclasses.dataclass(frozen=True)
class ScalingLaw:
    """A fitted law.

    Attributes:
        irreducible: E, in nats per token.
        parameter_factor, parameter_exponent: A and a (the paper's alpha).
        token_factor, token_exponent: B and b (the paper's beta).
    """

    irreducible: float
    parameter_factor: float
    parameter_exponent: float
    token_factor: float
    token_exponent: float

    @property
    def has_optimum(self) -> bool:
        """Returns whether more parameters and more tokens lower the loss."""
        return self.parameter_exponent > 0 and self.token_exponent > 0

    def loss(self, parameters: float, tokens: float) -> float:
        """Returns the expected loss in nats per token."""
        by_size = self.parameter_factor * parameters**-self.parameter_exponent
        return self.irreducible + by_size + self.token_factor * tokens**-self.token_exponent

    def compute_optimal(self, flops: float) -> tuple[float, float]:
        """Returns (parameters, tokens) of the lowest loss for a number of floating-point operations (equation 4).

        With G = (a A / (b B))^(1 / (a + b)): N = G (C / 6)^(b / (a + b)), D = (C / 6)^(a / (a + b)) / G.
        """
        a, b = self.parameter_exponent, self.token_exponent
        ratio = (a * self.parameter_factor / (b * self.token_factor)) ** (1.0 / (a + b))
        product = flops / FLOPS_PER_PARAMETER_AND_TOKEN
        return ratio * product ** (b / (a + b)), product ** (a / (a + b)) / ratio


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished training.

    Attributes:
        parameters: all trainable parameters, embeddings included.
        tokens: of the whole training.
        loss: held out, in nats per token.
        width: `hidden_dim`.
        bits_per_byte: held out.
    """

    parameters: int
    tokens: int
    loss: float
    width: int = 0
    bits_per_byte: float = 0.0

    @property
    def flops(self) -> float:
        """The cost of the run as Hoffmann et al. count, 6 N D."""
        return FLOPS_PER_PARAMETER_AND_TOKEN * self.parameters * self.tokens

    def __str__(self) -> str:
        size = f"width {self.width}, {self.parameters:,} parameters, {self.tokens:,} tokens"
        return f"{size}: {self.loss:.4f} nats per token, {self.bits_per_byte:.4f} bits per byte"


def fit(runs: Sequence[Run], starts: int = 20) -> ScalingLaw:
    """Returns the law with the smallest Huber loss between its logarithm and the logarithms of the losses.

    L-BFGS from the best `starts` points of the paper's grid. Loss sums instead of means, and small tolerances: with
    those of the paper the search ends early (Besiroglu et al. 2024, arXiv:2404.10102).
    """
    if len(runs) < 5 or len({run.parameters for run in runs}) < 2 or len({run.tokens for run in runs}) < 2:
        raise ValueError("five coefficients need at least five runs, of two sizes and two token counts or more")
    sizes, tokens, losses = (
        np.log([float(getattr(run, name)) for run in runs]) for name in ("parameters", "tokens", "loss")
    )

    def objective(point: np.ndarray) -> tuple[float, np.ndarray]:
        log_a, log_b, log_e, alpha, beta = point
        terms = np.stack([log_a - alpha * sizes, log_b - beta * tokens, np.full_like(sizes, log_e)])  # (3, runs)
        expected = np.logaddexp.reduce(terms)
        error = expected - losses
        slope = np.clip(error, -HUBER_DELTA, HUBER_DELTA)
        shares = np.exp(terms - expected) * slope
        gradient = [*shares.sum(1), -(shares[0] * sizes).sum(), -(shares[1] * tokens).sum()]
        # In units of delta squared, to which the tolerances refer.
        return special.huber(HUBER_DELTA, error).sum() / HUBER_DELTA**2, np.array(gradient) / HUBER_DELTA**2

    log_factors, exponents = (0.0, 5.0, 10.0, 15.0, 20.0, 25.0), (0.0, 0.5, 1.0, 1.5, 2.0)
    grid = np.array([*itertools.product(log_factors, log_factors, (-1.0, -0.5, 0.0, 0.5, 1.0), exponents, exponents)])
    promising = grid[np.argsort([objective(point)[0] for point in grid])[:starts]]
    options = {"maxiter": 5000, "maxfun": 20000, "ftol": 1e-13, "gtol": 1e-9}
    # With an exponent below 0 the loss would grow without bound.
    bounds = [(None, None)] * 3 + [(0.0, None)] * 2
    found = [minimize(objective, point, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
             for point in promising]  # fmt: skip
    log_a, log_b, log_e, alpha, beta = min(found, key=lambda result: result.fun).x
    return ScalingLaw(float(np.exp(log_e)), float(np.exp(log_a)), float(alpha), float(np.exp(log_b)), float(beta))
