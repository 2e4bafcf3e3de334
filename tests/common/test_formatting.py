"""Sizes, counts and times as text."""

from tfgpt.common.formatting import format_count, format_memory, format_seconds


def test_sizes_counts_and_times_are_written_as_people_speak():
    assert [format_memory(3 << 30), format_memory(5 << 20)] == ["3.0 GiB", "5 MiB"]
    assert [format_count(1234), format_count(2_500_000), format_count(1.6e11)] == ["1,234", "2.5M", "160.0B"]
    times = [format_seconds(seconds) for seconds in (0.0123, 7.25, 75, 7300, 400_000)]
    assert times == ["12.3 ms", "7.2 s", "1m15s", "2h01m", "4.6 days"]
