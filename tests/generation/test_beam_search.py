"""Beam search without a model: an example worked by hand, and that it finds the best text where it can see all."""

import itertools

import numpy as np
import pytest

from tfgpt.generation.beam_search import Beam, BeamSearch, Finished

STOP = 2


def searched(step_log_probabilities, num_beams: int, max_new_tokens: int, length_penalty: float = 0.0) -> BeamSearch:
    """Searches where token `t` at place `n` has log probability step_log_probabilities(past)[t]."""
    beams = BeamSearch(num_beams, max_new_tokens, length_penalty, lambda state, token: (state, token == STOP))
    while not beams.done():
        candidates = []
        for place, beam in enumerate(beams.running):
            for token, log_probability in enumerate(step_log_probabilities(tuple(beam.tokens()))):
                candidates.append((beam.score + log_probability, log_probability, place, token))
        candidates.sort(key=lambda candidate: -candidate[0])
        beams.advance(*zip(*candidates[: 2 * num_beams], strict=True))
    return beams


def test_two_beams_find_the_text_that_greedy_search_misses():
    # Jurafsky and Martin's kind of example: 0 looks better at first (0.6 against 0.4), but what follows 1 is certain.
    table = {(): [0.6, 0.4, 0.0], (0,): [0.3, 0.3, 0.4], (1,): [0.0, 0.0, 1.0]}

    def log_probabilities(past):
        with np.errstate(divide="ignore"):
            return np.log(table.get(past, [0.0, 0.0, 1.0]))

    greedy = searched(log_probabilities, 1, 3).finished[0]
    best = searched(log_probabilities, 2, 3).finished[0]
    assert greedy.beam.tokens() == [0, STOP] and greedy.score == pytest.approx(np.log(0.24))
    assert best.beam.tokens() == [1, STOP] and best.score == pytest.approx(np.log(0.4))
    assert best.finish_reason == "stop"


@pytest.mark.parametrize("seed", range(5))
def test_as_many_beams_as_texts_find_the_likeliest_of_all(seed):
    generator = np.random.default_rng(seed)
    logits = {past: generator.normal(size=3) * 2 for n in range(4) for past in itertools.product(range(3), repeat=n)}

    def log_probabilities(past):
        return logits[past] - np.log(np.exp(logits[past]).sum())

    def texts(past=(), score=0.0):
        for token, log_probability in enumerate(log_probabilities(past)):
            tokens, total = (*past, token), score + log_probability
            if token == STOP or len(tokens) == 4:
                yield total, tokens
            else:
                yield from texts(tokens, total)

    # Length penalty 0 makes the score the log probability itself, which only falls: the search may end early, rightly.
    score, tokens = max(texts())
    best = searched(log_probabilities, 40, 4).finished[0]
    assert (best.beam.tokens(), best.score) == (list(tokens), pytest.approx(score))
    assert best.beam.log_probability == pytest.approx(score)


def test_a_text_that_reaches_the_limit_is_finished_by_length():
    beams = searched(lambda past: np.log([0.5, 0.4, 0.1]), 2, 3)
    assert {text.finish_reason for text in beams.finished} == {"length"}
    assert beams.finished[0].beam.tokens() == [0, 0, 0]


@pytest.mark.parametrize(("score", "done"), [(-3.9, False), (-4.1, True)])
def test_the_search_ends_when_the_best_beam_at_its_present_length_is_no_better_than_the_worst_finished(score, done):
    beams = BeamSearch(1, 10, 2.0, lambda state, token: (state, False))
    beams.finished = [Finished(Beam(), -1.0, "stop")]
    beams.running = [Beam(length=2, score=score)]  # Its score at length 2 is score / 2² ≷ -1.
    assert beams.done() is done
    beams.finished = []
    assert not beams.done()
