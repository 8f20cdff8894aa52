"""The places at an authority: who waits takes the next one, and whoever goes, however it goes, gives its own away."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from certfan.core.room import STANDING_STILL
from certfan.daemon.issuing.places import Places
from tests.unit.planner_parts import NOW

pytestmark = pytest.mark.asyncio


class Orders:
    """Orders that do nothing in their places until they are told to go."""

    def __init__(self) -> None:
        self.now = NOW
        self.places = Places(lambda: self.now)
        self.there: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}

    def begin(
        self, name: str, authority: str = "ca", *, most: int = 1, moved_at: datetime | None = NOW
    ) -> None:
        order: Any = SimpleOrder(issuance=SimpleNamespace(authority=authority), moved_at=moved_at)
        self.tasks[name] = asyncio.create_task(self._stay(name, order, most))

    async def _stay(self, name: str, order: Any, most: int) -> None:
        async with self.places.one(order, most):
            self.there.append(name)
            try:
                await asyncio.Event().wait()
            finally:
                self.there.remove(name)

    async def end(self, *names: str) -> None:
        for name in names:
            self.tasks[name].cancel()
        ended = await asyncio.gather(*(self.tasks.pop(name) for name in names), return_exceptions=True)
        assert [asyncio.CancelledError] * len(names) == list(map(type, ended))

    async def present(self) -> str:
        for _ in range(5):
            await asyncio.sleep(0)
        return "".join(sorted(self.there))


class SimpleOrder(SimpleNamespace):
    __hash__ = object.__hash__


@pytest.fixture
async def orders() -> Any:
    found = Orders()
    yield found
    await found.end(*found.tasks)


async def test_no_authority_has_more_orders_than_it_may_at_once(orders: Orders) -> None:
    """Those of another one do not count."""
    for name in "abc":
        orders.begin(name, most=2)
    orders.begin("z", "second", most=1)

    assert "abz" == await orders.present()


async def test_whoever_waits_takes_the_next_place_first_come_first_served(orders: Orders) -> None:
    """At once, without anybody looking."""
    for name in "abc":
        orders.begin(name)
    found = [await orders.present()]
    for name in "ab":
        await orders.end(name)
        found.append(await orders.present())

    assert ["a", "b", "c"] == found


async def test_whoever_is_cut_off_while_it_waits_takes_no_place(orders: Orders) -> None:
    """Nor does one to whom the place was given in the same moment."""
    for name in "abcd":
        orders.begin(name)
    await orders.present()
    await orders.end("b")
    await orders.end("a", "c")  # c is next, and is cut off as the place is given to it

    assert "d" == await orders.present()


async def test_an_order_that_stands_still_leaves_its_place_at_the_next_look(orders: Orders) -> None:
    """It goes on all the same; until then nobody takes it."""
    orders.begin("a")
    orders.begin("b", moved_at=None)
    orders.now += STANDING_STILL - timedelta(milliseconds=1)
    orders.places.let_in({})
    before = await orders.present()
    orders.now += timedelta(milliseconds=1)
    orders.places.let_in({})

    assert ("a", "ab") == (before, await orders.present())


async def test_more_places_by_a_new_config_are_taken_by_those_that_wait(orders: Orders) -> None:
    """At the next look; another authority's do not count."""
    for name in "abc":
        orders.begin(name)
    orders.begin("x", "second")
    orders.begin("y", "second")
    await orders.present()
    orders.places.let_in({"ca": 2})

    assert "abx" == await orders.present()


async def test_fewer_places_by_a_new_config_are_kept_by_those_that_come(orders: Orders) -> None:
    """Those there stay."""
    for name in "ab":
        orders.begin(name, most=2)
    orders.begin("c", most=1)
    await orders.present()
    await orders.end("a")

    assert "b" == await orders.present()
    await orders.end("b")
    assert "c" == await orders.present()
