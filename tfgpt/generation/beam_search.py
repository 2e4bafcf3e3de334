"""Beam search over one prompt: which beams live on, which are finished, and when to end. No TensorFlow.

The definition is that of `transformers` (`GenerationMixin._beam_search` with early_stopping=False), so that both
give the same text: each step looks at the best (1 + stop tokens) × beams continuations, those that end a text
count only when they are among the best `num_beams`, a finished text's score is its log probability divided by
length ** length_penalty, and the search ends when the best living beam, at its present length, scores no better
than the worst of `num_beams` finished texts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

# The score of a beam that is not there; continuations that still have about this score are ignored.
DEAD = -1e9


@dataclasses.dataclass(frozen=True)
class Beam:
    """A text being written: its new tokens, its score (penalized log probability), its log probability."""

    tokens: tuple[int, ...]
    score: float
    log_probability: float


@dataclasses.dataclass(frozen=True)
class Finished:
    """A finished text: as `Beam`, with the score divided by length ** length_penalty."""

    tokens: tuple[int, ...]
    score: float
    log_probability: float
    finish_reason: str


class BeamSearch:
    """The beams of one prompt.

    Args:
        num_beams: how many beams live at a time, and how many finished texts are kept.
        max_new_tokens: a text ends when it has so many tokens.
        length_penalty: the exponent of the length in a finished text's score.
        ends_text: says of a text's new tokens whether the last one ends it.

    Attributes:
        running: the living beams, best first.
        finished: the finished texts, best first.
        parents: for each living beam, which of the former living beams it continues.
    """

    def __init__(
        self,
        num_beams: int,
        max_new_tokens: int,
        length_penalty: float,
        ends_text: Callable[[tuple[int, ...]], bool],
    ):
        self.num_beams, self.max_new_tokens, self.length_penalty = num_beams, max_new_tokens, length_penalty
        self.ends_text = ends_text
        self.running = [Beam((), 0.0, 0.0)]
        self.parents = [0]
        self.finished: list[Finished] = []

    def scores(self) -> list[float]:
        """The score of each of the `num_beams` places, `DEAD` where no beam lives."""
        return [beam.score for beam in self.running] + [DEAD] * (self.num_beams - len(self.running))

    def last_tokens(self) -> list[int]:
        """The last token in each place; any where no beam lives."""
        tokens = [beam.tokens[-1] for beam in self.running]
        return tokens + [0] * (self.num_beams - len(tokens))

    def parent_places(self) -> list[int]:
        """For each place, the place it continues; any where no beam lives."""
        return self.parents + [0] * (self.num_beams - len(self.parents))

    def advance(
        self,
        scores: Sequence[float],
        log_probabilities: Sequence[float],
        parents: Sequence[int],
        tokens: Sequence[int],
    ) -> None:
        """Takes the best continuations of all beams, best first.

        Args:
            scores: the scores of the beams with one more token.
            log_probabilities: the log probability of that token alone.
            parents: the place of the beam that is continued.
            tokens: the token.
        """
        running: list[Beam] = []
        running_parents: list[int] = []
        for rank, (score, log_probability, parent, token) in enumerate(zip(scores, log_probabilities, parents, tokens)):
            if score < DEAD / 2:
                continue
            beam = self.running[parent]
            texts_tokens = (*beam.tokens, int(token))
            total = beam.log_probability + float(log_probability)
            reason = self._finish_reason(texts_tokens)
            if reason is None:
                if len(running) < self.num_beams:
                    running.append(Beam(texts_tokens, float(score), total))
                    running_parents.append(int(parent))
            elif rank < self.num_beams:
                final = float(score) / len(texts_tokens) ** self.length_penalty
                self.finished.append(Finished(texts_tokens, final, total, reason))
        # Sorting is stable: of two equal scores the older text stays in front.
        self.finished = sorted(self.finished, key=lambda text: -text.score)[: self.num_beams]
        self.running, self.parents = running, running_parents

    def _finish_reason(self, tokens: tuple[int, ...]) -> str | None:
        if self.ends_text(tokens):
            return "stop"
        return "length" if len(tokens) >= self.max_new_tokens else None

    def done(self) -> bool:
        """Whether no living beam is expected to better the finished texts."""
        if not self.running:
            return True
        if len(self.finished) < self.num_beams:
            return False
        best = self.running[0]
        return best.score / len(best.tokens) ** self.length_penalty <= self.finished[-1].score
