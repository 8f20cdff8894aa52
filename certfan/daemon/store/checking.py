"""What our own looks at the way of the challenge showed."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import Connection, delete, select

from certfan.core.model import PathCheck, Problem
from certfan.daemon.store import tables
from certfan.daemon.store.rows import from_problem, put, to_problem


def record_check(db: Connection, identifier: str, problem: Problem | None, now: datetime) -> bool:
    """Remember a look; return whether it turned from good to failing, or back, or failed at the first time."""
    before = checks(db).get(identifier)
    failing = problem is not None
    turned = failing if before is None else (before.problem is not None) != failing
    same_since = before.since if before is not None and not turned else None
    mended_at = before.mended_at if before is not None else None
    values = {
        "at": now,
        "problem": from_problem(problem),
        "failures": (before.failures if before else 0) + 1 if failing else 0,
        "since": same_since or now,
        "mended_at": now if turned and not failing else mended_at,
    }
    put(db, tables.checks, {"identifier": identifier}, values)
    return turned


def checks(db: Connection) -> dict[str, PathCheck]:
    """Return the last look at every identifier."""
    return {
        row.identifier: PathCheck(
            at=row.at,
            problem=to_problem(row.problem),
            failures=row.failures,
            since=row.since,
            mended_at=row.mended_at,
        )
        for row in db.execute(select(tables.checks)).all()
    }


def keep_checks(db: Connection, identifiers: Collection[str]) -> None:
    """Forget what is not wanted any more; repeatable."""
    known = set(db.execute(select(tables.checks.c.identifier)).scalars())
    for gone in sorted(known - set(identifiers)):
        db.execute(delete(tables.checks).where(tables.checks.c.identifier == gone))
