"""When machines booted: what consumers said of theirs, and what our own runs know of ours."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import Connection, select, update

from certfan.core.resets import OURS, Boot
from certfan.daemon.store import tables
from certfan.daemon.store.process import runs

MOST_RUNS = 100  # of ours that are looked at


def note_boot(db: Connection, consumer: str, boot_id: str, booted_at: datetime, reset: bool | None) -> bool:
    """Remember when a consumer that reported in a boot was booted; False if that was known, or it never reported."""
    table = tables.agent_boots
    same = (table.c.consumer == consumer, table.c.boot_id == boot_id, table.c.booted_at.is_(None))
    return bool(db.execute(update(table).where(*same).values(booted_at=booted_at, reset=reset)).rowcount)


def boots(db: Connection, since: datetime, now: datetime) -> tuple[Boot, ...]:
    """Return every boot that was heard of since then, our own machine's too, which is up `now`."""
    table = tables.agent_boots
    found = [
        Boot(
            machine=row.consumer,
            boot_id=row.boot_id,
            booted_at=row.booted_at,
            heard_at=row.heard_at,
            reset=row.reset,
        )
        for row in db.execute(select(table).where(table.c.booted_at.is_not(None), table.c.heard_at >= since))
    ]
    return (*found, *_our_boots(db, since, now))


def _our_boots(db: Connection, since: datetime, now: datetime) -> tuple[Boot, ...]:
    """Return the boots of our own machine: the first run of each tells how the one before ended."""
    found: dict[str, Boot] = {}
    known = [run for run in reversed(runs(db, MOST_RUNS)) if run.began_at >= since]
    before = None
    for run in known:
        first = found.get(run.boot_id)
        if first is None:
            reset = None if before is None else before.ended_at is None
            booted_at = run.began_at - timedelta(seconds=run.booted_for or 0)
        else:
            reset, booted_at = first.reset, first.booted_at
        found[run.boot_id] = Boot(
            machine=OURS,
            boot_id=run.boot_id,
            booted_at=booted_at,
            heard_at=now if run is known[-1] else run.ended_at or run.began_at,
            reset=reset,
        )
        before = run
    return tuple(found.values())
