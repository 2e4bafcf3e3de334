"""Sizes, counts and times as text."""

from __future__ import annotations

from tfgpt.common.progress import format_duration


def format_memory(size: float) -> str:
    """3221225472 → "3.0 GiB"; 5242880 → "5 MiB"."""
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.0f} MiB"


def format_count(count: float) -> str:
    """1234 → "1,234"; 2500000 → "2.5M"; 1.6e11 → "160.0B"."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if count >= size:
            return f"{count / size:,.1f}{letter}"
    return f"{count:,.0f}"


def pluralize(count: int, word: str) -> str:
    """(1, "row") → "1 row"; (2500, "row") → "2,500 rows"; (2, "bias") → "2 biases"."""
    ending = "" if count == 1 else "es" if word.endswith("s") else "s"
    return f"{count:,} {word}{ending}"


def format_seconds(seconds: float) -> str:
    """0.0123 → "12.3 ms"; 75 → "1m15s"; 7300 → "2h01m"; 400000 → "4.6 days"."""
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 2 * 86400:
        return format_duration(seconds)
    days = seconds / 86400
    return f"{days:,.1f} days" if days < 1000 else f"{days / 365.25:,.0f} years"
