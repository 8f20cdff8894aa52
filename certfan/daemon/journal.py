"""What happened, told twice: to the log, and to the append-only journal that status and timeline read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from certfan import log
from certfan.daemon.store import Event, Store

# Seconds that the log may be behind with what nobody waits for: a line between all else takes several times as long as one
# of several.
TOLD_WITHIN = 0.05


class Journal:
    """Writes each event to both places, in the order in which it hears of them; an event is a constant noun.participle."""

    def __init__(self, store: Store, clock: Callable[[], datetime]) -> None:
        self._store = store
        self._clock = clock
        self._log = log.get("daemon")
        self._to_log: list[Event] = []

    def flush(self) -> None:
        """Have everything in the log that was told; repeatable."""
        events, self._to_log = self._to_log, []
        for one in events:
            self._log.info(one.name, subject=one.subject, **one.fields, timestamp=log.timestamp(one.at))

    async def note(self, name: str, subject: str, *, at: datetime | None = None, **fields: Any) -> None:
        """Record one event, durable on return. Fields are JSON values and never hold key material."""
        self.flush()
        self._log.info(name, subject=subject, **fields)
        await self._store.add_events([Event(at or self._clock(), name, subject, fields)])

    def tell(self, name: str, subject: str, *, at: datetime | None = None, **fields: Any) -> None:
        """Record one event without waiting: it is durable before whatever the store is asked for next.

        For what tells of a fact that is durable already; a crash may lose the event, never the fact.
        """
        event = Event(at or self._clock(), name, subject, fields)
        self._store.queue_events([event])
        if not self._to_log:
            asyncio.get_running_loop().call_later(TOLD_WITHIN, self.flush)
        self._to_log.append(event)

    async def note_many(self, name: str, subjects: Mapping[str, Mapping[str, Any]]) -> None:
        """Record the same event of many subjects, each with its fields, in one write; the log gets one line."""
        now = self._clock()
        self.flush()
        self._log.info(name, subject=next(iter(subjects)), subjects=len(subjects))
        await self._store.add_events([Event(now, name, subject, f) for subject, f in subjects.items()])

    async def warn(self, name: str, subject: str, **fields: Any) -> None:
        """Record one event that somebody may have to act on."""
        self.flush()
        self._log.warning(name, subject=subject, **fields)
        await self._store.add_events([Event(self._clock(), name, subject, fields)])

    async def log_is_kept(self, problem: str | None, dropped: int) -> None:
        """Record that no log line reaches the remote receiver, or that they do again, and how many were dropped."""
        if problem is not None:
            await self.warn("log.undelivered", "log", detail=problem)
        else:
            await self.note("log.delivered", "log", dropped=dropped)


def told_again(event: Event) -> dict[str, Any]:
    """Return an event as a field of another one; what it tells again itself is left out, or a row of crashes would grow without end."""
    fields = {key: value for key, value in event.fields.items() if key != "last"}
    return {"at": event.at.isoformat(), "name": event.name, "subject": event.subject, **fields}
