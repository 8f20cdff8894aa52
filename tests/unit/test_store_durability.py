"""What was returned survives; the schema moves forward only; the database is closed to others."""

import asyncio
import errno
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from certfan import __version__
from certfan.daemon.disk import Then
from certfan.daemon.store import Event, Store, engine, migrations, tables
from certfan.errors import SchemaTooNew, StoreFailed

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)

WRITER = """
import asyncio, sys
from datetime import UTC, datetime
from certfan.daemon.store import Store

async def main():
    now = lambda: datetime.now(UTC)
    store = await Store.open(sys.argv[1], now)
    for n in range(100_000):
        await store.ask_renewal(f"c{n}", now())
        print(n, flush=True)

asyncio.run(main())
"""

OPENER = """
import asyncio, sys
from datetime import UTC, datetime
from certfan.daemon.store import Store

async def main():
    store = await Store.open(sys.argv[1], lambda: datetime.now(UTC))
    await store.facts()
    await store.close()
    print("alembic" in sys.modules)

asyncio.run(main())
"""


async def opened(path: Path) -> Store:
    return await Store.open(path, lambda: NOW)


def put_revision(path: Path, revision: str) -> None:
    with sqlite3.connect(path) as db:
        db.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    db.close()


async def test_what_was_written_is_there_after_reopening(tmp_path: Path) -> None:
    """A closed database gives back what it was given."""
    first = await opened(tmp_path / "certfan.db")
    await first.ask_renewal("www", NOW)
    await first.close()
    await first.close()
    second = await opened(tmp_path / "certfan.db")
    asked = await second.asked()
    await second.close()

    assert {"www": NOW} == asked


@pytest.mark.parametrize("after", [0, 7, 30])
async def test_what_was_returned_survives_kill_9(tmp_path: Path, after: int) -> None:
    """A process killed between two writes has lost none that was acknowledged, and opening just works."""
    path = tmp_path / "certfan.db"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if int(line) == after:
                break
        os.kill(child.pid, signal.SIGKILL)
        acknowledged = [after, *(int(line) for line in child.stdout if line.endswith("\n"))]
    store = await opened(path)
    asked = await store.asked()
    await store.close()

    assert set() == {f"c{n}" for n in range(acknowledged[-1] + 1)} - set(asked)


async def test_a_cancelled_call_leaves_the_store_usable(tmp_path: Path) -> None:
    """Cancelled calls have happened whole or not at all, and the next call is answered."""
    store = await opened(tmp_path / "certfan.db")
    tasks = [asyncio.create_task(store.ask_renewal(f"c{n}", NOW)) for n in range(50)]
    await tasks[0]
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    asked = await store.asked()
    await store.close()

    assert NOW == asked["c0"]


async def test_a_new_database_has_the_tables_of_the_code(tmp_path: Path) -> None:
    """The migrations, run from nothing, build exactly what tables.py says."""
    path = tmp_path / "certfan.db"
    await (await opened(path)).close()
    built = create_engine(f"sqlite:///{path}")
    with built.connect() as db:
        difference = compare_metadata(
            MigrationContext.configure(db, opts={"compare_type": False}), tables.metadata
        )
    built.dispose()

    assert [] == difference


def test_the_known_revision_is_the_newest_migration() -> None:
    """The number compared at every start without Alembic is the head that Alembic sees."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))

    assert engine.REVISION == ScriptDirectory.from_config(config).get_current_head()


async def test_an_up_to_date_database_opens_without_alembic(tmp_path: Path) -> None:
    """A start that has nothing to migrate does not pay for loading it."""
    path = tmp_path / "certfan.db"
    await (await opened(path)).close()
    seen = subprocess.run(
        [sys.executable, "-c", OPENER, str(path)], capture_output=True, text=True, check=True
    )

    assert "False" == seen.stdout.strip()


async def test_opening_takes_a_moment_only(tmp_path: Path) -> None:
    """The best of five openings of an up-to-date database stays far below 50 ms of this process's time."""
    path = tmp_path / "certfan.db"
    await (await opened(path)).close()
    took = []
    for _ in range(5):
        began = time.process_time()
        await (await opened(path)).close()
        took.append(time.process_time() - began)

    assert min(took) < 0.05


async def test_a_newer_schema_is_refused_untouched(tmp_path: Path) -> None:
    """A database of a newer release is neither opened nor changed."""
    path = tmp_path / "certfan.db"
    await (await opened(path)).close()
    put_revision(path, "9999")
    before = path.read_bytes()
    with pytest.raises(SchemaTooNew, match="9999"):
        await opened(path)

    assert before == path.read_bytes()


async def test_who_wrote_a_newer_schema_is_told_and_what_to_do(tmp_path: Path) -> None:
    """The refusal names both releases and the copy to go back to, and has an exit code of its own."""
    path = tmp_path / "certfan.db"
    store = await opened(path)
    await store.add_events([Event(NOW, "run.began", "daemon", {"version": "7.2.1", "pid": 1})])
    await store.close()
    put_revision(path, "9999")
    with pytest.raises(SchemaTooNew) as refused:
        await opened(path)

    assert f"written by certfan 7.2.1; this is {__version__}" in refused.value.text
    assert (
        refused.value.hint
        == f"install certfan 7.2.1 again, or go back to the copy of before it: ls {path}.before-*"
    )
    assert refused.value.exit_code == 65


async def test_only_the_newest_copies_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of them, by their time, whatever schema they were made for."""
    path = tmp_path / "certfan.db"
    with monkeypatch.context() as earlier:
        earlier.setattr(engine, "REVISION", "0001")
        await (await opened(path)).close()
    for name in ("0009.20240101T000000Z", "0002.20250101T000000Z", "0003.20260101T000000Z"):
        (tmp_path / f"certfan.db.before-{name}").touch()
    await (await opened(path)).close()

    kept = sorted(file.name.rpartition(".")[2] for file in tmp_path.glob("certfan.db.before-*"))
    assert kept == ["20250101T000000Z", "20260101T000000Z", "20261122T120000Z"]


async def test_a_copy_is_made_before_a_migration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database of the release before is copied, 0600, as it was; then it is migrated and keeps its facts."""
    path = tmp_path / "certfan.db"
    with monkeypatch.context() as earlier:
        earlier.setattr(engine, "REVISION", "0001")
        await (await opened(path)).close()
    with sqlite3.connect(path) as db:
        db.execute("INSERT INTO asked VALUES ('www', '2026-11-22 12:00:00.000000')")
        db.execute("INSERT INTO attempts VALUES ('www', '{\"code\": \"c\", \"detail\": \"d\", \"hint\": \"\", \"output\": \"\"}', 2, '2026-11-22 12:00:00.000000', '2026-11-22 13:00:00.000000')")  # fmt: skip
    db.close()
    store = await opened(path)
    asked, attempts = await store.asked(), await store.attempts()
    await store.close()

    copy = path.with_name(f"certfan.db.before-{engine.REVISION}.20261122T120000Z")
    with sqlite3.connect(copy) as db:
        copied = db.execute("SELECT certificate, version_num FROM asked, alembic_version").fetchall()
    db.close()
    assert [("www", "0001")] == copied
    assert 0o600 == stat.S_IMODE(copy.stat().st_mode)
    assert {"www": NOW} == asked
    assert (2, None) == (attempts["www"].failures, attempts["www"].since)


async def test_a_migration_that_fails_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables made by half a migration are gone with it, and the next start tries again from the start."""
    path = tmp_path / "certfan.db"
    real = migrations.upgrade

    def fails_late(db: object, revision: str) -> None:
        real(db, revision)  # type: ignore[arg-type]
        raise RuntimeError("power cut")

    monkeypatch.setattr(migrations, "upgrade", fails_late)
    with pytest.raises(RuntimeError):
        await opened(path)
    monkeypatch.setattr(migrations, "upgrade", real)
    with sqlite3.connect(path) as db:
        left = db.execute("SELECT name FROM sqlite_master").fetchall()
    db.close()
    store = await opened(path)
    await store.ask_renewal("www", NOW)
    await store.close()

    assert [] == left


async def test_what_is_no_database_is_named(tmp_path: Path) -> None:
    """A damaged file gives an error that names it, not a traceback of the engine."""
    path = tmp_path / "certfan.db"
    path.write_bytes(b"this is no database, whatever its name says" * 100)

    with pytest.raises(StoreFailed, match=r"certfan\.db"):
        await opened(path)


async def test_the_engine_leaves_syncing_and_emptying_the_log_to_us(tmp_path: Path) -> None:
    """A commit on the loop waits for no disk: write-ahead log, no sync at a commit, no checkpoint in one."""
    store = await opened(tmp_path / "certfan.db")
    from certfan.daemon.store.store import transaction

    def pragmas(db: object) -> list[object]:
        ask = ("journal_mode", "synchronous", "wal_autocheckpoint", "foreign_keys")
        return [db.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ask]  # type: ignore[attr-defined]

    seen = await transaction(pragmas)(store)
    await store.close()

    assert ["wal", 1, 0, 1] == seen


async def test_a_log_that_cannot_be_kept_ends_the_store(tmp_path: Path) -> None:
    """Whoever wrote hears it, and so does the next tick, which ends the daemon; what is so is read when it is opened again."""
    path = tmp_path / "certfan.db"
    store = await opened(path)
    await store.ask_renewal("kept", NOW)
    await store.facts()
    whole = store._disk.sync

    def lost(_: int, then: Then) -> None:
        asyncio.get_running_loop().call_soon(then, OSError(errno.EIO, "Input/output error"))

    store._disk.sync = lost  # type: ignore[method-assign]
    with pytest.raises(StoreFailed, match=r"certfan\.db.*Input/output error"):
        await store.ask_renewal("lost", NOW)
    store._disk.sync = whole  # type: ignore[method-assign]
    with pytest.raises(StoreFailed):
        await store.facts()
    await store.close()
    again = await opened(path)

    assert "kept" in await again.asked()
    await again.close()
