"""One try to get one generation: the intent, its order, what was answered, the tokens that are live."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, delete, func, insert, select, update

from certfan.core.issuance import Issuance
from certfan.core.ledger import SpendKind
from certfan.core.model import Identifier, Problem
from certfan.daemon.store import spending, tables
from certfan.daemon.store.facts import ClosedIssuance
from certfan.daemon.store.rows import from_problem, identifiers_of, names_of, put, to_problem


def begin_issuance(
    db: Connection,
    certificate: str,
    generation: int,
    authority: str,
    identifiers: Sequence[Identifier],
    now: datetime,
    *,
    replaces: str | None = None,
    exempt: bool = False,
) -> Issuance:
    """Note the intent to get a generation; if the certificate has an open try, return that one instead.

    A number whose try was given up may be tried again, with the key that was made for it.

    Raises:
        ValueError: that number is not above every generation of the certificate.
    """
    table, made = tables.issuances, tables.generations
    if known := _issuances(db, table.c.certificate == certificate, table.c.closed_at.is_(None)):
        return known[0]
    used = select(func.max(made.c.number)).where(made.c.certificate == certificate)
    if generation <= (db.execute(used).scalar() or 0):
        raise ValueError(f"{certificate}@{generation} is used up")
    begun = Issuance(
        certificate, generation, authority, tuple(identifiers), now, replaces=replaces, exempt=exempt
    )
    db.execute(
        insert(tables.issuances).values(
            certificate=certificate,
            generation=generation,
            authority=authority,
            identifiers=names_of(identifiers),
            begun_at=now,
            replaces=replaces,
            exempt=exempt,
        )
    )
    return begun


def drop_replaces(db: Connection, certificate: str, generation: int) -> None:
    """Remember that the authority does not take an open try as a replacement, and so not as exempt. Repeatable.

    Raises:
        ValueError: there is no such open try.
    """
    table = tables.issuances
    known = _open_id(db, certificate, generation)
    db.execute(update(table).where(table.c.id == known).values(replaces=None, exempt=False))


def record_order_url(db: Connection, certificate: str, generation: int, url: str, now: datetime) -> None:
    """Remember where an open try's order is; the newest word counts, every order is kept as a row, and counted.

    Raises:
        ValueError: there is no such open try.
    """
    known = _open_id(db, certificate, generation)
    db.execute(update(tables.issuances).where(tables.issuances.c.id == known).values(order_url=url))
    if db.execute(select(tables.orders.c.url).where(tables.orders.c.url == url)).first() is None:
        row = {"url": url, "certificate": certificate, "generation": generation, "recorded_at": now}
        db.execute(insert(tables.orders).values(row))
        spending.count(db, SpendKind.ORDER, _issuances(db, tables.issuances.c.id == known)[0], now)
    # The authority may give an order again that was given up; its authorizations are needed now.
    spending.drop_leftover(db, url)


def record_answered(db: Connection, certificate: str, generation: int, challenge_url: str) -> None:
    """Remember that the authority was told to try a challenge of an open try; repeatable.

    Raises:
        ValueError: there is no such open try.
    """
    row = {"issuance": _open_id(db, certificate, generation), "challenge_url": challenge_url}
    if not db.execute(select(tables.answered).filter_by(**row)).first():
        db.execute(insert(tables.answered).values(row))


def abandon_issuance(
    db: Connection,
    certificate: str,
    generation: int,
    problem: Problem,
    now: datetime,
    *,
    failed: Sequence[Identifier] = (),
) -> None:
    """Close a try that led nowhere, kept as history, and forget its tokens. Repeatable.

    Its order may have left authorizations pending, which is remembered; the authorizations that `failed` are counted.
    """
    table = tables.issuances
    same = (table.c.certificate == certificate, table.c.generation == generation)
    for given_up in _issuances(db, *same, table.c.closed_at.is_(None)):
        if given_up.order_url is not None:
            put(
                db,
                tables.leftovers,
                {"order_url": given_up.order_url},
                {"authority": given_up.authority, "recorded_at": now},
            )
        for identifier in failed:
            spending.count(db, SpendKind.FAILURE, replace(given_up, identifiers=(identifier,)), now)
    close_issuance(db, certificate, generation, now, problem)


def open_issuances(db: Connection) -> tuple[Issuance, ...]:
    """Return every open try, oldest first."""
    return _issuances(db, tables.issuances.c.closed_at.is_(None))


def closed_issuances(db: Connection, certificate: str) -> tuple[ClosedIssuance, ...]:
    """Return the certificate's tries that ended, oldest first; one that was given up has its problem."""
    table = tables.issuances
    ended = (table.c.certificate == certificate, table.c.closed_at.is_not(None))
    query = select(table.c.closed_at, table.c.problem).where(*ended).order_by(table.c.id)
    how = db.execute(query).all()
    return tuple(
        ClosedIssuance(known, at, to_problem(problem))
        for known, (at, problem) in zip(_issuances(db, *ended), how, strict=True)
    )


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


def _open_id(db: Connection, certificate: str, generation: int) -> int:
    table = tables.issuances
    same = (table.c.certificate == certificate, table.c.generation == generation)
    known = db.execute(select(table.c.id).where(*same, table.c.closed_at.is_(None))).scalar()
    if known is None:
        raise ValueError(f"{certificate}@{generation} is not being issued")
    return int(known)


def _issuances(db: Connection, *where: ColumnElement[bool]) -> tuple[Issuance, ...]:
    """Return the tries that fit, in the order in which they were begun."""
    table, told = tables.issuances, tables.answered
    challenges = defaultdict[int, set[str]](set)
    for issuance, url in db.execute(select(told).join(table, told.c.issuance == table.c.id).where(*where)):
        challenges[issuance].add(url)
    return tuple(
        Issuance(
            row.certificate,
            row.generation,
            row.authority,
            identifiers_of(row.identifiers),
            row.begun_at,
            row.order_url,
            frozenset(challenges[row.id]),
            replaces=row.replaces,
            exempt=row.exempt,
        )
        for row in db.execute(select(table).where(*where).order_by(table.c.id))
    )
