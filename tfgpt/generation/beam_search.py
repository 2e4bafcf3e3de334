"""Beam search over one prompt: which beams live on, which are finished, and when to end. No TensorFlow.

The definition is that of `transformers` (`GenerationMixin._beam_search` with early_stopping=False), so that both
give the same text: each step looks at the best (1 + stop tokens) × beams continuations, those that end a text
count only when they are among the best `num_beams`, a finished text's score is its log probability divided by
length ** length_penalty, and the search ends when the best living beam, at its present length, scores no better
than the worst of `num_beams` finished texts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

# The score of a beam that is not there; continuations that still have about this score are ignored.
DEAD = -1e9


@dataclasses.dataclass(frozen=True, eq=False)
class Beam:
    """A text being written: the beam that it continues and one token more; beams share what they have in common.

    Attributes:
        parent: the text without its last token; None for the text of no tokens.
        token: the last token.
        length: how many tokens there are.
        score: the penalized log probability of all tokens.
        log_probability: the model's own.
        state: what `BeamSearch`'s `extend` made of the tokens.
    """

    parent: Beam | None = None
    token: int = 0
    length: int = 0
    score: float = 0.0
    log_probability: float = 0.0
    state: Any = None

    def tokens(self) -> list[int]:
        """All tokens."""

        def backwards(beam: Beam) -> Iterator[int]:
            while beam.parent is not None:
                yield beam.token
                beam = beam.parent

        return list(backwards(self))[::-1]


@dataclasses.dataclass(frozen=True)
class Finished:
    """A finished text.

    Attributes:
        beam: the text.
        score: the beam's, divided by length ** length_penalty.
        finish_reason: "stop" or "length".
    """

    beam: Beam
    score: float
    finish_reason: str


class BeamSearch:
    """The beams of one prompt.

    Args:
        num_beams: how many beams live at a time, and how many finished texts are kept.
        max_new_tokens: a text ends when it has so many tokens.
        length_penalty: the exponent of the length in a finished text's score.
        extend: from the state of a text and its next token to its next state, and whether that token ends the text.
        state: the state of the text of no new tokens.

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
        extend: Callable[[Any, int], tuple[Any, bool]],
        state: Any = None,
    ):
        self.num_beams, self.max_new_tokens, self.length_penalty = num_beams, max_new_tokens, length_penalty
        self.extend = extend
        self.running = [Beam(state=state)]
        self.parents = [0]
        self.finished: list[Finished] = []

    def scores(self) -> list[float]:
        """The score of each of the `num_beams` places, `DEAD` where no beam lives."""
        return [beam.score for beam in self.running] + [DEAD] * (self.num_beams - len(self.running))

    def last_tokens(self) -> list[int]:
        """The last token in each place; any where no beam lives."""
        tokens = [beam.token for beam in self.running]
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
        # Sorting is stable: of two equal scores the older text stays in front.
        self.finished = sorted(self.finished, key=lambda text: -text.score)[: self.num_beams]
        self.running, self.parents = running, running_parents

    def done(self) -> bool:
        """Whether no living beam is expected to better the finished texts."""
        if not self.running:
            return True
        if len(self.finished) < self.num_beams:
            return False
        best = self.running[0]
        return best.score / best.length**self.length_penalty <= self.finished[-1].score
