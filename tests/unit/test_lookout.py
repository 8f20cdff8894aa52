"""The lookout: what was lost is told once, found again once, and looked for soon."""

import asyncio
import os
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from certfan.core.model import NOTHING_DESIRED, Attempt, Problem
from certfan.daemon.authority import make_account_key
from certfan.daemon.issuing.accounts import Accounts
from certfan.daemon.journal import Journal
from certfan.daemon.lookout import AUTHORITY_DOWN, SHARE_DOWN, Lookout
from certfan.daemon.state import StateFolder
from certfan.daemon.store import Store
from certfan.daemon.timekeeper import ASK_EVERY, Timekeeper
from certfan.errors import AuthorityUnreachable, ShareUnavailable
from certfan.loop import Loop
from certfan.share_worker.tree import Folder
from tests.unit.planner_parts import DAY, HOUR, NOW, WWW, make_certificate, make_desired
from tests.unit.scripted_authority import ScriptedCa
from tests.unit.share_parts import NAME, WEB1, Place, bundle, make_place

SECOND = timedelta(seconds=1)


class Post:
    """A lookout on a real share and store, with an authority that follows a script; `now` and `up` are set by the test."""

    def __init__(self, place: Place, store: Store, state: StateFolder) -> None:
        self.place, self.store, self.ca = place, store, ScriptedCa(NOW)
        self.now, self.up = NOW, HOUR
        journal = Journal(store, self.clock)
        self.accounts = Accounts(
            store=store,
            state=state,
            journal=journal,
            connect=self.ca.connect,
            make_key=make_account_key,
            clock=self.clock,
        )
        self.timekeeper = Timekeeper(wall=self.clock, boot=lambda: self.up, boot_id=lambda: "b")
        self.ca.dated = self.timekeeper.authority_said
        self.lookout = Lookout(
            place.share, self.accounts, journal, self.clock, Loop(self.clock), self.timekeeper
        )

    def clock(self) -> datetime:
        return self.now

    def go(self, after: timedelta, jump: timedelta = timedelta(0)) -> None:
        self.now += after + jump
        self.up += after
        self.timekeeper.tick()

    async def look(self, attempts: dict[str, Attempt] | None = None) -> datetime:
        """Let all looks happen that are due; return when the next one is."""
        desired = NOTHING_DESIRED if attempts is None else make_desired(make_certificate())
        async with asyncio.TaskGroup() as group:
            return self.lookout.look_where_due(group, desired, attempts or {}, self.now)

    async def told(self) -> list[str]:
        return [event.name for event in await self.store.last_events(20)]


@pytest.fixture
async def post(tmp_path: Path) -> AsyncIterator[Post]:
    place = make_place(tmp_path)
    with StateFolder(tmp_path / "daemon") as state:
        store = await Store.open(state.database, lambda: NOW)
        yield Post(place, store, state)
        await store.close()
    await place.share.stop()


async def test_a_share_that_a_publish_finds_lost_is_told_and_looked_at_soon(post: Post) -> None:
    """Not only when the next regular look is due, and then once, as its return is."""
    await post.look()
    aside = post.place.root.rename(post.place.root.with_name("aside"))
    post.place.root.mkdir()
    with pytest.raises(ShareUnavailable):
        await post.place.share.publish(WEB1, NAME, 1, bundle(1))

    due = await post.look()
    for _ in range(2):
        post.now += SHARE_DOWN
        await post.look()
    lost_at = post.lookout.share_lost_at
    post.place.root.rmdir()
    aside.rename(post.place.root)
    for _ in range(2):
        post.now += SHARE_DOWN
        await post.look()

    assert due == NOW + SHARE_DOWN
    assert await post.told() == ["share.lost", "share.found"]
    assert (lost_at, post.lookout.share_lost_at) == (NOW + SHARE_DOWN, None)


async def test_the_highest_number_of_a_certificate_is_known_from_a_look_and_from_what_was_published_since(
    post: Post,
) -> None:
    """At whichever consumer it is, and not what of another certificate lies beside it."""
    lookout, web2 = post.lookout, (NAME, "web2")
    await post.place.share.publish(WEB1, NAME, 3, bundle(3))
    await post.look()
    looked = lookout.shows(NAME), lookout.highest(NAME, known=3)
    lookout.put(web2, Folder(5))
    lookout.put(("other.test", "web2"), Folder(7))
    put = lookout.highest(NAME, known=3)
    lookout.cleared(web2)

    assert ((True, 3), 5, 3) == (looked, put, lookout.highest(NAME, known=3))
    lookout.cleared((NAME, WEB1.name))
    assert (False, True) == (lookout.shows(NAME), lookout.shows("other.test"))


async def test_a_silent_authority_is_asked_for_its_directory_until_it_answers(post: Post) -> None:
    """However many orders wait for it, one request each time, and no account is made for that."""
    no = Problem(AuthorityUnreachable.code, "no answer")
    attempts = {WWW: Attempt(WWW, no, 5, NOW, NOW + HOUR)}
    post.ca.scripts["look"] = [AuthorityUnreachable("no answer", subject="ca")] * 2

    await post.look(attempts)
    for _ in range(5):
        post.now += AUTHORITY_DOWN + SECOND
        await post.look(attempts)

    assert post.ca.calls == {"look": 3}
    assert dict(post.lookout.answered) == {"ca": NOW + 3 * (AUTHORITY_DOWN + SECOND)}
    assert [name for name in await post.told() if name.startswith("authority")] == ["authority.found"]


async def test_while_the_clock_is_in_doubt_authorities_are_asked_for_their_date(post: Post) -> None:
    """At once and then every 15 s, until one that agrees ends it; a silent or wrong one does not."""
    post.ca.scripts["look"] = [AuthorityUnreachable("no answer", subject="ca")]
    await post.look({})
    calls = [post.ca.calls["look"]]

    post.go(SECOND, 90 * DAY)
    for _ in range(3):
        due = await post.look({})
        calls.append(post.ca.calls["look"])
        assert (due, post.timekeeper.trusted) == (post.now + ASK_EVERY, False)
        post.go(ASK_EVERY)
    post.ca.date = post.now
    await post.look({})
    post.go(ASK_EVERY)
    await post.look({})

    assert post.timekeeper.trusted
    assert [*calls, post.ca.calls["look"]] == [0, 1, 2, 3, 4]


async def test_a_clock_that_was_ahead_puts_no_look_off(post: Post) -> None:
    """What was to be looked at, swept or asked again 90 days from now is due now."""
    no = Problem(AuthorityUnreachable.code, "no answer")
    attempts = {WWW: Attempt(WWW, no, 5, NOW, NOW + HOUR)}
    post.ca.scripts["look"] = [AuthorityUnreachable("no answer", subject="ca")] * 9
    post.now += 90 * DAY
    for _ in range(2):
        await post.look(attempts)
        post.now += AUTHORITY_DOWN
    asked = post.ca.calls["look"]
    await post.place.share.publish(WEB1, NAME, 1, bundle(1))
    post.place.files(2).mkdir()
    os.utime(post.place.files(2), (0, 0))  # a leftover of long ago

    post.now -= 90 * DAY
    await post.look(attempts)

    assert await post.told() == ["share.swept"]
    assert post.ca.calls["look"] == asked + 1


async def test_a_planted_number_does_not_use_up_the_numbers(post: Post) -> None:
    """Root on web1 makes a folder of the highest number there is: the next generation is not one more than that."""
    share = post.place.share
    await share.publish(WEB1, NAME, 7, bundle(7))
    await share.publish(WEB1, NAME, 10**17, bundle(8))
    await post.look()

    assert post.lookout.highest(NAME, known=5) == 7
    assert post.lookout.highest(NAME, known=10**17) == 10**17
