"""Which numbers of generations that a consumer shows or tells can be true."""

from __future__ import annotations

LEAP = 1_000_000  # generations; a restored state folder lags behind its share and its consumers by a few


def is_plausible(number: int, known: int) -> bool:
    """Whether a number may be one that we gave and have forgotten; `known` is the highest that we know.

    Root on a consumer can plant any number in its folder, and report any: believed, it would be the end of numbers.
    """
    return number <= known + LEAP
