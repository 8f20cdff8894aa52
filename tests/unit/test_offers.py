"""What is offered at once is written at once, and what cannot be written holds up nothing else."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from pathlib import Path

import pytest

from certfan.core.model import Certificate, Identifier
from certfan.errors import StoreFailed
from tests.unit.fleet_parts import a_fleet
from tests.unit.planner_parts import WEB1, make_desired
from tests.unit.test_forgetting import Small

NAMES = ("a.test", "b.test", "c.test")


@pytest.fixture
async def new(tmp_path: Path) -> AsyncIterator[Small]:
    """A reconciler to which three certificates are new, and whose orders do not end."""
    async with a_fleet(tmp_path) as fleet:
        found = Small(fleet, tmp_path)
        wanted = [Certificate(name, (Identifier(name),), authority="ca", consumers=(WEB1,)) for name in NAMES]
        fleet.desired = make_desired(*wanted)
        yield found
        await found.share.stop()


async def test_offers_of_one_plan_are_one_write_and_each_consumer_hears_once(
    new: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many of them are its own."""
    store, asked = new.fleet.store, list[int]()
    write = store.offer

    async def noting(offers: Sequence[tuple[str, str, int]], now: datetime) -> None:
        asked.append(len(offers))
        await write(offers, now)

    monkeypatch.setattr(store, "offer", noting)
    task = asyncio.create_task(new.run("never"))
    async with asyncio.timeout(10):
        while not new.announced:
            await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])

    assert ([3], [WEB1]) == (asked, new.announced)
    assert dict.fromkeys([(name, WEB1) for name in NAMES], 0) == await store.offered()


async def test_one_that_fails_takes_no_other_along(new: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """All are asked for at once; when that fails each is tried alone, and only the one at fault is told of."""
    store, asked = new.fleet.store, list[list[str]]()
    write = store.offer

    async def failing(offers: Sequence[tuple[str, str, int]], now: datetime) -> None:
        asked.append([name for name, _, _ in offers])
        if "b.test" in asked[-1]:
            raise StoreFailed("no room for b.test")
        await write(offers, now)
        if asked[-1] == ["c.test"]:
            await new.fleet.journal.note("offer.written", "c.test")

    monkeypatch.setattr(store, "offer", failing)
    await new.run("offer.written")

    assert [list(NAMES), *([name] for name in NAMES)] == asked
    assert [f"b.test/{WEB1}"] == [event.subject for event in await new.fleet.happened("step.failed")]
    assert {("a.test", WEB1): 0, ("c.test", WEB1): 0} == await store.offered()
