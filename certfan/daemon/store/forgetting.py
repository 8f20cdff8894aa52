"""What left the config and is to be forgotten: the wishes, and the end of the facts. Events are never forgotten."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import Connection, delete, func, or_, select, update

from certfan.core.subjects import renewal_subject, revocation_subject
from certfan.daemon.store import tables
from certfan.daemon.store.issued import highest_number
from certfan.daemon.store.rows import put
from certfan.daemon.store.wishes import clear_order_attempts

# Orders stay: each took a slot of an authority's rate limit. Of a consumer everything stays that says who may speak.
_OF_A_CERTIFICATE = (
    *(tables.issuances, tables.tokens, tables.generations, tables.renewal_infos, tables.asked),
    *(tables.rollbacks, tables.definitions, tables.assignments, tables.published, tables.deployments),
    *(tables.proofs, tables.urgencies, tables.revocations),
    tables.signing_requests,
)
_OF_A_CONSUMER = (
    *(tables.assignments, tables.published, tables.deployments, tables.proofs, tables.urgencies),
    tables.forgotten_consumers,
)


def ask_forget(db: Connection, certificate: str, now: datetime) -> None:
    """Remember that someone wants an orphaned certificate gone."""
    values = {"generation": highest_number(db, certificate), "asked_at": now}
    put(db, tables.forgotten, {"certificate": certificate}, values)


def ask_forget_consumer(db: Connection, consumer: str, now: datetime) -> None:
    """Remember that someone wants an orphaned consumer's folder gone."""
    put(db, tables.forgotten_consumers, {"consumer": consumer}, {"asked_at": now})


def to_forget(db: Connection) -> dict[str, datetime]:
    """Return which certificates are to be forgotten, and since when."""
    table = tables.forgotten
    query = select(table.c.certificate, table.c.asked_at).where(table.c.asked_at.is_not(None))
    return dict(db.execute(query).all())


def consumers_to_forget(db: Connection) -> dict[str, datetime]:
    """Return which consumers are to be forgotten, and since when."""
    table = tables.forgotten_consumers
    return dict(db.execute(select(table.c.consumer, table.c.asked_at)).all())


def enrolled(db: Connection) -> dict[str, datetime]:
    """Return which consumers have an identity that has not ended, and since when."""
    table = tables.identities
    query = select(table.c.consumer, func.min(table.c.not_before)).where(table.c.ended_at.is_(None))
    return dict(db.execute(query.group_by(table.c.consumer)).all())


def keep_wanted(db: Connection, certificates: Collection[str], consumers: Collection[str]) -> None:
    """Drop every wish to forget what the config asks for (again)."""
    wanted = tables.forgotten.c.certificate.in_(certificates)
    db.execute(update(tables.forgotten).where(wanted).values(asked_at=None))
    back = tables.forgotten_consumers.c.consumer.in_(consumers)
    db.execute(delete(tables.forgotten_consumers).where(back))


def forget(db: Connection, certificate: str, highest: int) -> None:
    """Remove every fact of a certificate but the highest number ever seen: `highest`, or what is known here.

    Repeatable.
    """
    keep_number(db, certificate, max(highest, highest_number(db, certificate)))
    tries = select(tables.issuances.c.id).where(tables.issuances.c.certificate == certificate)
    db.execute(delete(tables.answered).where(tables.answered.c.issuance.in_(tries)))
    for table in _OF_A_CERTIFICATE:
        db.execute(delete(table).where(table.c.certificate == certificate))
    subject = tables.attempts.c.subject
    prefixes = (f"{certificate}/", revocation_subject(certificate, 0).removesuffix("0"))
    begun = (subject.startswith(prefix, autoescape=True) for prefix in prefixes)
    db.execute(delete(tables.attempts).where(or_(subject == renewal_subject(certificate), *begun)))
    clear_order_attempts(db, certificate)
    done = tables.forgotten.c.certificate == certificate
    db.execute(update(tables.forgotten).where(done).values(asked_at=None))


def keep_number(db: Connection, certificate: str, number: int) -> None:
    """Remember that a number was used, whatever is forgotten after this."""
    number = max(number, forgotten_number(db, certificate))
    put(db, tables.forgotten, {"certificate": certificate}, {"generation": number})


def forgotten_number(db: Connection, certificate: str) -> int:
    """Return the highest number that a certificate had before it was forgotten; 0 if it never was."""
    table = tables.forgotten
    return db.execute(select(table.c.generation).where(table.c.certificate == certificate)).scalar() or 0


def forget_consumer(db: Connection, consumer: str, subject: str) -> None:
    """Remove what a consumer was offered and what it said, and the failures at it (also under `subject`).

    Repeatable.
    """
    for table in _OF_A_CONSUMER:
        db.execute(delete(table).where(table.c.consumer == consumer))
    failed = tables.attempts.c.subject
    places = failed.endswith(f"/{consumer}", autoescape=True)
    db.execute(delete(tables.attempts).where(or_(failed == subject, places)))
