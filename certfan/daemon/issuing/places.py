"""The places that orders take at their authorities, so that none has more of them at once than it may.

What must never come in: which orders are begun (core.orders), and when one stands still (core.room).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime

from certfan.core.room import free_places
from certfan.daemon.issuing.ordering import Order


@dataclass(slots=True)
class _Line:
    most: int = 0
    there: set[Order] = field(default_factory=set)
    waiting: dict[Order, asyncio.Future[None]] = field(default_factory=dict)  # first come, first served


class Places:
    """`orders_at_once` places of each authority; who is made ready takes the next one without a pause."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._lines: dict[str, _Line] = {}  # by authority

    @asynccontextmanager
    async def one(self, order: Order, most: int) -> AsyncIterator[None]:
        """Wait for a place, one of `most`, and hold it; cancelled at any point it is given on."""
        line = self._lines.setdefault(order.issuance.authority, _Line())
        line.most = most
        line.waiting[order] = turn = asyncio.get_running_loop().create_future()
        try:
            self._let_in(line)
            await turn
            yield
        finally:
            line.waiting.pop(order, None)
            line.there.discard(order)
            self._let_in(line)

    def let_in(self, most: Mapping[str, int]) -> None:
        """Look again: an order that stands still gives its place away without a word, and a config may grant more."""
        for authority, line in self._lines.items():
            line.most = most.get(authority, line.most)
            self._let_in(line)

    def _let_in(self, line: _Line) -> None:
        if not line.waiting:
            return
        free = free_places(line.most, (order.moved_at for order in line.there), self._clock())
        for order in list(line.waiting)[: max(free, 0)]:
            turn = line.waiting.pop(order)
            if not turn.cancelled():
                line.there.add(order)
                turn.set_result(None)
