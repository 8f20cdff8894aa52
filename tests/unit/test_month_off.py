"""A consumer that was off for a month: it gets the newest only, once."""

from datetime import timedelta
from pathlib import Path

from certfan.daemon.store import Store
from tests.unit.planner_parts import DAY, NOW, WEB1, WWW
from tests.unit.test_world import settle
from tests.unit.world import World


async def test_its_list_holds_the_newest_only(tmp_path: Path) -> None:
    """Whatever was offered meanwhile is no queue: one line a certificate."""
    store = await Store.open(tmp_path / "certfan.db", lambda: NOW)
    try:
        for number in range(1, 6):
            await store.offer([(WWW, WEB1, number)], NOW + number * 6 * DAY)
        found = await store.lists([WEB1])

        assert {WEB1: ((WWW, 5),)} == found.offered
    finally:
        await store.close()


def test_it_fetches_and_installs_one_pair() -> None:
    """Three generations came and went while it was away; it never sees two of them."""
    world = World()
    settle(world)
    off = world.agents.pop("mail1")
    for _ in range(3):
        world.now += 10 * DAY
        world.daemon.asked["a"] = world.now
        world.wanted["a"] = ("web1",)  # else the world, which has no mail1 now, would wait for it
        settle(world)
    assert 4 == world.daemon.generations["a"][-1].number

    world.agents["mail1"] = off
    off.forget()
    world.wanted["a"] = ("web1", "mail1")
    before = world.done.copy()
    settle(world)

    assert {("a", 1), ("a", 4)} == off.staged.keys() == off.outcomes.keys()
    gained = world.done - before
    assert (1, 1) == (gained["Fetch"], gained["Apply.install"])
    assert timedelta(days=30) <= world.now - world.daemon.generations["a"][0].issued_at
