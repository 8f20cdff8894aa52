"""SQLite as the embedded engine: how it is opened, and how its schema is brought up to date.

The only file of the store that knows which engine it is. Alembic is loaded when there is something to migrate only.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event, inspect, text
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import DatabaseError

from certfan import __version__, files
from certfan.daemon.store.prepared import drive
from certfan.errors import SchemaTooNew

KEPT = 3  # copies of before a migration
REVISION = "0005"  # the newest file in migrations/versions; revisions are numbers of four digits
BUSY_TIMEOUT = 5000  # milliseconds; only an admin with a shell can hold this database
_BEGIN = "BEGIN IMMEDIATE"  # waits for a foreign writer; a read that becomes a write later would fail at once
LONG = 4000  # rows written since the log's contents were last brought into the database: then it is time to

insert = sqlite.insert  # can say what becomes of a row that is there already, as PostgreSQL's can


def open_database(path: Path, clock: Callable[[], datetime]) -> Connection:
    """Return the one connection, its schema up to date; for any thread, but never for two at once.

    What it commits is durable when its log (`Log`) was synced.

    Raises:
        SchemaTooNew: a newer release has written it.
        sqlalchemy.exc.DatabaseError: it is no database, or cannot be read.
    """
    with contextlib.suppress(FileExistsError):
        files.create(path, b"")
        files.sync_folder(path.parent)
    db = _engine(path).connect()
    try:
        with patiently(db):
            _migrate(db, path, clock)
    except BaseException:
        shut(db)
        raise
    return db


@contextlib.contextmanager
def patiently(db: Connection) -> Iterator[None]:
    """Wait for a foreign writer meanwhile; else a transaction fails at once where one holds the database."""
    driver = _driver(db)
    driver.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT}")
    try:
        yield
    finally:
        driver.execute("PRAGMA busy_timeout = 0")


@contextlib.contextmanager
def transaction(db: Connection) -> Iterator[None]:
    """Do what is within whole or not at all: as `db.begin()`, at a tenth of what its events and states cost.

    The other way round from SQLAlchemy's: its own transaction, if one of its executions needs one, is within this.
    """
    drive(db, _BEGIN)
    try:
        yield
        if db.in_transaction():
            db.commit()
        else:
            drive(db, "COMMIT")
    except BaseException:
        db.rollback()
        _driver(db).rollback()
        raise


def _driver(db: Connection) -> sqlite3.Connection:
    driver = db.connection.dbapi_connection
    assert isinstance(driver, sqlite3.Connection)
    return driver


def shut(db: Connection) -> None:
    """Close the connection and what stands behind it."""
    db.close()
    db.engine.dispose()


class Log:
    """The write-ahead log of an open database: a commit is durable when it was synced (sqlite.org/wal.html, section 2.2).

    As with `synchronous = FULL`, but the one who commits decides how to wait.
    """

    def __init__(self, db: Connection) -> None:
        self._driver = _driver(db)
        assert db.engine.url.database
        path = Path(f"{db.engine.url.database}-wal")
        # SQLite locks other files than this one, so nothing is lost when it is closed.
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        files.sync_folder(path.parent)  # its name
        self._synced = self._emptied = 0  # changes, when that was last done; nothing is known of those before
        os.fsync(self.fd)

    def grew(self) -> bool:
        """Whether something was written since this was last asked."""
        before, self._synced = self._synced, self._driver.total_changes
        return before != self._synced

    @property
    def is_long(self) -> bool:
        """Whether it is time to empty it."""
        return self._driver.total_changes - self._emptied >= LONG

    def empty(self) -> None:
        """Bring what it holds into the database, as far as no reader needs it here; waits for the disk."""
        self._emptied = self._driver.total_changes
        with contextlib.suppress(sqlite3.Error):  # it holds everything still, and is emptied later
            self._driver.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def close(self) -> None:
        """Let the file go; repeatable."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _engine(path: Path) -> Engine:
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        poolclass=NullPool,
        # The driver would begin transactions late and end them before DDL; we say BEGIN ourselves.
        connect_args={"isolation_level": None, "timeout": BUSY_TIMEOUT / 1000, "check_same_thread": False},
    )
    event.listen(engine, "connect", _set_up)
    event.listen(engine, "begin", _begin)
    return engine


def _set_up(connection: sqlite3.Connection, _record: object) -> None:
    # A commit goes into the log and waits for no disk: whoever committed syncs the log, and empties it in time.
    for pragma in (
        "journal_mode = WAL",
        "synchronous = NORMAL",
        "wal_autocheckpoint = 0",
        "foreign_keys = ON",
        "secure_delete = ON",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin(db: Connection) -> None:
    if not _driver(db).in_transaction:
        drive(db, _BEGIN)


def _migrate(db: Connection, path: Path, clock: Callable[[], datetime]) -> None:
    with db.begin():
        empty = not inspect(db).get_table_names()
        current = "" if empty else _revision(db)
    if current > REVISION:
        writer = _last_writer(db)
        raise SchemaTooNew(
            f"database {path} has schema {current}, written by {writer}; this is {__version__}, which knows {REVISION}",
            subject=str(path),
            hint=f"install {writer} again, or go back to the copy of before it: ls {path}.before-*",
        )
    if current == REVISION:
        return
    if not empty:
        _back_up(db, path, clock())
    # Here, not above: it costs as much as the rest of opening, and a start rarely needs it.
    from certfan.daemon.store import migrations

    with db.begin():
        migrations.upgrade(db, REVISION)


def _revision(db: Connection) -> str:
    if not inspect(db).has_table("alembic_version"):
        return ""
    return db.execute(text("SELECT version_num FROM alembic_version")).scalar() or ""


def _last_writer(db: Connection) -> str:
    """Return the newest release that ran on this database, as far as a schema that we do not know lets us see."""
    told = text("SELECT fields FROM events WHERE name = 'run.began' ORDER BY id DESC LIMIT 1")
    with contextlib.suppress(DatabaseError, ValueError, TypeError, KeyError), db.begin():
        return f"certfan {json.loads(db.execute(told).scalar() or '{}')['version']}"
    return "a newer release"


def _back_up(db: Connection, path: Path, now: datetime) -> None:
    """Copy the database, as it is before a migration, to a private file beside it; durable on return."""
    copy = path.with_name(f"{path.name}.before-{REVISION}.{now.astimezone(UTC):%Y%m%dT%H%M%SZ}")
    files.write_private(copy, _driver(db).serialize())
    for old in sorted(path.parent.glob(f"{path.name}.before-*"), key=lambda kept: kept.name[-16:])[:-KEPT]:
        old.unlink()


def copy_database(path: Path, copy: Path) -> None:
    """Copy a database as it is at one instant, while others write to it, to a new private file; durable on return.

    Raises:
        OSError: it cannot be read, or the copy not be written.
    """
    files.create(copy, b"")
    try:
        with (
            contextlib.closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as source,
            contextlib.closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
            # Or a restored database would come with no log that belongs to it, and look for one.
            target.execute("PRAGMA journal_mode = DELETE")
    except sqlite3.Error as error:
        raise OSError(f"database {path} cannot be copied: {error}") from error
