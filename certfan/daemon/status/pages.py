"""The page for whoever asks: made anew for a small farm; of a large one made in slices, and kept for a while.

Measured with 1,000 certificates on 20 consumers: the page takes 0.4 s, which would hold up answers to challenges. A thread
would hold them up too: whoever waits for the interpreter waits 5 ms, several times an answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, TypeVar

from certfan.daemon.status.model import Page
from certfan.daemon.status.things import StateOfThings
from certfan.daemon.status.view import certificate_views, page_of, view
from certfan.daemon.status.wire import encode

LARGE = 500  # pairs; below that everything is made in less than 20 ms
SLICE = 100  # pairs that are looked at in one turn of the loop, some 2 ms
KEPT_FOR = 10  # times as long as it took, so that at most a tenth of one core is spent on it
STALE = 60.0  # seconds after which nobody is told it any more
MOST_KEPT = 16 << 20  # bytes of JSON
_T = TypeVar("_T")


class Pages:
    """Makes pages of what `things` returns, which nobody may change: it is read while others work."""

    def __init__(self, things: Callable[[], Awaitable[StateOfThings]]) -> None:
        self._things = things
        self._lock = asyncio.Lock()
        self._page: Page | None = None
        self._large = False
        self._made_at = self._took = 0.0  # by the loop's clock
        self._encoded_of: Page | None = None
        self._encoded: dict[Hashable, bytes] = {}
        self._exposition: tuple[Page, bytes] | None = None

    async def page(self) -> Page:
        """Return the page as it is; of a large farm as it was, at most a minute ago."""
        if (kept := self._kept()) is not None:
            return kept
        async with self._lock:
            return self._good_for(self._took * KEPT_FOR) or await self._make()

    def _kept(self) -> Page | None:
        # While one makes the next one, the others need not wait for it.
        return self._good_for(STALE if self._lock.locked() else self._took * KEPT_FOR)

    def _good_for(self, seconds: float) -> Page | None:
        age = asyncio.get_running_loop().time() - self._made_at
        return self._page if self._large and age < min(seconds, STALE) else None

    async def _make(self) -> Page:
        began = asyncio.get_running_loop().time()
        things = await self._things()
        self._large = len(things.desired.pairs) > LARGE
        self._page = await _in_slices(things) if self._large else view(things)
        self._made_at = asyncio.get_running_loop().time()
        self._took = self._made_at - began
        return self._page

    async def encoded(self, key: Hashable, make: Callable[[Page], Any]) -> bytes:
        """Return the JSON of something that is made of the page alone; of a large farm it is kept with the page."""
        page = await self.page()
        if self._encoded_of is not page:
            self._encoded_of, self._encoded = page, {}
        if (body := self._encoded.get(key)) is None:
            body = await self._beside(lambda: encode(make(page)))
            if self._large and self._encoded_of is page and sum(map(len, self._encoded.values())) < MOST_KEPT:
                self._encoded[key] = body
        return body

    async def exposition(self) -> bytes:
        """Return the page as metrics."""
        from certfan.daemon.status import metrics  # its library need not be there before somebody scrapes

        page = await self.page()
        if self._exposition is None or self._exposition[0] is not page:
            self._exposition = page, await self._beside(lambda: metrics.exposition(page))
        return self._exposition[1]

    async def _beside(self, make: Callable[[], _T]) -> _T:
        return await asyncio.to_thread(make) if self._large else make()


async def _in_slices(things: StateOfThings) -> Page:
    """Make a page, and let the loop do what else there is after every slice."""
    certificates, seen = [], 0
    for one in certificate_views(things):
        certificates.append(one)
        seen += len(one.endpoints)
        if seen >= SLICE:
            seen = 0
            await asyncio.sleep(0)
    return page_of(things, tuple(certificates))
