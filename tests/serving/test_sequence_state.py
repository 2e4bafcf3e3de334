"""A text from several calls of `stream`: its pieces, its log-probabilities and its end."""

from tfgpt.serving.sequence_state import SequenceState, stream_inputs


def test_log_probabilities_end_with_the_token_that_completes_a_stop_string():
    state = SequenceState([1], 9, {}, ("b!",), log_probabilities=True)
    columns = {"num_tokens": [2, 3], "finish_reason": ["length"] * 2, "tokens": [[7, 8, 0], [9, 9, 9]]}
    columns |= {"token_bytes": [[b"a", b"b", b""], [b"!c", b"d", b"e"]], "text_bytes": [b"ab", b"!cde"]}
    columns["token_log_probabilities"] = [[-0.5, -1.0, 0.0], [-2.0, -3.0, -4.0]]
    first, second = state.advance(columns, 0), state.advance(columns, 1)
    assert (first.text, first.finish_reason, first.log_probabilities) == ("a", "", [(b"a", -0.5), (b"b", -1.0)])
    assert (second.text, second.finish_reason, second.log_probabilities) == ("", "stop", [(b"!c", -2.0)])


def test_chunks_grow_to_32_and_a_call_has_the_smallest_chunk_of_its_texts():
    prompt = [5]
    states = [SequenceState(prompt, limit, {"seed": limit}) for limit in (100, 3)]
    asked = []
    for _ in range(6):
        asked.append(stream_inputs(states[:1])["max_new_tokens"][0])
        outputs = {"tokens": [[0] * asked[-1]], "num_tokens": [asked[-1]], "text_bytes": [b""], "finish_reason": [""]}
        states[0].advance(outputs, 0)
    assert asked == [4, 8, 16, 32, 32, 8] and prompt == [5]
    inputs = stream_inputs([SequenceState([1, 2, 3, 4], 100, {"seed": 1}), states[1]])
    assert inputs == {
        "ids": [[1, 2, 3, 4], [5, 0, 0, 0]], "length": [4, 1], "max_new_tokens": [4, 3], "seed": [1, 3]
    }  # fmt: skip
