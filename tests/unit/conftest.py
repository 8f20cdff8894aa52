"""What several unit tests need."""

import os
import shutil
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.odd_authority import OddAuthority

HERE = Path(__file__).parent
MEMORY = Path("/dev/shm")
ROOM = 1 << 30  # bytes; what the tests leave for a moment is a tenth of it


def pytest_configure(config: pytest.Config) -> None:
    """Work in memory where only unit tests run: they call fsync 10,000 times, which takes 3 ms each on a disk."""
    only_these = all(
        HERE in (place := Path(arg.split("::")[0]).absolute()).parents or place == HERE for arg in config.args
    )
    if only_these and _has_room(MEMORY):
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


def _has_room(folder: Path) -> bool:
    """Whether tests can write a lot there, and run what they wrote."""
    if not os.access(folder, os.W_OK):
        return False
    there = os.statvfs(folder)
    return there.f_bavail * there.f_frsize > ROOM and not there.f_flag & os.ST_NOEXEC


@pytest.fixture(scope="session", autouse=True)
def _schema_is_built_once() -> Iterator[None]:
    """Let Alembic build an empty database once a process; the others get the statements that it wrote.

    Tests open hundreds of stores, and a tenth of all their time went into building the same tables. Whatever is not
    empty is migrated as ever.
    """
    if "certfan.daemon.store.engine" not in sys.modules:
        yield
        return
    from certfan.daemon.store import migrations

    real, built = migrations.upgrade, {}

    def upgrade(db: Any, revision: str) -> None:
        empty = not db.exec_driver_sql("SELECT name FROM sqlite_master").first()
        if empty and revision in built:
            for statement in built[revision]:
                db.exec_driver_sql(statement)
            return
        real(db, revision)
        if empty:
            made = db.exec_driver_sql("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY rowid")
            version = f"INSERT INTO alembic_version VALUES ('{revision}')"
            built[revision] = [*made.scalars(), version]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(migrations, "upgrade", upgrade)
        yield


@pytest.fixture
async def ca(tmp_path: Path) -> AsyncIterator[OddAuthority]:
    """Serve an authority over real HTTPS that can be told to misbehave."""
    odd = OddAuthority(tmp_path)
    await odd.start()
    yield odd
    await odd.stop()


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    """Copy the shipped configs, with the modes that they are installed with, whatever umask cloned them."""
    place = tmp_path / "etc"
    shutil.copytree(Path(__file__).parents[2] / "config", place, symlinks=True)
    for path in (place, *place.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o644)
    return place
