"""The shape of both reconcilers: a bell, one named task a key, and a nap that ends when something happened.

What must never come in: what a step is, or why it is wanted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

LONGEST_NAP = timedelta(minutes=1)  # level, not edge: look again even when nobody rang
# With hundreds of steps under way one ends every few milliseconds, and each tick looks at everything.
PACE = 5  # between two ticks at least this many times what was weighed of the last one,
LEAST_PAUSE, LONGEST_PAUSE = 0.005, 1.0  # but neither fewer nor more seconds than this
# Where many are under way the next end is near: what follows from several is begun at one tick.
PAUSE_EACH, LONGEST_FOR_MANY = 0.0025, 0.06

Key = tuple[str, ...]
Tick = Callable[[asyncio.TaskGroup], Awaitable[datetime | None]]  # returns when to tick again at the latest


class Loop:
    """Ticks whenever the bell was rung, a task has ended, or it is time."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._bell = asyncio.Event()
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._ticked_at, self._weight = time.monotonic(), 0.0

    def ring(self) -> None:
        """Something may have changed: look soon. Rings before a tick has begun are one."""
        self._bell.set()

    @property
    def silence(self) -> timedelta:
        """How long ago the last tick began; a wall clock that jumps changes nothing about that."""
        return timedelta(seconds=time.monotonic() - self._ticked_at)

    @property
    def in_flight(self) -> frozenset[Key]:
        """The keys of the tasks that have not ended.

        Take it before the facts are read: a task that ends meanwhile is then started at the next tick, not twice.
        """
        return frozenset(self._tasks)

    @contextmanager
    def weighed(self) -> Iterator[None]:
        """Count this part of a tick, without an await in it: the more time it takes, the rarer the ticks are."""
        began = time.thread_time()
        yield
        self._weight += time.thread_time() - began

    def start(self, group: asyncio.TaskGroup, keys: Sequence[Key], work: Coroutine[Any, Any, None]) -> None:
        """Run `work` as the one task of each of its keys; when it ends, the bell rings."""
        assert not self._tasks.keys() & keys, keys
        task = group.create_task(work, name=" ".join(map("/".join, keys[:3])))
        self._tasks.update(dict.fromkeys(keys, task))

        def ended(_: asyncio.Task[None]) -> None:
            for key in keys:
                del self._tasks[key]
            self.ring()

        task.add_done_callback(ended)

    def cancel(self, key: Key) -> None:
        """Cut the task of a key off, if there is one; it is in flight until its clean-up is done."""
        if key in self._tasks:
            self._tasks[key].cancel()

    async def run(self, tick: Tick) -> None:
        """Tick for ever; an error of `tick` ends it. Cancelled, it cancels its tasks and waits for their clean-up."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._bell.clear()
                self._ticked_at, self._weight = time.monotonic(), 0.0
                wake_at = await tick(group)
                await asyncio.sleep(self._pause)
                await self._nap(wake_at)

    @property
    def _pause(self) -> float:
        for_many = min(PAUSE_EACH * len(self._tasks), LONGEST_FOR_MANY)
        return min(max(PACE * self._weight, for_many, LEAST_PAUSE), LONGEST_PAUSE)

    async def _nap(self, wake_at: datetime | None) -> None:
        now = self._clock()
        nap = min(max((wake_at or now + LONGEST_NAP) - now, timedelta(0)), LONGEST_NAP)
        try:
            async with asyncio.timeout(nap.total_seconds()):
                await self._bell.wait()
        except TimeoutError:
            pass
