"""When a page is made, and when one that is there will do."""

from __future__ import annotations

import asyncio

from certfan.core.model import Certificate, Consumer, Desired, Identifier
from certfan.daemon.status.pages import LARGE, SLICE, Pages
from certfan.daemon.status.things import StateOfThings
from certfan.daemon.status.view import view
from tests.unit.status_parts import DESIRED, things


class Farm:
    """Counts how often somebody looked, and lets a look hang."""

    def __init__(self, pairs: int, certificates: int = 1) -> None:
        consumers = tuple(f"web{n}" for n in range(-(-pairs // certificates)))
        wide = {
            f"n{n}.test": Certificate(
                f"n{n}.test", (Identifier(f"n{n}.test"),), consumers=consumers, authority="pebble"
            )
            for n in range(certificates)
        }
        all_of_them = {name: Consumer(name) for name in consumers}
        self._things = things(desired=Desired(DESIRED.authorities, wide, all_of_them))
        self.looks = 0
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def look(self) -> StateOfThings:
        self.looks += 1
        await self.go_on.wait()
        return self._things


async def test_of_a_small_farm_every_page_is_made_anew() -> None:
    """Whoever changed something sees it at once."""
    farm = Farm(3)
    made = Pages(farm.look)

    assert await made.page() is not await made.page()
    assert farm.looks == 2


async def test_of_a_large_farm_a_page_is_kept_and_made_in_slices() -> None:
    """The loop goes on answering challenges meanwhile; it is the page that is made at once; its metrics are made once."""
    farm = Farm(LARGE + 1, certificates=20)
    made = Pages(farm.look)
    turns, making = 0, asyncio.create_task(made.page())
    while not making.done():
        turns += 1
        await asyncio.sleep(0)

    made._took = 60.0  # this machine may be slow to ask again
    assert turns >= (LARGE + 1) // SLICE
    assert await made.page() is making.result()
    assert making.result() == view(await farm.look())
    assert await made.exposition() is await made.exposition()
    assert farm.looks == 2


async def test_nobody_waits_for_the_next_page_while_there_is_one() -> None:
    """One makes it, the others are told the one before; the first of all is waited for by everybody."""
    farm = Farm(LARGE + 1)
    made = Pages(farm.look)
    first, same = await asyncio.gather(made.page(), made.page())
    made._took = 0.0  # as if its time had passed
    farm.go_on.clear()
    making = asyncio.create_task(made.page())
    await asyncio.sleep(0)

    assert first is same is await made.page()
    farm.go_on.set()
    assert await making is not first
    assert farm.looks == 2


async def test_what_is_made_of_a_page_is_encoded_once_for_a_large_farm_and_anew_for_a_small_one() -> None:
    """Asked for again, it is the very bytes; of a small farm it is as fresh as the page."""
    large, small = Pages(Farm(LARGE + 1).look), Pages(Farm(3).look)

    assert await large.encoded("all", lambda page: page) is await large.encoded("all", lambda page: page)
    assert await large.encoded("all", lambda page: page) != await large.encoded(
        "sum", lambda page: page.summary
    )
    assert await small.encoded("all", lambda page: page) is not await small.encoded("all", lambda page: page)
