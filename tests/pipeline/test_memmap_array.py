"""A stream in several files reads like the one array that it is."""

import resource
from pathlib import Path

import numpy as np
import pytest

from tfgpt.pipeline.memmap_array import MemmapArray


def stream_of(folder: Path, numbers: np.ndarray, counts: list[int]) -> MemmapArray:
    paths, start = [], 0
    for index, count in enumerate(counts):
        paths.append(folder / f"{index}.bin")
        numbers[start : start + count].astype("<u2").tofile(paths[-1])
        start += count
    return MemmapArray(paths, counts, "uint16")


@pytest.mark.parametrize("counts", [[50], [1, 49], [25, 25], [7] * 7 + [1], [1] * 50])
def test_windows_and_slices_do_not_depend_on_how_the_stream_is_cut_into_files(tmp_path, counts):
    numbers = np.arange(100, 150)
    stream = stream_of(tmp_path, numbers, counts)
    circle = np.concatenate([numbers, np.tile(numbers[1:], 3)])
    assert len(stream) == 50
    for length in (1, 2, 8, 50, 120):
        windows = stream.windows(np.arange(50), length)
        assert windows.dtype == np.uint16
        np.testing.assert_array_equal(windows, [circle[start : start + length] for start in range(50)])
    np.testing.assert_array_equal(stream[:], numbers)
    np.testing.assert_array_equal(stream[13:31], numbers[13:31])
    np.testing.assert_array_equal(stream[-4:], numbers[-4:])
    assert stream[30:20].size == 0
    assert stream[0] == 100 and stream[-1] == 149


def test_positions_outside_the_stream_are_refused(tmp_path):
    stream = stream_of(tmp_path, np.arange(10), [10])
    with pytest.raises(IndexError):
        stream[10]
    with pytest.raises(ValueError, match="stride"):
        stream[::2]


def test_more_files_than_a_process_may_open(tmp_path):
    stream = stream_of(tmp_path, np.arange(1200), [2] * 600)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (500, hard))
    try:
        np.testing.assert_array_equal(stream.windows(np.arange(0, 1200, 2), 2).ravel(), np.arange(1200))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_stream_of_more_than_two_to_the_31_tokens(tmp_path):
    # A sparse file: 4.3 billion bytes long, some kilobytes on disk.
    count = (1 << 31) + 1000
    path = tmp_path / "large.bin"
    with open(path, "wb") as file:
        file.truncate(2 * count)
        file.seek(2 * (count - 6))
        file.write(np.array([11, 12, 13, 14, 15, 16], "<u2").tobytes())
    stream = MemmapArray([path], [count], "uint16")
    np.testing.assert_array_equal(
        stream.windows(np.array([count - 6, count - 4]), 4), [[11, 12, 13, 14], [13, 14, 15, 16]]
    )
    np.testing.assert_array_equal(stream[count - 2 :], [15, 16])
