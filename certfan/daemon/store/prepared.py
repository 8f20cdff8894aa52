"""Statements that are constants, as the driver takes them: what happens at every order is read and written with these.

SQLAlchemy compiles each once for its engine and says how values become columns and back. What it does around each
execution, even of a compiled one, takes several times as long as the statement itself (measured: 60 to 100 us of 70 to
110); that is left out here. What must never come in: SQL of our own, or a statement that is built anew at each call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from sqlalchemy import Connection, Delete, Dialect, Insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.base import Executable
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.sql.selectable import ReturnsRows

Convert: TypeAlias = Callable[[Any], Any]
Written: TypeAlias = tuple[Any, Mapping[str, Any]]  # a table, and what is known of a row of it now

_WITNESS = "certfan.witness"
_known: dict[tuple[str, Executable, tuple[str, ...]], Prepared] = {}


class Witness(Protocol):
    """Whoever keeps what the tables hold: it hears of every write, and may know that there is nothing to remove."""

    def written(self, table: Any, row: Mapping[str, Any] | None) -> None:
        """Hear that a table was written: this row, by what is known of it now, or (None) any."""

    def is_empty(self, table: Any) -> bool:
        """Whether a table is known to have no row."""


class Prepared:
    """One statement for one engine, with the names of its values."""

    def __init__(self, statement: Any, names: tuple[str, ...], dialect: Dialect) -> None:
        compiled = statement.compile(dialect=dialect, column_keys=list(names))
        self.sql = str(compiled)
        self._names = compiled.positiontup or []
        self._otherwise = {name: compiled.binds[name].value for name in self._names if name not in names}
        kinds = [compiled.binds[name].type for name in self._names]  # one may come twice
        self._on_the_way_in = _conversions(
            [kind.dialect_impl(dialect).bind_processor(dialect) for kind in kinds]
        )
        columns = list(statement.exported_columns) if isinstance(statement, ReturnsRows) else []
        self._columns = [str(column.key) for column in columns]
        back = [column.type.dialect_impl(dialect).result_processor(dialect, None) for column in columns]
        self._on_the_way_out = [(self._columns[place], convert) for place, convert in _conversions(back)]

    def parameters(self, values: Mapping[str, Any]) -> list[Any]:
        """Return the values as the driver takes them, in the order of their places."""
        given = {**self._otherwise, **values} if self._otherwise else values
        found = [given[name] for name in self._names]
        for place, convert in self._on_the_way_in:
            found[place] = convert(found[place])
        return found

    def read(self, raw: tuple[Any, ...]) -> dict[str, Any]:
        """Return a row by the names of its columns, in their order."""
        found = dict(zip(self._columns, raw, strict=True))
        for name, convert in self._on_the_way_out:
            found[name] = convert(found[name])
        return found


def run(db: Connection, statement: UpdateBase, values: Mapping[str, Any]) -> int:
    """Write; return how many rows it found. `values` are the statement's parameters, and the columns to set."""
    witness = db.info.get(_WITNESS)
    if witness and isinstance(statement, Delete) and witness.is_empty(statement.table):
        return 0
    count: int = _execute(db, statement, values)[1].rowcount
    if witness and count:
        witness.written(statement.table, values if isinstance(statement, Insert) else None)
    return count


def returning(db: Connection, statement: UpdateBase, values: Mapping[str, Any]) -> dict[str, Any] | None:
    """Write; return what the statement returns of the row that it found, None if it found none."""
    found = rows(db, statement, values)
    if witness := db.info.get(_WITNESS):
        for row in found:
            witness.written(statement.table, values if isinstance(statement, Insert) else row)
    return found[0] if found else None


def run_many(db: Connection, statement: Insert, many: Sequence[Mapping[str, Any]]) -> None:
    """Write each of some rows that name the same columns."""
    if many:
        _execute(db, statement, *many)
        if witness := db.info.get(_WITNESS):
            witness.written(statement.table, None)


def rows(db: Connection, statement: Executable, values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Read; return every row by the names of its columns, in their order."""
    prepared, cursor = _execute(db, statement, values)
    return [prepared.read(raw) for raw in cursor.fetchall()]


def value(db: Connection, statement: Executable, values: Mapping[str, Any]) -> Any:
    """Read; return the first column of the first row, None if there is none."""
    found = rows(db, statement, values)
    return next(iter(found[0].values())) if found else None


def tell(db: Connection, witness: Witness) -> None:
    """Have every write that goes this way told from now on."""
    db.info[_WITNESS] = witness


def drive(db: Connection, sql: str, parameters: Sequence[Any] = (), *, many: bool = False) -> Any:
    """Have the driver do something, for `many` once for each parameters; its errors come as SQLAlchemy's."""
    cursor = db.connection.cursor()
    try:
        (cursor.executemany if many else cursor.execute)(sql, parameters)
    except db.dialect.loaded_dbapi.Error as error:
        cursor.close()  # what refers to the error would keep it, and who drops that waits until no other thread uses the database
        kind = db.dialect.loaded_dbapi.Error
        raise DBAPIError.instance(sql, parameters, error, kind, dialect=db.dialect) from error
    return cursor


def _execute(
    db: Connection, statement: Any, values: Mapping[str, Any], *more: Mapping[str, Any]
) -> tuple[Prepared, Any]:
    key = (db.dialect.name, statement, tuple(values))
    prepared = _known.get(key)
    if prepared is None:
        prepared = _known[key] = Prepared(statement, key[2], db.dialect)
    if more:
        return prepared, drive(db, prepared.sql, [*map(prepared.parameters, (values, *more))], many=True)
    return prepared, drive(db, prepared.sql, prepared.parameters(values))


def _conversions(found: Sequence[Convert | None]) -> list[tuple[int, Convert]]:
    """Return what is not taken as it is, by its place."""
    return [(place, convert) for place, convert in enumerate(found) if convert is not None]
