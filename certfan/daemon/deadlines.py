"""Tells, louder as time runs out, of endpoints that do not serve what they should; of each stage once.

What must never come in: how urgent something is (core.policy.urgency), what an endpoint serves (daemon.status.rows).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any

from certfan import log
from certfan.core.policy import Urgency
from certfan.daemon.status.model import Page, Row, Verdict
from certfan.daemon.store import Event, Store
from certfan.daemon.store.lagging import Spot

INTERVAL = timedelta(seconds=30)
NEAR, MISSED, PRESSING = "deadline.near", "deadline.missed", "deadline.pressing"


class Deadlines:
    """Looks at every endpoint now and then, and remembers durably what it has told."""

    def __init__(self, store: Store, page: Callable[[], Awaitable[Page]]) -> None:
        self._store = store
        self._page = page
        self._log = log.get("deadlines")

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await self.look()
            await asyncio.sleep(INTERVAL.total_seconds())

    async def look(self) -> None:
        """Tell what has become more urgent since it was last told; what is proven again starts anew."""
        page = await self._page()
        told = await self._store.urgencies()
        lagging = {spot_of(row): row for row in _lagging(page)}
        changes: dict[Spot, Urgency | None] = {spot: None for spot in told if spot not in lagging}
        events: list[Event] = []
        for spot, row in lagging.items():
            before = told.get(spot, Urgency.CALM)
            if row.urgency.rank <= before.rank:
                continue
            changes[spot] = row.urgency
            self._say(row)
            if name := _event(before, row.urgency):
                events.append(Event(page.now, name, row.certificate, _fields(row)))
        if changes:
            await self._store.record_urgencies(changes, events, page.now)

    def _say(self, row: Row) -> None:
        fields = {"subject": row.certificate, **_fields(row)}
        if row.urgency is Urgency.NEAR:
            self._log.warning(NEAR, **fields)
        else:
            self._log.error(MISSED if row.urgency is Urgency.MISSED else PRESSING, **fields)


def spot_of(row: Row) -> Spot:
    """Return what a row's urgency is filed under."""
    endpoint = f"{row.endpoint.service} {row.endpoint}" if row.endpoint else ""
    return row.certificate, row.consumer, endpoint


def _lagging(page: Page) -> Iterator[Row]:
    for certificate in page.certificates:
        yield from (row for row in certificate.endpoints if row.verdict is not Verdict.PROVEN)


def _event(before: Urgency, now: Urgency) -> str | None:
    if now is Urgency.MISSED:
        return MISSED
    return NEAR if before is Urgency.CALM else None


def _fields(row: Row) -> Mapping[str, Any]:
    return {
        "consumer": row.consumer,
        "endpoint": str(row.endpoint) if row.endpoint else "",
        "verdict": row.verdict.value,
        "deadline": row.deadline.isoformat(),
        "detail": row.problem.detail if row.problem else "",
        "hint": row.problem.hint if row.problem else "",
    }
