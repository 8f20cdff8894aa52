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

    async def do(self, call: Callable[[Connection], T]) -> T:
        """Return what the call returns, once it is committed. Cancelled, it happens whole or not at all."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._put([future], call)
        return await future

    def join(
        self, call: Callable[[Connection, list[T]], object], what: Iterable[T]
    ) -> asyncio.Future[object]:
        """Have one call do all that waits for it, in order; the future is done when that is committed."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if call in self._joined:
            futures, items = self._joined[call]
            futures.append(future)
            items.extend(what)
        else:
            futures, items = self._joined[call] = [future], list(what)
            self._put(futures, lambda db: call(db, items))
        return future

    async def finish(self) -> None:
        """Return when all that was asked is done."""
        while self._waiting or self._at_work is not None:
            if self._at_work is None:
                await asyncio.sleep(0)
            else:
                await asyncio.wait([self._at_work])

    def _put(self, futures: list[asyncio.Future[Any]], call: Call) -> None:
        self._waiting.append((futures, call))
        if self._at_work is None and len(self._waiting) == 1:
            # Not at once: what others ask in this turn of the loop is committed along.
            asyncio.get_running_loop().call_soon(self._begin)

    def _begin(self) -> None:
        batch, self._waiting = self._waiting, []
        self._joined.clear()
        calls = [call for _, call in batch]
        self._at_work = asyncio.get_running_loop().run_in_executor(self._thread, self._work, calls)
        self._at_work.add_done_callback(lambda done: self._deliver(batch, done))

    def _deliver(self, batch: Sequence[Waiting], done: asyncio.Future[list[Outcome]]) -> None:
        self._at_work = None
        if self._waiting:
            self._begin()
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
