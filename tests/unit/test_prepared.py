"""Statements as the driver takes them: the same rows, errors and news of writes as by SQLAlchemy itself."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, bindparam, insert, select, update
from sqlalchemy.exc import IntegrityError

from certfan.daemon.store import tables
from certfan.daemon.store.engine import open_database, shut
from certfan.daemon.store.prepared import rows, run, tell, value

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
SPEND = {
    "authority": "ca",
    "kind": "order",
    "at": NOON,
    "names": ["www.example.org"],
    "exempt": True,
    "same_set": False,
}
_ALL = select(tables.spends)
_OF = _ALL.where(tables.spends.c.authority == bindparam("its_authority"))
_ADD = insert(tables.spends)
_DATE = update(tables.spends).where(tables.spends.c.authority == bindparam("its_authority"))


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Connection]:
    """A new database, inside a transaction."""
    db = open_database(tmp_path / "facts.db", lambda: NOON)
    with db.begin():
        yield db
    shut(db)


def test_what_one_writes_the_other_reads(db: Connection) -> None:
    """Instants, JSON and truth values come back as they went in, whoever wrote and whoever reads."""
    local = NOON.astimezone(timezone(timedelta(hours=2)))

    run(db, _ADD, {**SPEND, "at": local})
    db.execute(_ADD, SPEND)

    read = [tuple(row) for row in rows(db, _ALL, {})]
    assert [tuple(row) for row in db.execute(_ALL)] == read
    assert [(n, *SPEND.values()) for n in (1, 2)] == read


def test_a_row_has_its_columns_by_name_and_none_is_none(db: Connection) -> None:
    """A row is read like SQLAlchemy's; where there is none, the value is None."""
    run(db, _ADD, SPEND)

    (row,) = rows(db, _OF, {"its_authority": "ca"})
    assert (NOON, ["www.example.org"]) == (row.at, row.names)
    assert value(db, _OF, {"its_authority": "another"}) is None


def test_the_same_statement_takes_other_columns(db: Connection) -> None:
    """An update sets exactly the columns that are given, however often it was used for others."""
    run(db, _ADD, SPEND)

    assert 1 == run(db, _DATE, {"its_authority": "ca", "kind": "failure"})
    assert 1 == run(db, _DATE, {"its_authority": "ca", "exempt": False})
    assert 0 == run(db, _DATE, {"its_authority": "another", "exempt": True})
    (row,) = rows(db, _ALL, {})
    assert ("failure", False) == (row.kind, row.exempt)


def test_a_failure_is_told_as_sqlalchemy_tells_it(db: Connection) -> None:
    """What the store translates for its callers is one kind of error, whichever way it came."""
    with pytest.raises(IntegrityError):
        run(db, _ADD, {**SPEND, "kind": None})


def test_every_write_that_found_rows_is_told(db: Connection) -> None:
    """What is kept of the tables hears of added rows with their values, of others that they changed."""
    told: list[tuple[Any, Mapping[str, Any] | None]] = []
    tell(db, lambda table, added: told.append((table, added)))

    run(db, _ADD, SPEND)
    run(db, _DATE, {"its_authority": "ca", "exempt": False})
    run(db, _DATE, {"its_authority": "another", "exempt": True})

    assert [(tables.spends, SPEND), (tables.spends, None)] == told
