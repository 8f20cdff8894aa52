"""Who may speak on the channel: consumers, one-time tokens by their hash, identities by their serial."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime

from sqlalchemy import Connection, insert, select, update

from certfan.daemon.store import tables
from certfan.daemon.store.facts import ConsumerFact, EnrolmentFact, IdentityFact
from certfan.errors import EnrolmentRefused, UnknownName


def add_consumer(db: Connection, name: str, now: datetime) -> None:
    """Remember a consumer; repeatable."""
    if name not in consumers(db):
        db.execute(insert(tables.consumers).values(name=name, added_at=now))


def consumers(db: Connection) -> dict[str, ConsumerFact]:
    """Return every consumer that was added."""
    rows = db.execute(select(tables.consumers).order_by(tables.consumers.c.name)).mappings()
    return {row["name"]: ConsumerFact(**row) for row in rows}


def open_enrolment(db: Connection, consumer: str, token_hash: str, expires: datetime, now: datetime) -> None:
    """Let whoever holds the token become `consumer`, once, until `expires`.

    Raises:
        UnknownName: no such consumer was added.
    """
    if consumer not in consumers(db):
        raise UnknownName(f"no consumer is called {consumer}", subject=consumer)
    db.execute(
        insert(tables.enrolments).values(
            token_hash=token_hash,
            consumer=consumer,
            state="open",
            opened_at=now,
            expires=expires,
            spent_by="",
        )
    )


def enrolment(db: Connection, token_hash: str) -> EnrolmentFact | None:
    """Return what a token is for, whatever became of it."""
    row = db.execute(select(tables.enrolments).filter_by(token_hash=token_hash)).first()
    if row is None:
        return None
    return EnrolmentFact(
        row.token_hash, row.consumer, opened_at=row.opened_at, expires=row.expires, spent_by=row.spent_by
    )


def redeem(db: Connection, token_hash: str, spki: str, now: datetime, identity: IdentityFact) -> bytes:
    """Spend a token on a key: store the identity, end the consumer's earlier ones, return its certificate (PEM).

    One token, one key: the same key again gets the same certificate while the token lives, whatever `identity`
    says then; any other key gets nothing.

    Raises:
        EnrolmentRefused: the token is unknown, expired, ended, used by another key, or another consumer's.
    """
    table = tables.enrolments
    spent = db.execute(
        update(table)
        .where(
            table.c.token_hash == token_hash,
            table.c.consumer == identity.consumer,
            table.c.state == "open",
            table.c.expires > now,
        )
        .values(state="spent", spent_by=spki, serial=identity.serial)
    )
    if spent.rowcount != 1:
        return _redeemed_before(db, token_hash, spki, now)
    _end(db, identity.consumer, now)
    db.execute(insert(tables.identities).values(asdict(identity)))
    return identity.certificate_pem


def identity(db: Connection, serial: str) -> IdentityFact | None:
    """Return the identity with that serial, ended or not."""
    row = db.execute(select(tables.identities).filter_by(serial=serial)).mappings().first()
    return IdentityFact(**row) if row else None


def identities(db: Connection, consumer: str) -> tuple[IdentityFact, ...]:
    """Return every identity the consumer ever had, oldest first."""
    table = tables.identities
    query = select(table).where(table.c.consumer == consumer).order_by(table.c.not_before, table.c.serial)
    return tuple(IdentityFact(**row) for row in db.execute(query).mappings())


def end_identities(db: Connection, consumer: str, now: datetime) -> tuple[str, ...]:
    """End what the consumer can show and every token that would give it more; return the serials ended."""
    table = tables.enrolments
    db.execute(
        update(table).where(table.c.consumer == consumer, table.c.state == "open").values(state="ended")
    )
    return _end(db, consumer, now)


def _end(db: Connection, consumer: str, now: datetime) -> tuple[str, ...]:
    table = tables.identities
    live = (table.c.consumer == consumer, table.c.ended_at.is_(None))
    serials = tuple(db.execute(select(table.c.serial).where(*live).order_by(table.c.serial)).scalars())
    db.execute(update(table).where(*live).values(ended_at=now))
    return serials


def _redeemed_before(db: Connection, token_hash: str, spki: str, now: datetime) -> bytes:
    row = db.execute(select(tables.enrolments).filter_by(token_hash=token_hash)).first()
    if row is None:
        raise EnrolmentRefused("enrolment token is unknown", hint="run: certfan consumer add NAME")
    hint = f"run: certfan consumer add {row.consumer}"
    if row.expires <= now:
        raise EnrolmentRefused(f"enrolment token of {row.consumer} expired", subject=row.consumer, hint=hint)
    if row.state == "open":
        raise EnrolmentRefused("enrolment token is another consumer's", subject=row.consumer, hint=hint)
    earlier = identity(db, row.serial) if row.state == "spent" and row.spent_by == spki else None
    if earlier is None or earlier.ended_at is not None:
        raise EnrolmentRefused(f"enrolment token of {row.consumer} is used", subject=row.consumer, hint=hint)
    return earlier.certificate_pem
