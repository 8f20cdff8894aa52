"""Who may speak on the channel: consumers, one-time tokens by their hash, identities by their serial."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime

from sqlalchemy import Connection, insert, select, update

from certfan.daemon.store import tables
from certfan.daemon.store.facts import ConsumerFact, EnrolmentFact, IdentityFact, Standing
from certfan.errors import EnrolmentRefused, NotAuthenticated, RequestInvalid, UnknownName


def add_consumer(db: Connection, name: str, now: datetime) -> None:
    """Remember a consumer; repeatable."""
    if name not in consumers(db):
        db.execute(insert(tables.consumers).values(name=name, added_at=now))


def consumers(db: Connection) -> dict[str, ConsumerFact]:
    """Return every consumer that was added."""
    known = tables.consumers.c
    query = select(known.name, known.added_at, known.revoked_at).order_by(known.name)
    rows = db.execute(query).mappings()
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


def sealing_keys(db: Connection) -> dict[str, bytes]:
    """Return the public sealing key of every consumer that has told one."""
    table = tables.consumers
    query = select(table.c.name, table.c.sealing_key).where(table.c.sealing_key.is_not(None))
    return dict(db.execute(query).all())


def tell_sealing_key(db: Connection, consumer: str, sealing_key: bytes) -> None:
    """Remember a consumer's sealing key if none is known: it was told at enrolment, and a restore has lost it."""
    table = tables.consumers
    unknown = (table.c.name == consumer, table.c.sealing_key.is_(None))
    db.execute(update(table).where(*unknown).values(sealing_key=sealing_key))


def redeem(
    db: Connection,
    token_hash: str,
    spki: str,
    now: datetime,
    identity: IdentityFact,
    sealing_key: bytes | None = None,
) -> bytes:
    """Spend a token on a key: store the identity, end the consumer's earlier ones, return its certificate (PEM).

    `sealing_key` (public) is what its keys are sealed to from now on. One token, one key: the same key again gets the same certificate while the token lives, whatever `identity`
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
    _set_sealing_key(db, identity.consumer, sealing_key)
    return identity.certificate_pem


def _set_sealing_key(db: Connection, consumer: str, sealing_key: bytes | None) -> None:
    table = tables.consumers
    db.execute(update(table).where(table.c.name == consumer).values(sealing_key=sealing_key))


def identity(db: Connection, serial: str) -> IdentityFact | None:
    """Return the identity with that serial, ended or not."""
    row = db.execute(select(tables.identities).filter_by(serial=serial)).mappings().first()
    return IdentityFact(**row) if row else None


def standing(db: Connection) -> dict[str, Standing]:
    """Return every identity that has not ended, by serial."""
    table = tables.identities
    query = select(table.c.serial, table.c.consumer, table.c.used_at).where(table.c.ended_at.is_(None))
    return {serial: Standing(serial, consumer, used_at) for serial, consumer, used_at in db.execute(query)}


def identities(db: Connection, consumer: str) -> tuple[IdentityFact, ...]:
    """Return every identity the consumer ever had, oldest first."""
    table = tables.identities
    query = select(table).where(table.c.consumer == consumer).order_by(table.c.not_before, table.c.serial)
    return tuple(IdentityFact(**row) for row in db.execute(query).mappings())


def renew_identity(db: Connection, serial: str, now: datetime, successor: IdentityFact) -> bytes:
    """Store the successor of a live identity; return its certificate (PEM). Both count until it is used.

    The key of a successor that waits for its first use gets the same certificate again; another new key
    ends that one.

    Raises:
        NotAuthenticated: the identity has ended.
        RequestInvalid: the key is not new: an identity of the consumer has, or had, it.
    """
    known = {fact.serial: fact for fact in identities(db, successor.consumer)}
    if serial not in known or known[serial].ended_at is not None:
        raise NotAuthenticated(f"identity {serial} has ended", subject=successor.consumer)
    waiting = [f for f in known.values() if f.used_at is None and f.ended_at is None and f.serial != serial]
    for fact in waiting:
        if fact.spki == successor.spki:
            return fact.certificate_pem
    if any(fact.spki == successor.spki for fact in known.values()):
        raise RequestInvalid("renewal of an identity needs a new key", subject=successor.consumer)
    _end(db, successor.consumer, now, but=serial)
    db.execute(insert(tables.identities).values(asdict(successor)))
    return successor.certificate_pem


def use_identity(db: Connection, serial: str, now: datetime) -> tuple[str, ...]:
    """Note the first use of an identity, which ends the consumer's others; return their serials. Repeatable."""
    table = tables.identities
    first = db.execute(
        update(table)
        .where(table.c.serial == serial, table.c.used_at.is_(None), table.c.ended_at.is_(None))
        .values(used_at=now)
    )
    fact = identity(db, serial)
    return _end(db, fact.consumer, now, but=serial) if fact and first.rowcount == 1 else ()


def adopt_identity(db: Connection, found: IdentityFact, issued_at: datetime, now: datetime) -> bool:
    """Take in an identity that was issued after this database was backed up; False if it cannot be one.

    It must fall between what a run found remembered here and that run's beginning: what was issued then can
    only have been lost. Nothing is taken in from before the consumer's newest identity or its last revocation.
    """
    runs = tables.runs
    lost = select(runs.c.number).where(runs.c.remembered_until <= issued_at, runs.c.began_at >= issued_at)
    if db.execute(lost.limit(1)).first() is None:
        return False
    consumer = consumers(db).get(found.consumer)
    revoked = consumer is not None and consumer.revoked_at is not None and consumer.revoked_at >= issued_at
    newer = any(fact.not_before >= found.not_before for fact in identities(db, found.consumer))
    if revoked or newer:
        return False
    add_consumer(db, found.consumer, now)
    db.execute(insert(tables.identities).values(asdict(found)))
    _set_sealing_key(db, found.consumer, None)  # it may have been enrolled anew since: its next report tells
    return True


def end_identities(db: Connection, consumer: str, now: datetime) -> tuple[str, ...]:
    """End what the consumer can show and every token that would give it more; return the serials ended."""
    # Also one that is not known yet: its identity may be in a backup's future (adopt_identity).
    add_consumer(db, consumer, now)
    db.execute(update(tables.consumers).where(tables.consumers.c.name == consumer).values(revoked_at=now))
    table = tables.enrolments
    db.execute(
        update(table).where(table.c.consumer == consumer, table.c.state == "open").values(state="ended")
    )
    return _end(db, consumer, now)


def _end(db: Connection, consumer: str, now: datetime, *, but: str = "") -> tuple[str, ...]:
    table = tables.identities
    live = (table.c.consumer == consumer, table.c.ended_at.is_(None), table.c.serial != but)
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
