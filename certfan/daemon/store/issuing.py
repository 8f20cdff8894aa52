"""One try to get one generation: the intent, its order, what was answered, the tokens that are live."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, and_, delete, func, insert, select, update

from certfan.core.issuance import Issuance
from certfan.core.model import Identifier, Problem
from certfan.daemon.store import tables
from certfan.daemon.store.facts import ClosedIssuance
from certfan.daemon.store.rows import from_problem, identifiers_of, names_of, put, to_problem


def begin_issuance(
    db: Connection,
    certificate: str,
    generation: int,
    authority: str,
    identifiers: Sequence[Identifier],
    now: datetime,
) -> Issuance:
    """Note the intent to get a generation; if the certificate has an open try, return that one instead.

    Raises:
        ValueError: that number is used up by a try that ended, either way.
    """
    table = tables.issuances
    if known := _issuances(db, table.c.certificate == certificate, table.c.closed_at.is_(None)):
        return known[0]
    used = select(func.max(table.c.generation)).where(table.c.certificate == certificate)
    if generation <= (db.execute(used).scalar() or 0):
        raise ValueError(f"{certificate}@{generation} is used up")
    begun = Issuance(certificate, generation, authority, tuple(identifiers), now)
    db.execute(
        insert(tables.issuances).values(
            certificate=certificate,
            generation=generation,
            authority=authority,
            identifiers=names_of(identifiers),
            begun_at=now,
        )
    )
    return begun


def record_order_url(db: Connection, certificate: str, generation: int, url: str, now: datetime) -> None:
    """Remember where an open try's order is; the newest word counts, every order is kept as a row.

    Raises:
        ValueError: there is no such open try.
    """
    issuance = tables.issuances.c
    found = db.execute(
        update(tables.issuances)
        .where(
            issuance.certificate == certificate,
            issuance.generation == generation,
            issuance.closed_at.is_(None),
        )
        .values(order_url=url)
    )
    if found.rowcount != 1:
        raise ValueError(f"{certificate}@{generation} is not being issued")
    if db.execute(select(tables.orders.c.url).where(tables.orders.c.url == url)).first() is None:
        row = {"url": url, "certificate": certificate, "generation": generation, "recorded_at": now}
        db.execute(insert(tables.orders).values(row))


def record_answered(db: Connection, certificate: str, generation: int, challenge_url: str) -> None:
    """Remember that the authority was told to try a challenge; repeatable."""
    row = {"certificate": certificate, "generation": generation, "challenge_url": challenge_url}
    table = tables.answered
    if not db.execute(select(table).filter_by(**row)).first():
        db.execute(insert(table).values(row))


def abandon_issuance(
    db: Connection, certificate: str, generation: int, problem: Problem, now: datetime
) -> None:
    """Close a try that led nowhere and forget its tokens; its number stays used up. Repeatable."""
    close_issuance(db, certificate, generation, now, problem)


def open_issuances(db: Connection) -> tuple[Issuance, ...]:
    """Return every open try, oldest first."""
    return _issuances(db, tables.issuances.c.closed_at.is_(None))


def closed_issuances(db: Connection, certificate: str) -> tuple[ClosedIssuance, ...]:
    """Return the certificate's tries that ended, oldest first; one that was given up has its problem."""
    table = tables.issuances
    ended = (table.c.certificate == certificate, table.c.closed_at.is_not(None))
    query = select(table.c.generation, table.c.closed_at, table.c.problem).where(*ended)
    how = {number: (at, to_problem(problem)) for number, at, problem in db.execute(query)}
    return tuple(ClosedIssuance(known, *how[known.generation]) for known in _issuances(db, *ended))


def orders_sent(db: Connection) -> int:
    """Return how many different orders any authority ever gave us."""
    return db.execute(select(func.count()).select_from(tables.orders)).scalar_one()


def record_token(
    db: Connection, token: str, key_authorization: str, certificate: str, identifier: str, now: datetime
) -> None:
    """Remember what to answer for a token; repeatable."""
    key = {"token": token, "certificate": certificate}
    values = {"key_authorization": key_authorization, "identifier": identifier, "recorded_at": now}
    put(db, tables.tokens, key, values)


def tokens(db: Connection) -> dict[str, str]:
    """Return the key authorization of every live token."""
    table = tables.tokens
    return dict(db.execute(select(table.c.token, table.c.key_authorization)).all())


def drop_tokens(db: Connection, certificate: str) -> None:
    """Forget the certificate's tokens; one that another certificate waits for too stays live."""
    db.execute(delete(tables.tokens).where(tables.tokens.c.certificate == certificate))


def close_issuance(
    db: Connection, certificate: str, generation: int, now: datetime, problem: Problem | None
) -> None:
    """Close a try, if it is open, and forget its tokens."""
    table = tables.issuances
    closed = db.execute(
        update(table)
        .where(
            table.c.certificate == certificate,
            table.c.generation == generation,
            table.c.closed_at.is_(None),
        )
        .values(closed_at=now, problem=from_problem(problem))
    )
    if closed.rowcount:
        drop_tokens(db, certificate)


def _issuances(db: Connection, *where: ColumnElement[bool]) -> tuple[Issuance, ...]:
    table, told = tables.issuances, tables.answered
    same = and_(told.c.certificate == table.c.certificate, told.c.generation == table.c.generation)
    challenges = defaultdict[tuple[str, int], set[str]](set)
    for certificate, generation, url in db.execute(select(told).join(table, same).where(*where)):
        challenges[certificate, generation].add(url)
    query = select(table).where(*where).order_by(table.c.begun_at, table.c.certificate, table.c.generation)
    return tuple(
        Issuance(
            row.certificate,
            row.generation,
            row.authority,
            identifiers_of(row.identifiers),
            row.begun_at,
            row.order_url,
            frozenset(challenges[row.certificate, row.generation]),
        )
        for row in db.execute(query)
    )
