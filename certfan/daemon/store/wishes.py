"""What went wrong last, and what an admin asked for."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, bindparam, delete, or_, select

from certfan.core.model import Attempt
from certfan.daemon.store import tables
from certfan.daemon.store.prepared import run
from certfan.daemon.store.rows import from_problem, put, remove, to_problem

_SUBJECT = tables.attempts.c.subject
_CLEAR_ORDERS = delete(tables.attempts).where(
    or_(bindparam("certificate") == _SUBJECT, _SUBJECT.like(bindparam("at_others"), escape="/"))
)


def record_attempt(db: Connection, attempt: Attempt) -> None:
    """Remember the last failure of a thing."""
    values = {
        "problem": from_problem(attempt.problem),
        "failures": attempt.failures,
        "at": attempt.at,
        "not_before": attempt.not_before,
        "since": attempt.since,
    }
    put(db, tables.attempts, {"subject": attempt.subject}, values)


def clear_attempt(db: Connection, subject: str) -> None:
    """Forget the failures of a thing; repeatable."""
    remove(db, tables.attempts, {"subject": subject})


def clear_order_attempts(db: Connection, certificate: str) -> None:
    """Forget the failed orders of a certificate at every authority; repeatable."""
    # The underscore is the only character of a name that LIKE takes for a pattern.
    at_others = f"{certificate.replace('_', '/_')} at %"
    run(db, _CLEAR_ORDERS, {"certificate": certificate, "at_others": at_others})


def attempts(db: Connection) -> dict[str, Attempt]:
    """Return every failure that still stands, by subject."""
    found = {}
    for row in db.execute(select(tables.attempts)).all():
        problem = to_problem(row.problem)
        assert problem is not None
        found[row.subject] = Attempt(row.subject, problem, row.failures, row.at, row.not_before, row.since)
    return found


def ask_renewal(db: Connection, certificate: str, now: datetime) -> None:
    """Remember that someone wants a new generation; one issued from now on fulfils it. The last word counts."""
    drop_rollback(db, certificate)
    put(db, tables.asked, {"certificate": certificate}, {"at": now})


def asked(db: Connection) -> dict[str, datetime]:
    """Return since when which certificates are wanted anew."""
    return dict(db.execute(select(tables.asked.c.certificate, tables.asked.c.at)).all())


def ask_rollback(db: Connection, certificate: str, generation: int, now: datetime) -> None:
    """Remember that someone wants an older generation's pair back; `record_copy` fulfils it. The last word counts."""
    db.execute(delete(tables.asked).where(tables.asked.c.certificate == certificate))
    put(db, tables.rollbacks, {"certificate": certificate}, {"generation": generation, "at": now})


def drop_rollback(db: Connection, certificate: str) -> None:
    """Forget that an older pair was wanted back; repeatable."""
    db.execute(delete(tables.rollbacks).where(tables.rollbacks.c.certificate == certificate))


def rollbacks(db: Connection) -> dict[str, int]:
    """Return which certificates are wanted back at which generation."""
    return dict(db.execute(select(tables.rollbacks.c.certificate, tables.rollbacks.c.generation)).all())
