"""Synchronous code on the event loop: it runs in a greenlet and suspends into coroutines; no thread is involved.

The idea is that of SQLAlchemy's asyncio layer. What must never come in: ACME, HTTP.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec, TypeVar, cast

from greenlet import getcurrent, greenlet  # type: ignore[import-untyped]

P = ParamSpec("P")
T = TypeVar("T")
MOST_RESTING = 64


class _Exchange(greenlet):  # type: ignore[misc]
    """A greenlet that may call `await_`; it runs one function after another, until one raises."""

    outcome: Any = None
    resting = False

    def run(self, fn: Any, args: Any, kwargs: Any) -> None:
        while True:
            self.outcome = fn(*args, **kwargs)
            self.resting = True
            fn = args = kwargs = None  # at rest it holds nobody's key or answer
            fn, args, kwargs = self.parent.switch()


class _Resting(threading.local):
    """The greenlets of this thread that wait for something to run: as many as ever ran at once, up to a limit."""

    def __init__(self) -> None:
        self.exchanges: list[_Exchange] = []


_resting = _Resting()


async def in_greenlet(fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `fn` until it returns or raises; its `await_` calls are awaited by this task.

    `fn` sees the task's context variables. Cancelled, the CancelledError is raised inside `fn`, at its `await_`,
    and comes out here when `fn` has unwound.
    """
    driver = getcurrent()
    # A new one maps memory for its frames and gives it back at its end: 20 us, four times what the rest costs.
    exchange = _resting.exchanges.pop() if _resting.exchanges else _Exchange(parent=driver)
    exchange.parent, exchange.gr_context, exchange.resting = driver, driver.gr_context, False
    coroutine = exchange.switch(fn, args, kwargs)
    while not exchange.resting:
        try:
            value = await coroutine
        except BaseException as error:  # noqa: BLE001 - handed on, every one of them
            coroutine = exchange.throw(error)
        else:
            coroutine = exchange.switch(value)
    outcome, exchange.outcome, exchange.gr_context = exchange.outcome, None, None
    if len(_resting.exchanges) < MOST_RESTING:
        _resting.exchanges.append(exchange)
    return cast("T", outcome)


def await_(what: Awaitable[T]) -> T:
    """Suspend the synchronous code that `in_greenlet` runs until `what` is done; return or raise its outcome.

    Raises:
        RuntimeError: called outside `in_greenlet`.
    """
    current = getcurrent()
    if not isinstance(current, _Exchange):
        if isinstance(what, Coroutine):
            what.close()
        raise RuntimeError("await_ was called outside in_greenlet")  # noqa: TRY004 - no type of an argument
    return cast("T", current.parent.switch(what))
