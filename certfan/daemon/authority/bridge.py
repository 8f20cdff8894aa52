"""Synchronous code on the event loop: it runs in a greenlet and suspends into coroutines; no thread is involved.

The idea is that of SQLAlchemy's asyncio layer. What must never come in: ACME, HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar, cast

from greenlet import getcurrent, greenlet  # type: ignore[import-untyped]

P = ParamSpec("P")
T = TypeVar("T")


class _Exchange(greenlet):  # type: ignore[misc]
    """A greenlet that may call `await_`."""


async def in_greenlet(fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `fn` until it returns or raises; its `await_` calls are awaited by this task.

    `fn` sees the task's context variables. Cancelled, the CancelledError is raised inside `fn`, at its `await_`,
    and comes out here when `fn` has unwound.
    """
    driver = getcurrent()
    exchange = _Exchange(fn, driver)
    exchange.gr_context = driver.gr_context
    outcome = exchange.switch(*args, **kwargs)
    while not exchange.dead:
        try:
            value = await outcome
        except BaseException as error:  # noqa: BLE001 - handed on, every one of them
            outcome = exchange.throw(error)
        else:
            outcome = exchange.switch(value)
    return cast("T", outcome)


def await_(coroutine: Coroutine[Any, Any, T]) -> T:
    """Suspend the synchronous code that `in_greenlet` runs until `coroutine` is done; return or raise its outcome.

    Raises:
        RuntimeError: called outside `in_greenlet`.
    """
    current = getcurrent()
    if not isinstance(current, _Exchange):
        coroutine.close()
        raise RuntimeError("await_ was called outside in_greenlet")  # noqa: TRY004 - no type of an argument
    return cast("T", current.parent.switch(coroutine))
