"""Sizes, counts and times as text."""

from __future__ import annotations


def format_memory(size: float) -> str:
    """Formats a size in memory: 3221225472 → "3.0 GiB"; 5242880 → "5 MiB"."""
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.0f} MiB"


def format_count(count: float) -> str:
    """Formats a large number: 1234 → "1,234"; 2500000 → "2.5M"; 1.6e11 → "160.0B"."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if count >= size:
            return f"{count / size:,.1f}{letter}"
    return f"{count:,.0f}"


def pluralize(count: int, word: str) -> str:
    """Formats a number of things: (1, "row") → "1 row"; (2500, "row") → "2,500 rows"; (2, "bias") → "2 biases"."""
    return f"{count:,} {word if count == 1 else plural(word)}"


def plural(word: str) -> str:
    return f"{word}es" if word.endswith(("s", "ch")) else f"{word}s"


def format_seconds(seconds: float) -> str:
    """Formats a short or very long time: 0.0123 → "12.3 ms"; 75 → "1m15s"; 7300 → "2h01m"; 400000 → "4.6 days"."""
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 2 * 86400:
        return format_duration(seconds)
    days = seconds / 86400
    return f"{days:,.1f} days" if days < 1000 else f"{days / 365.25:,.0f} years"


def format_duration(seconds: float) -> str:
    """Formats a duration: 75.4 → "1m15s"; 7300 → "2h01m"."""
    if seconds == float("inf"):
        return "unknown"
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    if not minutes:
        return f"{seconds}s"
    return f"{minutes}m{seconds:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def format_bytes(count: int) -> str:
    """Formats a number of bytes: 1234567 → "1.2 MB"."""
    if count < 1000:
        return f"{count} bytes"
    value, units = count / 1000, ["kB", "MB", "GB", "TB"]
    while value >= 999.95 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.1f} {units[0]}"
