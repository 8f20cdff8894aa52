"""The loop of both reconcilers: ticks when rung, when a task ended, when it is time; and ends cleanly."""

from __future__ import annotations

import asyncio
import itertools
import time
from datetime import UTC, datetime, timedelta

import pytest

from certfan.loop import Loop


def now() -> datetime:
    return datetime.now(UTC)


class Ticks:
    """Counts ticks and lets a test wait for the next one."""

    def __init__(self) -> None:
        self.count = 0
        self.wake_at: datetime | None = None
        self._ticked = asyncio.Event()
        self.todo: list[tuple[tuple[str, ...], asyncio.Event]] = []
        self.loop = Loop(now)
        self.cleaned = 0

    async def __call__(self, group: asyncio.TaskGroup) -> datetime | None:
        self.count += 1
        for key, gate in self.todo:
            if key not in self.loop.in_flight:
                self.loop.start(group, [key], self._work(gate))
        self._ticked.set()
        return self.wake_at

    async def _work(self, gate: asyncio.Event) -> None:
        try:
            await gate.wait()
        finally:
            self.cleaned += 1

    async def next(self) -> None:
        async with asyncio.timeout(5):
            await self._ticked.wait()
        self._ticked.clear()


async def test_a_task_is_in_flight_under_each_of_its_keys() -> None:
    """None of them is started again until it ends, and then all of them may be."""
    loop, gate = Loop(now), asyncio.Event()
    keys = [("a",), ("b", "offer")]
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        loop.start(group, keys, gate.wait())  # type: ignore[arg-type]
        flying = loop.in_flight
        again = gate.wait()
        with pytest.raises(AssertionError):
            loop.start(group, keys[1:], again)  # type: ignore[arg-type]
        again.close()
        gate.set()

    assert (frozenset(keys), frozenset()) == (flying, loop.in_flight)


async def test_it_ticks_when_rung_and_rings_in_between_are_one() -> None:
    """A ring is a hint to look, never a piece of work."""
    ticks = Ticks()
    running = asyncio.create_task(ticks.loop.run(ticks))
    await ticks.next()

    for _ in range(5):
        ticks.loop.ring()
    await ticks.next()

    assert ticks.count == 2
    running.cancel()


async def test_it_ticks_when_a_task_has_ended_and_its_key_is_free_again() -> None:
    """One task a key; its end is a reason to look."""
    ticks, gate = Ticks(), asyncio.Event()
    ticks.todo = [(("www",), gate)]
    running = asyncio.create_task(ticks.loop.run(ticks))
    await ticks.next()
    assert ticks.loop.in_flight == {("www",)}

    ticks.todo = []
    gate.set()
    await ticks.next()

    assert (ticks.count, ticks.loop.in_flight) == (2, frozenset())
    running.cancel()


async def test_it_ticks_at_the_instant_that_the_last_tick_named() -> None:
    """Nobody has to ring when it is time; an instant that is past means at once."""
    ticks = Ticks()
    ticks.wake_at = now() - timedelta(hours=1)
    running = asyncio.create_task(ticks.loop.run(ticks))

    await ticks.next()
    await ticks.next()

    assert ticks.count >= 2
    running.cancel()


async def test_cancelled_it_waits_for_its_tasks_to_clean_up() -> None:
    """A stop leaves no task behind."""
    ticks, gate = Ticks(), asyncio.Event()
    ticks.todo = [(("www",), gate), (("mail",), gate)]
    running = asyncio.create_task(ticks.loop.run(ticks))
    await ticks.next()

    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert ticks.cleaned == 2


async def test_an_error_of_the_tick_itself_ends_it() -> None:
    """A loop that cannot look must not pretend to run."""

    async def broken(_: asyncio.TaskGroup) -> datetime | None:
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as caught:
        await Loop(now).run(broken)
    assert caught.group_contains(ZeroDivisionError)


async def test_ticks_that_take_long_leave_time_for_the_work() -> None:
    """However often it is rung: between two is at least five times what was weighed of one."""
    ticks, took = Ticks(), 0.02
    began: list[float] = []

    async def slow(_group: asyncio.TaskGroup) -> None:
        began.append(time.monotonic())
        with ticks.loop.weighed():
            until = time.thread_time() + took
            while time.thread_time() < until:
                pass
        ticks.loop.ring()
        ticks._ticked.set()

    running = asyncio.create_task(ticks.loop.run(slow))
    for _ in range(4):
        await ticks.next()
    running.cancel()

    assert all(later - earlier >= 6 * took for earlier, later in itertools.pairwise(began))


async def test_what_follows_from_many_ends_is_begun_at_one_tick() -> None:
    """While twenty are under way each of which may end any moment, the next look waits for more of them."""
    ticks, gate = Ticks(), asyncio.Event()
    ticks.todo = [((f"www{number}",), gate) for number in range(20)]
    began: list[float] = []

    async def look(group: asyncio.TaskGroup) -> None:
        began.append(time.monotonic())
        await ticks(group)
        ticks.loop.ring()

    running = asyncio.create_task(ticks.loop.run(look))
    for _ in range(4):
        await ticks.next()
    running.cancel()

    assert all(later - earlier >= 0.015 for earlier, later in itertools.pairwise(began))


def test_the_pause_for_many_has_an_end() -> None:
    """However many are under way."""
    loop = Loop(now)
    loop._tasks = {(str(number),): None for number in range(1000)}  # type: ignore[misc]

    assert 0.06 == loop._pause
