"""The orders that nothing holds up, in the order in which they are to begin.

What must never come in: how many of them there is room for (core.room).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from datetime import datetime
from typing import TypeAlias

from certfan.core.steps import Issue

# What has failed before comes last, so that it delays nobody; then open orders first, then what expires first.
Priority: TypeAlias = tuple[bool, bool, datetime, str]
Due: TypeAlias = tuple[Priority, Issue]


class Queue:
    """Kept in order, at most one of a certificate: of many that wait only the first few are looked at."""

    def __init__(self) -> None:
        self._due: list[Due] = []

    def __iter__(self) -> Iterator[Issue]:
        """Tell each order, the most urgent first."""
        return (issue for _, issue in self._due)

    def replace(self, before: Due | None, due: Due | None) -> None:
        """Have an order in the place of what was due for its certificate before; None for none."""
        if before == due:
            return
        if before is not None:
            del self._due[bisect_left(self._due, before)]
        if due is not None:
            insort(self._due, due)
