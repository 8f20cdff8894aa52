"""What waits together is committed together, and what fails takes nothing along."""

import asyncio
import contextlib
import errno
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import Connection

from certfan.daemon.disk import Disk, Then
from certfan.daemon.store import engine, wishes
from certfan.daemon.store.batches import MOST_BRIEF, Batches

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


class HeldDisk(Disk):
    """Ends no sync before it is told to, if it is held; fails all that come if it is broken."""

    held: list[Then] | None = None
    broken = False

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()

    def sync(self, fd: int, then: Then) -> None:
        if self.broken:
            asyncio.get_running_loop().call_soon(then, OSError(errno.EIO, "Input/output error"))
        elif self.held is not None:
            self.held.append(then)
            self.asked.set()
        else:
            super().sync(fd, then)


class Rig:
    """A real database behind batches, its commits counted."""

    def __init__(self, thread: ThreadPoolExecutor, db: Connection) -> None:
        self.commits = self.undone = 0
        self.unheard: list[BaseException] = []
        self.disk = HeldDisk()
        self.batches = Batches(thread, db, self._note_undone, self.disk, self.unheard.append)
        driver = db.connection.dbapi_connection
        assert isinstance(driver, sqlite3.Connection)
        driver.set_trace_callback(self._note)

    def _note(self, statement: str) -> None:
        self.commits += statement == "COMMIT"

    def _note_undone(self) -> None:
        self.undone += 1

    async def all_of(self, *calls: Callable[[Connection], object], brief: bool = False) -> list[object]:
        """Ask all in one breath; an error stands for the answer of what raised it."""
        tasks = [asyncio.create_task(self.batches.do(call, brief=brief)) for call in calls]
        await asyncio.wait(tasks)
        return [task.exception() or task.result() for task in tasks]

    async def known(self) -> set[str]:
        return set(await self.batches.do(wishes.asked))


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    with ThreadPoolExecutor(max_workers=1) as thread:
        db = await asyncio.wrap_future(thread.submit(engine.open_database, tmp_path / "db", lambda: NOW))
        made = Rig(thread, db)
        yield made
        await made.batches.finish()
        made.disk.close()
        await asyncio.wrap_future(thread.submit(engine.shut, db))


def asks(name: str) -> Callable[[Connection], None]:
    return partial(wishes.ask_renewal, certificate=name, now=NOW)


def half_done(db: Connection) -> None:
    asks("half")(db)
    raise ValueError("no further")


async def test_what_comes_while_others_are_done_is_one_transaction(rig: Rig) -> None:
    """Twenty writes of one moment wait for the disk once; twenty that come while it writes are the next."""
    first = [asyncio.create_task(rig.batches.do(asks(f"a{n}"))) for n in range(20)]
    await asyncio.sleep(0)  # they have asked
    await asyncio.sleep(0)  # and are being done
    await rig.all_of(*(asks(f"b{n}") for n in range(20)))
    await asyncio.wait(first)

    assert rig.commits == 2
    assert await rig.known() == {f"{part}{n}" for part in "ab" for n in range(20)}


async def test_what_comes_while_the_log_is_synced_waits_for_the_next_sync(rig: Rig) -> None:
    """One sync after the other: what was begun before a write says nothing of it."""
    rig.disk.held = []
    first = asyncio.create_task(rig.batches.do(asks("a"), brief=True))
    await rig.disk.asked.wait()
    second = asyncio.create_task(rig.batches.do(asks("b"), brief=True))
    for _ in range(5):
        await asyncio.sleep(0)
    while_synced = rig.commits, len(rig.disk.held), second.done()
    held, rig.disk.held = rig.disk.held, None
    for then in held:
        then(None)
    await asyncio.gather(first, second)

    assert (1, 1, False) == while_synced
    assert {"a", "b"} == await rig.known()


@pytest.mark.parametrize("brief", [True, False])
async def test_a_call_that_fails_takes_no_other_along(rig: Rig, brief: bool) -> None:
    """Nothing of it has happened, everything of those before and after it has, and each hears its own end."""
    first, *answers = await rig.all_of(
        asks("first"), asks("a"), half_done, asks("b"), wishes.asked, brief=brief
    )

    assert (first, answers[0], answers[2]) == (None, None, None)
    assert isinstance(answers[1], ValueError)
    assert set(answers[3]) == await rig.known() == {"first", "a", "b"}


async def test_the_loop_does_brief_calls_itself_unless_they_are_many(rig: Rig) -> None:
    """A few take microseconds; thousands at once would keep a challenge waiting."""

    def where(_: Connection) -> int:
        return threading.get_ident()

    few = await rig.all_of(*[where] * MOST_BRIEF, brief=True)
    many = await rig.all_of(*[where] * (MOST_BRIEF + 1), brief=True)
    long = await rig.all_of(where, where)

    assert {threading.get_ident()} == set(few)
    assert threading.get_ident() not in {*many, *long}


async def test_nobody_hears_of_a_write_before_it_is_on_the_disk(rig: Rig) -> None:
    """Not of a brief one, nor of one that a thread has done, nor of a read that has seen it."""
    rig.disk.held = []
    for brief in (True, False):
        tasks = [asyncio.create_task(rig.batches.do(call, brief=brief)) for call in (asks("a"), wishes.asked)]
        async with asyncio.timeout(30):
            await rig.disk.asked.wait()
        rig.disk.asked.clear()
        before = [task.done() for task in tasks]
        rig.disk.held.pop()(None)
        await asyncio.wait(tasks)

        assert [False, False] == before


@pytest.mark.parametrize("brief", [True, False])
async def test_what_could_not_be_synced_is_never_again_said_to_be_there(rig: Rig, brief: bool) -> None:
    """Whoever asked hears it, and all who ask later, as a sync that succeeds then would prove nothing."""
    rig.disk.broken = True
    failed = await rig.all_of(asks("a"), wishes.asked, brief=brief)
    rig.disk.broken = False
    later = await rig.all_of(wishes.asked, asks("b"), brief=brief)

    assert [OSError] * 4 == [type(answer) for answer in (*failed, *later)]
    assert not rig.batches.rests


async def test_whoever_holds_the_database_does_not_hold_the_loop(rig: Rig, tmp_path: Path) -> None:
    """A brief call waits for a foreign writer in the thread, and is done when that one has ended; on the loop for nobody."""

    def patience(db: Connection) -> object:
        return db.exec_driver_sql("PRAGMA busy_timeout").scalar()

    patient = await rig.all_of(patience, brief=True) + await rig.all_of(patience)
    with contextlib.closing(sqlite3.connect(tmp_path / "db", isolation_level=None)) as foreign:
        foreign.execute("BEGIN IMMEDIATE")
        task = asyncio.create_task(rig.batches.do(asks("a"), brief=True))
        async with asyncio.timeout(30):
            while not rig.undone:  # it was tried, and given to the thread
                await asyncio.sleep(0)
        done_before = task.done()
        foreign.execute("COMMIT")
    await task

    assert [0, engine.BUSY_TIMEOUT] == patient
    assert not done_before
    assert {"a"} == await rig.known()


async def test_the_log_is_emptied_into_the_database_in_time(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or it would grow for as long as the process lives: what was written long ago is found without it."""
    monkeypatch.setattr(engine, "LONG", 10)
    for n in range(25):
        await rig.batches.do(asks(f"a{n}"), brief=True)
    with contextlib.closing(sqlite3.connect(f"file:{tmp_path}/db?immutable=1", uri=True)) as without_log:
        found = {name for (name,) in without_log.execute("SELECT certificate FROM asked")}

    assert {f"a{n}" for n in range(14)} <= found


async def test_it_is_told_when_something_was_taken_back(rig: Rig) -> None:
    """Whoever remembers what was read meanwhile must read it again."""
    await rig.all_of(asks("a"), asks("b"))
    before = rig.undone
    await rig.all_of(asks("c"), half_done)

    assert (before, rig.undone > 0) == (0, True)


async def test_whoever_leaves_takes_no_other_along(rig: Rig) -> None:
    """A cancelled call has happened whole or not at all."""
    tasks = [asyncio.create_task(rig.batches.do(asks(f"c{n}"))) for n in range(5)]
    await asyncio.sleep(0)
    tasks[3].cancel()
    await asyncio.wait(tasks)

    assert {"c0", "c1", "c2", "c4"} <= await rig.known()


async def test_what_joins_a_call_is_done_by_it_and_each_hears_its_end(rig: Rig) -> None:
    """Events of one moment are one statement; a failure is told everybody who joined."""
    seen: list[list[int]] = []

    def take(_db: Connection, items: list[int]) -> None:
        seen.append(items)
        if 99 in items:
            raise ValueError("no")

    async def joined(*groups: list[int]) -> list[BaseException | None]:
        futures = [rig.batches.join(take, group) for group in groups]
        await asyncio.wait(futures)
        return [future.exception() for future in futures]

    fine = await joined([1], [2, 3], [4])
    failed = await joined([5], [6], [99])

    assert fine == [None, None, None]
    assert [type(error) for error in failed] == [ValueError] * 3
    assert seen[0] == [1, 2, 3, 4]


async def test_finishing_waits_for_all_that_was_asked(rig: Rig) -> None:
    """What was asked before the end is durable at the end."""
    tasks = [asyncio.create_task(rig.batches.do(asks(f"c{n}"))) for n in range(5)]
    await asyncio.sleep(0)
    await rig.batches.finish()

    assert rig.commits == 1
    await asyncio.wait(tasks)


async def test_what_nobody_waits_for_is_committed_along_with_what_is_asked_next(rig: Rig) -> None:
    """It waits for the disk once with that, and is done before it."""
    rig.batches.do_along(asks("along"))
    rig.batches.join_along(lambda db, names: [asks(name)(db) for name in names], ["joined"])
    await asyncio.sleep(0)
    known = await rig.known()

    assert (1, {"along", "joined"}) == (rig.commits, known)


async def test_what_nobody_waits_for_is_written_by_itself_in_a_moment(rig: Rig) -> None:
    """Nothing else has to be asked for that."""
    rig.disk.held = []
    rig.batches.do_along(asks("along"))
    async with asyncio.timeout(30):
        await rig.disk.asked.wait()
    rig.disk.held.pop()(None)

    assert 1 == rig.commits


async def test_an_error_that_nobody_waits_for_is_told(rig: Rig) -> None:
    """Of a call of its own and of each that joined one; whoever waits for the same call hears it too."""

    def fails(_db: Connection, names: list[str]) -> None:
        raise ValueError(*names)

    rig.batches.do_along(half_done)
    rig.batches.join_along(fails, ["a"])
    rig.batches.join_along(fails, ["b"])
    with pytest.raises(ValueError, match="c"):
        await rig.batches.join(fails, ["c"])
    fine = await rig.known()

    assert (set(), [("no further",), *[("a", "b", "c")] * 2]) == (fine, [one.args for one in rig.unheard])


async def test_finishing_does_not_leave_out_what_nobody_waits_for(rig: Rig) -> None:
    """A daemon that stops has written all that it told."""
    rig.batches.do_along(asks("along"))
    await rig.batches.finish()

    assert 1 == rig.commits
