"""Statements as the driver takes them: the same rows, errors and news of writes as by SQLAlchemy itself."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, DateTime, bindparam, delete, insert, select, update
from sqlalchemy.exc import IntegrityError, OperationalError

from certfan.daemon.store import tables
from certfan.daemon.store.engine import open_database, shut
from certfan.daemon.store.prepared import drive, returning, rows, run, run_many, tell, value

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
_TELL = _DATE.returning(tables.spends.c.kind)


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

    read = [tuple(row.values()) for row in rows(db, _ALL, {})]
    assert [tuple(row) for row in db.execute(_ALL)] == read
    assert [(n, *SPEND.values()) for n in (1, 2)] == read


@pytest.mark.parametrize("at", [NOON, NOON.replace(year=987, microsecond=7)])
def test_an_instant_is_kept_as_sqlalchemy_keeps_one(db: Connection, at: datetime) -> None:
    """As earlier releases wrote it: a later one reads it, and text compares as what it stands for."""
    run(db, _ADD, {**SPEND, "at": at.astimezone(timezone(timedelta(hours=2)))})
    plain = DateTime().dialect_impl(db.dialect).bind_processor(db.dialect)
    assert plain is not None

    kept = db.exec_driver_sql("SELECT at FROM spends").scalar()
    assert (plain(at.replace(tzinfo=None)), at) == (kept, value(db, select(tables.spends.c.at), {}))


def test_a_row_has_its_columns_by_name_and_none_is_none(db: Connection) -> None:
    """A row is read like SQLAlchemy's; where there is none, the value is None."""
    run(db, _ADD, SPEND)

    (row,) = rows(db, _OF, {"its_authority": "ca"})
    assert (NOON, ["www.example.org"]) == (row["at"], row["names"])
    assert value(db, _OF, {"its_authority": "another"}) is None


def test_a_value_that_is_named_twice_becomes_a_column_at_both_places(db: Connection) -> None:
    """Beside a value that the statement has itself."""
    run(db, _ADD, SPEND)
    at, moment = tables.spends.c.at, bindparam("moment", type_=tables.spends.c.at.type)
    then = _ALL.where(at <= moment, tables.spends.c.kind == "order", at >= moment)

    assert [NOON] == [row["at"] for row in rows(db, then, {"moment": NOON})]
    assert [] == rows(db, then, {"moment": NOON + timedelta(hours=1)})


def test_the_same_statement_takes_other_columns(db: Connection) -> None:
    """An update sets exactly the columns that are given, however often it was used for others."""
    run(db, _ADD, SPEND)

    assert 1 == run(db, _DATE, {"its_authority": "ca", "kind": "failure"})
    assert 1 == run(db, _DATE, {"its_authority": "ca", "exempt": False})
    assert 0 == run(db, _DATE, {"its_authority": "another", "exempt": True})
    (row,) = rows(db, _ALL, {})
    assert ("failure", False) == (row["kind"], row["exempt"])


def test_a_failure_is_told_as_sqlalchemy_tells_it(db: Connection) -> None:
    """What the store translates for its callers is one kind of error, whichever way it came."""
    with pytest.raises(IntegrityError):
        run(db, _ADD, {**SPEND, "kind": None})
    with pytest.raises(IntegrityError):
        run_many(db, _ADD, [SPEND, {**SPEND, "kind": None}])
    with pytest.raises(OperationalError, match="within a transaction"):
        drive(db, "BEGIN IMMEDIATE")


class Heard:
    """Hears of writes, and knows of one table that it is empty, whether that is so or not."""

    def __init__(self, empty: Any) -> None:
        self.empty = empty
        self.of: list[tuple[Any, Mapping[str, Any] | None]] = []

    def written(self, table: Any, row: Mapping[str, Any] | None) -> None:
        self.of.append((table, row))

    def is_empty(self, table: Any) -> bool:
        return table is self.empty


def test_every_write_that_found_rows_is_told(db: Connection) -> None:
    """Whoever keeps what the tables hold hears of a row where the write shows it, else that there was one."""
    heard = Heard(tables.asked)
    tell(db, heard)

    run(db, _ADD, SPEND)
    run(db, _DATE, {"its_authority": "ca", "exempt": False})
    run(db, _DATE, {"its_authority": "another", "exempt": True})
    returning(db, _TELL, {"its_authority": "ca", "kind": "failure"})
    returning(db, _TELL, {"its_authority": "another", "kind": "failure"})
    run_many(db, _ADD, [SPEND, SPEND])
    run_many(db, _ADD, [])
    run(db, delete(tables.spends), {})

    assert [(tables.spends, row) for row in (SPEND, None, {"kind": "failure"}, None, None)] == heard.of


def test_nothing_is_removed_from_a_table_that_is_known_to_be_empty(db: Connection) -> None:
    """The statement is left out, of that table only."""
    run(db, _ADD, SPEND)
    tell(db, Heard(tables.spends))
    left_out = run(db, delete(tables.spends), {})
    tell(db, Heard(tables.asked))

    assert (0, 1) == (left_out, run(db, delete(tables.spends), {}))
