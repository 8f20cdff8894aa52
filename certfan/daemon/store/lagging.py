"""How urgent each endpoint that lags was last told to be, so that nobody is told twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TypeAlias

from sqlalchemy import Connection, delete, select

from certfan.core.policy import Urgency
from certfan.daemon.store import tables
from certfan.daemon.store.facts import Event
from certfan.daemon.store.process import add_events
from certfan.daemon.store.rows import put

Spot: TypeAlias = tuple[str, str, str]  # certificate, consumer, endpoint


def urgencies(db: Connection) -> dict[Spot, Urgency]:
    """Return what was last told of every endpoint that lags."""
    table = tables.urgencies
    query = select(table.c.certificate, table.c.consumer, table.c.endpoint, table.c.urgency)
    return {(one, consumer, endpoint): Urgency(told) for one, consumer, endpoint, told in db.execute(query)}


def record_urgencies(
    db: Connection, changes: Mapping[Spot, Urgency | None], events: Sequence[Event], now: datetime
) -> None:
    """Remember what is told now (None: it lags no more), and append its events to the journal, all or nothing."""
    table = tables.urgencies
    for (certificate, consumer, endpoint), told in changes.items():
        key = {"certificate": certificate, "consumer": consumer, "endpoint": endpoint}
        if told is None:
            db.execute(delete(table).filter_by(**key))
        else:
            put(db, table, key, {"urgency": told.value, "at": now})
    add_events(db, events)
