"""Between values and rows: what several subjects write the same way, in SQL that SQLite and PostgreSQL share.

What happens at every order is written with these, or with statements that are constants: see `prepared`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Delete,
    Insert,
    Table,
    Update,
    and_,
    bindparam,
    delete,
    insert,
    update,
)

from certfan.core.model import Identifier, Problem
from certfan.daemon.store import engine
from certfan.daemon.store.prepared import run, run_many


def put(db: Connection, table: Table, key: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Make the one row under `key` hold `values`, whether it was there or not."""
    run(db, _upsert(table, tuple(key), tuple(values)), {**key, **values})


def add(db: Connection, table: Table, values: Mapping[str, Any]) -> None:
    """Add one row."""
    run(db, _insert(table), values)


def add_all(db: Connection, table: Table, many: Sequence[Mapping[str, Any]]) -> None:
    """Add rows that name the same columns, in order."""
    run_many(db, _insert(table), many)


def add_new(db: Connection, table: Table, values: Mapping[str, Any]) -> bool:
    """Add one row unless one with its key is there, which stays as it is; return whether it was added."""
    return run(db, _insert_new(table), values) == 1


def change(db: Connection, table: Table, key: Mapping[str, Any], values: Mapping[str, Any]) -> int:
    """Let the rows under `key` hold `values`; return how many there are."""
    return run(db, _update(table, tuple(key)), {**_bound(key), **values})


def remove(db: Connection, table: Table, key: Mapping[str, Any]) -> int:
    """Remove the rows under `key`; return how many there were."""
    return run(db, _delete(table, tuple(key)), _bound(key))


@cache
def _insert(table: Table) -> Insert:
    return insert(table)


@cache
def _insert_new(table: Table) -> Insert:
    return engine.insert(table).on_conflict_do_nothing()


@cache
def _upsert(table: Table, key: tuple[str, ...], names: tuple[str, ...]) -> Insert:
    put = engine.insert(table)
    return put.on_conflict_do_update(index_elements=key, set_={name: put.excluded[name] for name in names})


@cache
def _update(table: Table, key: tuple[str, ...]) -> Update:
    return update(table).where(_same(table, key))


@cache
def _delete(table: Table, key: tuple[str, ...]) -> Delete:
    return delete(table).where(_same(table, key))


def _same(table: Table, key: tuple[str, ...]) -> ColumnElement[bool]:
    return and_(*(table.c[name] == bindparam(f"key_{name}", type_=table.c[name].type) for name in key))


def _bound(key: Mapping[str, Any]) -> dict[str, Any]:
    return {f"key_{name}": value for name, value in key.items()}


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
