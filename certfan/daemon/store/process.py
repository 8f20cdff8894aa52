"""What the process remembers of itself: its runs, the config in force, accounts, the journal."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Connection, RowMapping, delete, func, insert, or_, select, update

from certfan.core.clock import Reading, remembered
from certfan.core.subjects import consumer_subject, path_subject, renewal_subject
from certfan.daemon.store import tables
from certfan.daemon.store.facts import AccountFact, ConfigFact, Event, Run
from certfan.daemon.store.rows import add_all, put
from certfan.log import redact


def begin_run(
    db: Connection, boot_id: str, pid: int, now: datetime, *, booted_for: timedelta | None = None
) -> Run | None:
    """Note that the process started; return the previous run if nobody noted its end.

    Each run draws a new epoch, so a database restored from yesterday never repeats a revision.
    """
    previous = runs(db, 1)
    run = {
        "boot_id": boot_id,
        "pid": pid,
        "epoch": secrets.token_hex(8),
        "remembered_until": _remembered_until(db) or now,
        "began_at": now,
        "booted_for": None if booted_for is None else int(booted_for.total_seconds()),
    }
    db.execute(insert(tables.runs).values(run))
    return previous[0] if previous and previous[0].ended_at is None else None


def past_clock(db: Connection, boot_id: str) -> Reading | None:
    """Return what is known of the clocks before this run: both of them at the first run of this boot, else the wall clock.

    The first one, since a clock that jumped later must not be believed after one more restart.
    """
    table = tables.runs
    known = (table.c.boot_id == boot_id, table.c.booted_for.is_not(None))
    if first := db.execute(select(table).where(*known).order_by(table.c.number).limit(1)).first():
        return Reading(first.began_at, timedelta(seconds=first.booted_for), boot_id)
    last = last_events(db, 1)
    return remembered(last[0].at) if last else None


def _remembered_until(db: Connection) -> datetime | None:
    """Return the last instant, by our own clock, that anything here speaks of; None when nothing does."""
    columns = (tables.runs.c.began_at, tables.runs.c.ended_at, tables.agent_boots.c.heard_at)
    found = [db.execute(select(func.max(column))).scalar() for column in columns]
    return max(filter(None, found), default=None)


def end_run(db: Connection, now: datetime) -> None:
    """Note that the newest run ended cleanly; repeatable."""
    newest = select(func.max(tables.runs.c.number)).scalar_subquery()
    db.execute(
        update(tables.runs)
        .where(tables.runs.c.number == newest, tables.runs.c.ended_at.is_(None))
        .values(ended_at=now)
    )


def runs(db: Connection, limit: int = 100) -> tuple[Run, ...]:
    """Return the newest runs, newest first."""
    query = select(tables.runs).order_by(tables.runs.c.number.desc()).limit(limit)
    return tuple(Run(**row) for row in db.execute(query).mappings())


def epoch(db: Connection) -> str:
    """Return the epoch of the newest run; "" before the first."""
    newest = runs(db, 1)
    return newest[0].epoch if newest else ""


def account(db: Connection, authority: str, directory: str) -> AccountFact | None:
    """Return our account at that directory under that name, if one was recorded."""
    return accounts(db).get((authority, directory))


def accounts(db: Connection) -> dict[tuple[str, str], AccountFact]:
    """Return our accounts by (authority, directory)."""
    found = {}
    for row in db.execute(select(tables.accounts)).mappings():
        contact = None if row["contact"] is None else tuple(row["contact"])
        found[row["authority"], row["directory"]] = AccountFact(**{**row, "contact": contact})
    return found


def record_account(
    db: Connection, authority: str, directory: str, uri: str, thumbprint: str, now: datetime
) -> None:
    """Remember an account; a later word replaces an earlier one."""
    key = {"authority": authority, "directory": directory}
    put(db, tables.accounts, key, {"uri": uri, "thumbprint": thumbprint, "recorded_at": now})


def record_contact(db: Connection, authority: str, directory: str, contact: Sequence[str]) -> None:
    """Remember which contacts the authority was told; nothing without the account."""
    table = tables.accounts
    same = (table.c.authority == authority, table.c.directory == directory)
    db.execute(update(table).where(*same).values(contact=list(contact)))


def change_account_key(
    db: Connection, authority: str, directory: str, thumbprint: str, answers: Mapping[str, str]
) -> None:
    """Remember an account's new key, and that the wish for it is fulfilled.

    In the same breath the live tokens among `answers` get their new key authorization.
    """
    table, live = tables.accounts, tables.tokens
    same = (table.c.authority == authority, table.c.directory == directory)
    db.execute(update(table).where(*same).values(thumbprint=thumbprint))
    for token, answer in answers.items():
        db.execute(update(live).where(live.c.token == token).values(key_authorization=answer))
    db.execute(delete(tables.rollovers).where(tables.rollovers.c.authority == authority))


def forget_account(db: Connection, authority: str, directory: str) -> None:
    """Forget an account that the authority does not know any more; repeatable."""
    table = tables.accounts
    db.execute(delete(table).where(table.c.authority == authority, table.c.directory == directory))


def record_config(db: Connection, digest: str, problems: Sequence[str], now: datetime) -> ConfigFact:
    """Note which config is in force (by digest) and what is wrong with the newest file.

    The number counts the configs that came into force; problems alone do not move it. Repeatable.
    """
    known = config(db)
    if known is None or known.digest != digest:
        db.execute(insert(tables.configs).values(digest=digest, in_force_since=now, problems=[]))
        known = config(db)
        assert known is not None
    if tuple(problems) != known.problems:
        db.execute(
            update(tables.configs)
            .where(tables.configs.c.number == known.number)
            .values(problems=list(problems), problems_at=now if problems else None)
        )
        known = config(db)
        assert known is not None
    return known


def config(db: Connection) -> ConfigFact | None:
    """Return the newest config that came into force."""
    row = db.execute(select(tables.configs).order_by(tables.configs.c.number.desc()).limit(1)).first()
    if row is None:
        return None
    return ConfigFact(row.number, row.digest, row.in_force_since, tuple(row.problems), row.problems_at)


def note_definitions(db: Connection, digests: Mapping[str, str], now: datetime) -> dict[str, datetime]:
    """Remember each certificate's definition by digest; return since when each is what it is."""
    table = tables.definitions
    known = {name: (digest, at) for name, digest, at in db.execute(select(table))}
    since = {}
    for name, digest in digests.items():
        before = known.get(name)
        if before is None or before[0] != digest:
            put(db, table, {"certificate": name}, {"digest": digest, "changed_at": now})
            before = (digest, now)
        since[name] = before[1]
    return since


def config_changed(db: Connection) -> dict[str, datetime]:
    """Return since when each definition ever noted is what it is."""
    table = tables.definitions
    return dict(db.execute(select(table.c.certificate, table.c.changed_at)).all())


def add_events(db: Connection, events: Sequence[Event]) -> None:
    """Append to the journal, in order. Key material in fields is replaced."""
    lines = [
        {"at": one.at, "name": one.name, "subject": one.subject, "fields": redact(one.fields)}
        for one in events
    ]
    add_all(db, tables.events, lines)


def events(db: Connection, after: int = 0, limit: int = 1000, subject: str = "") -> tuple[Event, ...]:
    """Return at most `limit` events with an id above `after`, oldest first; of a subject only what concerns it."""
    table = tables.events
    about = (_about(subject),) if subject else ()
    query = select(table).where(table.c.id > after, *about).order_by(table.c.id).limit(limit)
    return tuple(_event(row) for row in db.execute(query).mappings())


def last_events(db: Connection, count: int, subject: str = "") -> tuple[Event, ...]:
    """Return the newest `count` events, oldest first; of a subject only what concerns it."""
    return _last(db, count, *((_about(subject),) if subject else ()))


_LOOKED_THROUGH = 200_000  # of the newest events, so that a certificate without a story costs no second


def story(db: Connection, certificate: str, identifiers: Sequence[str], limit: int) -> tuple[Event, ...]:
    """Return the newest events about a certificate, its generations, places and identifiers; oldest first."""
    return _last(db, limit, _about(certificate, identifiers))


def _last(db: Connection, count: int, *about: ColumnElement[bool]) -> tuple[Event, ...]:
    table = tables.events
    newest = select(func.max(table.c.id)).scalar_subquery()
    seen = (table.c.id > newest - _LOOKED_THROUGH,) if about else ()
    query = select(table).where(*seen, *about).order_by(table.c.id.desc()).limit(count)
    return tuple(_event(row) for row in reversed(db.execute(query).mappings().all()))


def _about(name: str, identifiers: Sequence[str] = ()) -> ColumnElement[bool]:
    """What concerns a certificate concerns each of its generations and places, what a consumer each of its certificates."""
    subject, consumer = tables.events.c.subject, tables.events.c.fields["consumer"].as_string()
    named = [
        name,
        renewal_subject(name),
        consumer_subject(name),
        *identifiers,
        *map(path_subject, identifiers),
    ]
    begun = (f"{name}@", f"{name}/", f"{name} at ", f"revocation of {name}@")
    parts = [subject.startswith(part, autoescape=True) for part in begun]
    return or_(subject.in_(named), *parts, subject.endswith(f"/{name}", autoescape=True), consumer == name)


def _event(row: RowMapping) -> Event:
    return Event(row["at"], row["name"], row["subject"], row["fields"], row["id"])
