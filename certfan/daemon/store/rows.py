"""Between values and rows: what several subjects write the same way, in SQL that every engine knows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Table, and_, insert, update

from certfan.core.model import Identifier, Problem


def put(db: Connection, table: Table, key: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Make the one row under `key` hold `values`, whether it was there or not."""
    where = and_(*(table.c[name] == value for name, value in key.items()))
    if db.execute(update(table).where(where).values(**values)).rowcount == 0:
        db.execute(insert(table).values(**key, **values))


def names_of(identifiers: Iterable[Identifier]) -> list[str]:
    """Return identifiers in the order given, as JSON holds them."""
    return [identifier.value for identifier in identifiers]


def identifiers_of(names: Iterable[str]) -> tuple[Identifier, ...]:
    """Undo `names_of`."""
    return tuple(map(Identifier, names))


def from_problem(problem: Problem | None) -> dict[str, str] | None:
    """Return a problem as JSON holds it."""
    if problem is None:
        return None
    held = {"code": problem.code, "detail": problem.detail, "hint": problem.hint, "output": problem.output}
    if problem.not_before is not None:
        held["not_before"] = problem.not_before.astimezone(UTC).isoformat()
    return held


def to_problem(held: Mapping[str, str] | None) -> Problem | None:
    """Undo `from_problem`."""
    if held is None:
        return None
    not_before = held.get("not_before")
    return Problem(
        held["code"],
        held["detail"],
        held["hint"],
        datetime.fromisoformat(not_before) if not_before else None,
        held["output"],
    )
