"""Figures in words that people read."""

from __future__ import annotations

import math

__all__ = ["amount", "change", "db", "decibels", "milliseconds", "printable"]


def printable(text: str) -> str:
    """Return ``text`` with control characters, which a model's names may hold, written as escapes; newlines stay."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def amount(value: float, unit: str = "") -> str:
    """Return three digits and a decimal prefix: 25.6 M, 97.8 MB."""
    prefixes = ["", "k", "M", "G", "T"]
    while abs(value) >= 999.5 and len(prefixes) > 1:
        value /= 1000
        del prefixes[0]
    digits = f"{value:#.3g}".rstrip(".") if prefixes[0] else f"{value:g}"
    return f"{digits} {prefixes[0]}{unit}".rstrip()


def milliseconds(value: float) -> str:
    """Return a time in ms, or in s from a second on."""
    return f"{value:.3g} ms" if value < 999.5 else f"{value / 1000:.3g} s"


def db(value: float | None) -> str:
    """Return decibels with one decimal, ``exact`` for infinity and ``?`` for what is not known."""
    return "?" if value is None or math.isnan(value) else "exact" if value == math.inf else f"{value:.1f}"


def decibels(relative: float | None) -> str:
    """Return a relative squared error as SQNR in decibels, ``exact`` for 0 and ``?`` for what is not known."""
    if relative is None or math.isnan(relative):
        return "?"
    return db(math.inf if relative <= 0 else -10 * math.log10(relative) if math.isfinite(relative) else -math.inf)


def change(before: float, after: float, better: str) -> str:
    """Return how many times ``better`` it is now: 3.93× smaller."""
    worse = {"smaller": "larger", "fewer": "more", "faster": "slower"}[better]
    if not before or not after or abs(before / after - 1) < 0.005:
        return ""
    ratio = max(before / after, after / before)
    return f"{ratio:.{2 if ratio < 10 else 1}f}× {better if after < before else worse}"
