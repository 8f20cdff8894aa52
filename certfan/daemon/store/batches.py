"""One transaction after the other: what waits together is committed together, so that it waits for the disk once.

Brief calls are done on the loop itself: with a thread they would fight for the interpreter, which costs several times
what they take. What must never come in: a query, or which engine it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeAlias, TypeVar

from sqlalchemy import Connection

from certfan.daemon.disk import Disk
from certfan.daemon.store.engine import Log, patiently, transaction

T = TypeVar("T")
MOST_BRIEF = 64  # calls that the loop does at once, some milliseconds; more of them take the thread
MOST_LATE = 0.02  # seconds that what nobody waits for may stay unwritten
Call: TypeAlias = Callable[[Connection], Any]
Asked: TypeAlias = list[asyncio.Future[Any] | None]  # for whom a call is done; None: nobody waits for it
Waiting: TypeAlias = tuple[Asked, Call]
Outcome: TypeAlias = tuple[Any, BaseException | None]


class Batches:
    """Does calls in the order in which they were made, each of them whole or not at all.

    Those that come while others are being done are the next transaction. One that fails takes no other along: then
    all of its transaction are done again, each in its own. `undone` is told that something was taken back. Whoever
    asked hears its end when the database's log is on the disk; `unheard` is told the error where nobody waits for one.
    """

    def __init__(
        self,
        thread: ThreadPoolExecutor,
        db: Connection,
        undone: Callable[[], None],
        disk: Disk,
        unheard: Callable[[BaseException], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = thread
        self._db = db
        self._log = Log(db)
        self._undone = undone
        self._unheard = unheard
        self._disk = disk
        self._waiting: list[Waiting] = []
        self._all_brief = True  # what waits
        self._joined: dict[Callable[..., object], tuple[Asked, list[Any]]] = {}
        self._at_work = False
        self._ended = asyncio.Event()  # since `finish` has last looked
        self._hurry = False  # whether somebody waits for what waits
        self._due: asyncio.Handle | None = None
        self._due_soon = False
        self._lost: BaseException | None = None

    async def do(self, call: Callable[[Connection], T], *, brief: bool = False) -> T:
        """Return what the call returns, once it is durable. Cancelled, it happens whole or not at all.

        A `brief` one touches a few rows that it has the keys of.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        self._all_brief &= brief
        self._put([future], call, soon=True)
        return await future

    def do_along(self, call: Callable[[Connection], object]) -> None:
        """Have a brief call done along with whatever is asked next, at the latest after a moment; nobody waits for it."""
        self._put([None], call, soon=False)

    def join(
        self, call: Callable[[Connection, list[T]], object], what: Iterable[T]
    ) -> asyncio.Future[object]:
        """Have one brief call do all that waits for it, in order; the future is done when that is durable."""
        future: asyncio.Future[Any] = self._loop.create_future()
        self._join(future, call, what, soon=True)
        return future

    def join_along(self, call: Callable[[Connection, list[T]], object], what: Iterable[T]) -> None:
        """Have one brief call do all that waits for it, in order, when `do_along` would."""
        self._join(None, call, what, soon=False)

    def _join(
        self,
        asked: asyncio.Future[Any] | None,
        call: Callable[[Connection, list[T]], object],
        what: Iterable[T],
        *,
        soon: bool,
    ) -> None:
        if known := self._joined.get(call):
            known[0].append(asked)
            known[1].extend(what)
            self._arrange(soon=soon)
        else:
            items = list(what)
            whom: Asked = [asked]
            self._joined[call] = whom, items
            self._put(whom, lambda db: call(db, items), soon=soon)

    @property
    def rests(self) -> bool:
        """Whether nothing is being done, and nothing waits but what joins: until the next call nothing is written."""
        return not self._at_work and self._lost is None and len(self._waiting) == len(self._joined)

    async def finish(self) -> None:
        """Return when all that was asked is done, and the log is not needed any more; repeatable."""
        while self._waiting or self._at_work:
            if self._at_work:
                self._ended.clear()
                await self._ended.wait()
            else:
                self._begin()
        self._log.close()

    def _put(self, asked: Asked, call: Call, *, soon: bool) -> None:
        self._waiting.append((asked, call))
        self._arrange(soon=soon)

    def _arrange(self, *, soon: bool) -> None:
        """See to it that what waits is begun, unless it will be already: in the next turn of the loop, or in a moment."""
        self._hurry |= soon
        if self._at_work or (self._due is not None and (self._due_soon or not soon)):
            return
        if self._due is not None:
            self._due.cancel()
        # Never at once: what others ask in this turn of the loop is committed along.
        self._due = (
            self._loop.call_soon(self._begin) if soon else self._loop.call_later(MOST_LATE, self._begin)
        )
        self._due_soon = soon

    def _begin(self) -> None:
        if self._due is not None:
            self._due.cancel()
        self._due, self._hurry = None, False
        batch, self._waiting = self._waiting, []
        all_brief, self._all_brief = self._all_brief, True
        self._joined.clear()
        calls = [call for _, call in batch]
        if self._lost is not None:
            self._deliver(batch, [(None, self._lost)] * len(batch))
        elif all_brief and (outcomes := self._on_the_loop(calls)) is not None:
            self._sync(batch, outcomes)
        else:
            self._at_work = True
            threaded = self._loop.run_in_executor(self._thread, self._work_long, calls)
            threaded.add_done_callback(partial(self._end_in_thread, batch))

    def _end_in_thread(self, batch: Sequence[Waiting], done: asyncio.Future[list[Outcome]]) -> None:
        error = done.exception()
        self._sync(batch, done.result() if error is None else [(None, error)] * len(batch))

    def _on_the_loop(self, calls: Sequence[Call]) -> list[Outcome] | None:
        """Do brief calls at once, if that takes no time; None if it does, one fails, or somebody holds the database."""
        if self._log.is_long or len(calls) > MOST_BRIEF:
            return None
        try:
            return self._together(calls)
        except Exception:  # noqa: BLE001 - it is done again, and whoever asked hears how that ends
            self._undone()
            return None

    def _sync(self, batch: Sequence[Waiting], outcomes: Sequence[Outcome]) -> None:
        if not self._log.grew():
            self._deliver(batch, outcomes)
            return
        self._at_work = True
        self._disk.sync(self._log.fd, partial(self._synced, batch, outcomes))

    def _synced(
        self, batch: Sequence[Waiting], outcomes: Sequence[Outcome], error: BaseException | None
    ) -> None:
        if error is not None:
            # What the kernel could not write it has given up: a second sync that succeeds would prove nothing.
            self._lost, outcomes = error, [(None, error)] * len(batch)
        self._deliver(batch, outcomes)

    def _deliver(self, batch: Sequence[Waiting], outcomes: Sequence[Outcome]) -> None:
        self._at_work = False
        self._ended.set()
        if self._hurry:
            self._arrange(soon=True)
        elif self._waiting:
            self._arrange(soon=False)
        for (asked, _), (value, error) in zip(batch, outcomes, strict=True):
            for future in asked:
                if future is None:
                    if error is not None:
                        self._unheard(error)
                elif future.done():
                    continue
                elif error is None:
                    future.set_result(value)
                else:
                    future.set_exception(error)

    def _work_long(self, calls: Sequence[Call]) -> list[Outcome]:
        with patiently(self._db):
            if self._log.is_long:
                self._log.empty()
            return self._work(calls)

    def _work(self, calls: Sequence[Call]) -> list[Outcome]:
        try:
            return self._together(calls)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is given to whoever asked
            self._undone()
            if len(calls) == 1:
                return [(None, error)]
        return [self._work([call])[0] for call in calls]

    def _together(self, calls: Sequence[Call]) -> list[Outcome]:
        with transaction(self._db):
            return [(call(self._db), None) for call in calls]
