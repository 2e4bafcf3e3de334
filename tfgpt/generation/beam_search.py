"""Beam search over one prompt. No TensorFlow.

It equals `transformers` (`GenerationMixin._beam_search` with early_stopping=False). Each step reads the best
(1 + stop tokens) × beams continuations; those that end a text count only if they are among the best `num_beams`. The
score of a finished text is its log probability divided by length ** length_penalty. The search ends when the best
running beam, at its current length, scores no better than the worst of `num_beams` finished texts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

# The score of an absent beam; continuations with about this score are ignored.
ABSENT_SCORE = -1e9


@dataclasses.dataclass(frozen=True, eq=False)
class Beam:
    """An unfinished text as a linked list: its parent and its last token."""

    parent: Beam | None = None  # the text without its last token; None for the empty text
    token: int = 0  # the last token
    length: int = 0  # the number of tokens
    score: float = 0.0  # the log probability of all tokens with the repetition penalty
    log_probability: float = 0.0  # the log probability of all tokens under the model itself
    state: Any = None  # the state of `BeamSearch`'s `extend`

    def tokens(self) -> list[int]:
        tokens, beam = [], self
        while beam.parent is not None:
            tokens.append(beam.token)
            beam = beam.parent
        return tokens[::-1]


@dataclasses.dataclass(frozen=True)
class Finished:
    """A beam that has ended."""

    beam: Beam  # the text
    score: float  # the score of the beam divided by length ** length_penalty
    finish_reason: str  # "stop" or "length"


class BeamSearch:
    """The beams of one prompt.

    Args:
        extend: a function of a text's state and its next token that returns the next state and whether the token ends
            the text.
        state: the state of the empty text.

    Attributes:
        running: the running beams, best first.
        finished: the `num_beams` best finished texts, best first.
        parents: the index of each running beam's parent among the running beams of the step before.
    """

    def __init__(
        self,
        num_beams: int,
        max_new_tokens: int,
        length_penalty: float,
        extend: Callable[[Any, int], tuple[Any, bool]],
        state: Any = None,
    ):
        self.num_beams, self.max_new_tokens, self.length_penalty = num_beams, max_new_tokens, length_penalty
        self.extend = extend
        self.running = [Beam(state=state)]
        self.parents = [0]
        self.finished: list[Finished] = []

    def padded(self) -> tuple[list[float], list[int], list[int]]:
        """Returns the scores, last tokens and parents of `num_beams` beams; `ABSENT_SCORE`, 0 and 0 for absent ones."""
        absent = self.num_beams - len(self.running)
        scores = [beam.score for beam in self.running] + [ABSENT_SCORE] * absent
        return scores, [beam.token for beam in self.running] + [0] * absent, self.parents + [0] * absent

    def advance(
        self,
        scores: Sequence[float],
        log_probabilities: Sequence[float],
        parents: Sequence[int],
        tokens: Sequence[int],
    ) -> None:
        """Adds the best continuations of all beams, best first.

        `scores` are those of the beams with one more token, `log_probabilities` those of the `tokens` alone, and
        `parents` the indices of the continued beams.
        """
        running: list[Beam] = []
        running_parents: list[int] = []
        for rank, (score, log_probability, parent, token) in enumerate(zip(scores, log_probabilities, parents, tokens)):
            if score < ABSENT_SCORE / 2:
                continue
            old = self.running[parent]
            total, length = old.log_probability + float(log_probability), old.length + 1
            state, ended = self.extend(old.state, int(token))
            beam = Beam(old, int(token), length, float(score), total, state)
            if not ended and length < self.max_new_tokens:
                if len(running) < self.num_beams:
                    running.append(beam)
                    running_parents.append(int(parent))
            elif rank < self.num_beams:
                final = float(score) / length**self.length_penalty
                self.finished.append(Finished(beam, final, "stop" if ended else "length"))
        # Sorting is stable: of two texts with equal scores the older one stays first.
        self.finished = sorted(self.finished, key=lambda text: -text.score)[: self.num_beams]
        self.running, self.parents = running, running_parents

    def done(self) -> bool:
        """Returns whether no running beam is expected to improve the finished texts."""
        if not self.running:
            return True
        if len(self.finished) < self.num_beams:
            return False
        best = self.running[0]
        return best.score / best.length**self.length_penalty <= self.finished[-1].score
