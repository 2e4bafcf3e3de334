"""Amounts are written for people."""

from tfgpt.common.progress import format_bytes


def test_amounts_are_written_in_decimal_units():
    assert [format_bytes(count) for count in (0, 999, 1000, 55_770, 999_960, 1_234_567, 5 * 10**13)] == [
        "0 bytes", "999 bytes", "1.0 kB", "55.8 kB", "1.0 MB", "1.2 MB", "50.0 TB",
    ]  # fmt: skip
