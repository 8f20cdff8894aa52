"""The store's one thread: what waits together is committed together, so that it waits for the disk once.

What must never come in: a query, or which engine it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias, TypeVar

from sqlalchemy import Connection

T = TypeVar("T")
MOST_LATE = 0.02  # seconds that what nobody waits for may stay unwritten
Call: TypeAlias = Callable[[Connection], Any]
Waiting: TypeAlias = tuple[list[asyncio.Future[Any]], Call]  # for whom it is done, and what
Outcome: TypeAlias = tuple[Any, Exception | None]


class Batches:
    """Does calls in the order in which they were made, each of them whole or not at all.

    Those that come while others are being done are the next transaction. One that fails takes no other along: then
    all of its transaction are done again, each in its own. `undone` is told that something was taken back.
    """

    def __init__(self, thread: ThreadPoolExecutor, db: Connection, undone: Callable[[], None]) -> None:
        self._thread = thread
        self._db = db
        self._undone = undone
        self._waiting: list[Waiting] = []
        self._joined: dict[Callable[..., object], tuple[list[asyncio.Future[Any]], list[Any]]] = {}
        self._at_work: asyncio.Future[list[Outcome]] | None = None
        self._hurry = False  # whether somebody waits for what waits
        self._due: asyncio.TimerHandle | None = None
        self._due_soon = False

    async def do(self, call: Callable[[Connection], T]) -> T:
        """Return what the call returns, once it is committed. Cancelled, it happens whole or not at all."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._put([future], call, soon=True)
        return await future

    def do_along(self, call: Callable[[Connection], T]) -> asyncio.Future[T]:
        """Have a call done along with whatever is asked next, at the latest after a moment; nobody waits for it."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._put([future], call, soon=False)
        return future

    def join(
        self, call: Callable[[Connection, list[T]], object], what: Iterable[T], *, soon: bool = True
    ) -> asyncio.Future[object]:
        """Have one call do all that waits for it, in order; the future is done when that is committed.

        Not `soon` is as `do_along`.
        """
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if call in self._joined:
            futures, items = self._joined[call]
            futures.append(future)
            items.extend(what)
            self._arrange(soon=soon)
        else:
            futures, items = self._joined[call] = [future], list(what)
            self._put(futures, lambda db: call(db, items), soon=soon)
        return future

    @property
    def rests(self) -> bool:
        """Whether nothing is being done, and nothing waits but what joins: until the next call its thread does nothing."""
        return self._at_work is None and len(self._waiting) == len(self._joined)

    async def finish(self) -> None:
        """Return when all that was asked is done."""
        while self._waiting or self._at_work is not None:
            if self._at_work is None:
                self._begin()
            else:
                await asyncio.wait([self._at_work])

    def _put(self, futures: list[asyncio.Future[Any]], call: Call, *, soon: bool) -> None:
        self._waiting.append((futures, call))
        self._arrange(soon=soon)

    def _arrange(self, *, soon: bool) -> None:
        """See to it that what waits is begun, unless it will be already: in the next turn of the loop, or in a moment."""
        self._hurry |= soon
        if self._at_work is not None or (self._due is not None and (self._due_soon or not soon)):
            return
        if self._due is not None:
            self._due.cancel()
        # Never at once: what others ask in this turn of the loop is committed along.
        self._due = asyncio.get_running_loop().call_later(0 if soon else MOST_LATE, self._begin)
        self._due_soon = soon

    def _begin(self) -> None:
        if self._due is not None:
            self._due.cancel()
        self._due, self._hurry = None, False
        batch, self._waiting = self._waiting, []
        self._joined.clear()
        calls = [call for _, call in batch]
        self._at_work = asyncio.get_running_loop().run_in_executor(self._thread, self._work, calls)
        self._at_work.add_done_callback(lambda done: self._deliver(batch, done))

    def _deliver(self, batch: Sequence[Waiting], done: asyncio.Future[list[Outcome]]) -> None:
        self._at_work = None
        if self._hurry:
            self._begin()
        elif self._waiting:
            self._arrange(soon=False)
        for (futures, _), (value, error) in zip(batch, done.result(), strict=True):
            for future in futures:
                if future.done():
                    continue
                if error is None:
                    future.set_result(value)
                else:
                    future.set_exception(error)

    def _work(self, calls: Sequence[Call]) -> list[Outcome]:
        try:
            with self._db.begin():
                return [(call(self._db), None) for call in calls]
        except Exception as error:  # noqa: BLE001 - whatever it is, it is given to whoever asked
            self._undone()
            if len(calls) == 1:
                return [(None, error)]
        return [self._work([call])[0] for call in calls]
