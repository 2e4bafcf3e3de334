"""Sizes, counts and times as text."""

from tfgpt.common.formatting import format_bytes, format_count, format_memory, format_seconds, pluralize


def test_sizes_counts_and_times_are_written_as_people_speak():
    assert [format_memory(size << 20) for size in (3072, 1000, 5)] == ["3.0 GiB", "1,000 MiB", "5 MiB"]
    assert [format_count(1234), format_count(2_500_000), format_count(1.6e11)] == ["1,234", "2.5M", "160.0B"]
    times = [format_seconds(seconds) for seconds in (0.0123, 7.25, 75, 7300, 400_000)]
    assert times == ["12.3 ms", "7.2 s", "1m15s", "2h01m", "4.6 days"]
    assert [pluralize(1, "row"), pluralize(2500, "row"), pluralize(2, "bias")] == ["1 row", "2,500 rows", "2 biases"]


def test_amounts_are_written_in_decimal_units():
    assert [format_bytes(count) for count in (0, 999, 1000, 55_770, 999_960, 1_234_567, 5 * 10**13)] == [
        "0 bytes", "999 bytes", "1.0 kB", "55.8 kB", "1.0 MB", "1.2 MB", "50.0 TB",
    ]  # fmt: skip
