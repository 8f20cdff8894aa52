"""How long exchanges may take: as `asyncio.timeout`, but all of them have as long, and so one timer serves them all.

A timer each, set and taken back, was a thirtieth of what an exchange costs the loop. What must never come in: for what.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any


class Patience:
    """Lets a task spend so many seconds on what it does with this; a task that is in it does not enter it again.

    What takes longer is cancelled, and comes out as TimeoutError; a task that was cancelled by others too stays so.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._until: dict[asyncio.Task[Any], float] = {}  # of the loop's clock; who began first comes first
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None
        assert task not in self._until
        self._until[task] = loop.time() + self._seconds
        if self._timer is None:
            self._timer = loop.call_at(self._until[task], self._end_overdue, loop)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        if self._until.pop(task, None) is None and task.uncancel() == 0 and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _end_overdue(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        for task, until in list(self._until.items()):
            if until > loop.time():
                self._timer = loop.call_at(until, self._end_overdue, loop)
                return
            del self._until[task]
            task.cancel()
