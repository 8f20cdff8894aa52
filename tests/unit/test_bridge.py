"""Synchronous code on the loop: results, errors, context, cancellation."""

import asyncio
import contextvars
import weakref
from typing import Never

import pytest
from greenlet import getcurrent  # type: ignore[import-untyped]

from certfan.daemon.bridge import await_, in_greenlet


async def double(number: int) -> int:
    await asyncio.sleep(0)
    return 2 * number


async def test_synchronous_code_waits_for_coroutines_and_returns() -> None:
    """As often as it likes, without knowing of the loop."""

    def work(number: int, *, more: int) -> int:
        return await_(double(number)) + await_(double(more))

    assert await in_greenlet(work, 1, more=2) == 6


async def test_an_error_goes_in_and_comes_out() -> None:
    """The coroutine's error can be caught inside; what is not caught reaches the task, with its cause."""

    async def fail() -> Never:
        await asyncio.sleep(0)
        raise KeyError("inner")

    def work() -> Never:
        try:
            await_(fail())
        except KeyError as error:
            raise ValueError("outer") from error

    with pytest.raises(ValueError, match="outer") as caught:
        await in_greenlet(work)

    assert isinstance(caught.value.__cause__, KeyError)


async def test_code_that_never_waits_just_runs() -> None:
    """No switch is needed."""
    assert await in_greenlet(lambda: 7) == 7


async def test_context_variables_are_those_of_the_task() -> None:
    """Read inside, and set inside for what comes after, before and after a switch."""
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name")
    name.set("outside")

    def work() -> list[str]:
        seen = [name.get()]
        await_(double(1))
        seen.append(name.get())
        name.set("inside")
        await_(double(1))
        return [*seen, name.get()]

    assert await in_greenlet(work) == ["outside", "outside", "inside"]
    assert name.get() == "inside"


async def test_cancelling_the_task_unwinds_the_synchronous_code() -> None:
    """Its `finally` runs, and the coroutine that it waited for is cancelled."""
    begun, steps = asyncio.Event(), []

    async def hang() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            steps.append("coroutine")

    def work() -> None:
        try:
            await_(hang())
        finally:
            steps.append("code")

    task = asyncio.create_task(in_greenlet(work))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert steps == ["coroutine", "code"]


async def test_many_run_at_once() -> None:
    """They take turns wherever they wait."""
    order: list[str] = []

    def work(name: str) -> None:
        for step in range(2):
            await_(double(step))
            order.append(f"{name}{step}")

    async with asyncio.TaskGroup() as tasks:
        for name in "ab":
            tasks.create_task(in_greenlet(work, name))

    assert order == ["a0", "b0", "a1", "b1"]


async def test_a_greenlet_at_rest_holds_nothing_of_what_it_ran() -> None:
    """It is kept for the next function, which sees its own task's variables; key and answer of the last are gone."""
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name", default="nobody")

    class Held:
        pass

    def work(given: Held) -> tuple[object, Held, Held, str]:
        made = Held()
        await_(double(1))
        return getcurrent(), given, made, name.get()

    async def named(own: str) -> tuple[object, weakref.ref[Held], weakref.ref[Held], str]:
        name.set(own)
        ran_in, given, made, seen = await in_greenlet(work, Held())
        return ran_in, weakref.ref(given), weakref.ref(made), seen

    first, given, made, seen = await asyncio.create_task(named("first"))
    alive = [given(), made()]
    again, *_, seen_again = await asyncio.create_task(named("again"))

    assert (seen, seen_again) == ("first", "again")
    assert again is first
    assert alive == [None, None]


async def test_what_raised_is_not_run_in_again() -> None:
    """The next function gets a greenlet that works."""

    def fail() -> Never:
        await_(double(1))
        raise KeyError("inner")

    for _ in range(3):
        with pytest.raises(KeyError):
            await in_greenlet(fail)

    assert await in_greenlet(lambda: await_(double(3))) == 6


async def test_waiting_outside_a_bridge_is_an_error() -> None:
    """And the coroutine is closed, not left behind."""
    with pytest.raises(RuntimeError, match="outside"):
        await_(double(1))
