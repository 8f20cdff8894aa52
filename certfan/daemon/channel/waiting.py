"""Blocking queries: who waits for a consumer's list to change. The database is read only when it has."""

from __future__ import annotations

import asyncio
from weakref import WeakValueDictionary

from certfan.daemon.channel.board import Board
from certfan.protocol.messages import Assignments

MAX_WAIT = 300  # seconds


class Waiting:
    """One event a consumer, shared by its waiting queries and gone with the last of them."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._rung: WeakValueDictionary[str, asyncio.Event] = WeakValueDictionary()

    def announce(self, consumer: str) -> None:
        """Let a consumer's queries look again. A hint: too many cost a read each, nothing else."""
        if event := self._rung.pop(consumer, None):
            event.set()

    async def changed(self, consumer: str, after: str, wait: float) -> Assignments:
        """Return the list as soon as its revision is not `after`, or unchanged after `wait` seconds.

        Cancelled, it leaves nothing behind.
        """
        # Taken before the read: what is announced between read and wait is not missed.
        event = self._event(consumer)
        found = await self._board.assignments(consumer)
        try:
            async with asyncio.timeout(wait):
                while found.revision == after:
                    await event.wait()
                    event = self._event(consumer)
                    found = await self._board.assignments(consumer)
        except TimeoutError:
            pass
        return found

    def _event(self, consumer: str) -> asyncio.Event:
        event = self._rung.get(consumer)
        if event is None:
            event = self._rung[consumer] = asyncio.Event()
        return event
