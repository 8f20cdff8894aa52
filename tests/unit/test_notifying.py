"""Who is told of problems: on a change only, once over a restart, together, and whatever one way of telling does."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from itertools import chain
from pathlib import Path

import pytest

from certfan.core.model import Problem
from certfan.daemon.config.notify import CommandChannel, Notify, NotifyChannel
from certfan.daemon.journal import Journal
from certfan.daemon.notifying.message import Message, message
from certfan.daemon.notifying.notices import Notice, Stage, Told, changes, notices
from certfan.daemon.notifying.notifier import Notifier
from certfan.daemon.status.model import Page
from certfan.daemon.status.things import StateOfThings
from certfan.daemon.status.view import view
from certfan.daemon.store import Store
from certfan.errors import NotifyFailed
from tests.unit.status_parts import HEARD, MINUTE, NOW, WHERE, deployment, generation, proof, things

CHAT = CommandChannel(name="chat", argv=("/bin/true",), timeout=timedelta(seconds=9))
PAGER = CommandChannel(name="pager", argv=("/bin/true",), timeout=timedelta(seconds=9))
SHARE = Problem("share.unavailable", "/srv/le is not mounted", "run: mount /srv/le")
CLOCK = Problem("clock.doubted", "the clock went back", "run: timedatectl")


def farm(**more: object) -> StateOfThings:
    """All is well, but for `more`."""
    well = things(proofs={WHERE: (proof(),)}, deployments={WHERE: (deployment(1),)}, heard={"web1": HEARD})
    # A test's minutes make no proof old.
    return dataclasses.replace(well, probe_interval=timedelta(days=1), **more)  # type: ignore[arg-type]


class Desk:
    """A notifier in a world that a test changes; `said` is what each channel was told."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.now, self.things = folder, NOW, farm()
        self.config = Notify(channels=(CHAT,))
        self.said: list[tuple[str, Message]] = []
        self.broken: set[str] = set()
        self.store: Store
        self.notifier: Notifier

    async def start(self) -> None:
        """As a new process would."""
        self.store = await Store.open(self.folder / "certfan.db", lambda: self.now)
        self.notifier = Notifier(
            store=self.store,
            journal=Journal(self.store, lambda: self.now),
            page=self.page,
            config=lambda: self.config,
            clock=lambda: self.now,
            send=self.send,
        )

    async def page(self) -> Page:
        return view(dataclasses.replace(self.things, now=self.now))

    async def send(self, channel: NotifyChannel, told: Message) -> None:
        if channel.name in self.broken:
            raise NotifyFailed(f"{channel.name} is broken", hint="mend it")
        self.said.append((channel.name, told))

    async def look(self) -> int:
        """Look once, and send what is to be sent; return how many messages that was."""
        posted = await self.notifier.look()
        for one in posted:
            await self.notifier.deliver(one)
        return len(posted)

    async def passes(self, minutes: float = 1) -> int:
        """Look, let time pass, look again."""
        first = await self.look()
        self.now += minutes * MINUTE
        return first + await self.look()

    def told(self, channel: str = "chat") -> list[list[tuple[str, str, str]]]:
        return [
            [(one["stage"], one["subject"], one["code"]) for one in told.body["changes"]]
            for name, told in self.said
            if name == channel
        ]


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    made = Desk(tmp_path)
    await made.start()
    yield made
    await made.store.close()


async def test_a_problem_is_told_when_it_comes_and_when_it_is_over_and_not_between(desk: Desk) -> None:
    """On a change of state only, however often somebody looks and whatever the text says meanwhile."""
    desk.things = farm(share_problem=SHARE)
    await desk.passes()
    desk.things = farm(share_problem=dataclasses.replace(SHARE, detail="/srv/le still is not mounted"))
    assert await desk.passes() == await desk.passes() == 0
    desk.things = farm()
    await desk.passes()

    assert desk.told() == [
        [("problem", "share", "share.unavailable")],
        [("recovered", "share", "share.unavailable")],
    ]
    assert await desk.passes() == 0


async def test_many_problems_at_once_make_one_message(desk: Desk) -> None:
    """What comes within the minute is gathered; what went away within it is told to nobody."""
    desk.things = farm(share_problem=SHARE)
    await desk.look()
    desk.things = farm(
        share_problem=SHARE, clock_problem=CLOCK, config_problems=(Problem("config.invalid", "x"),)
    )
    desk.now += 30 * timedelta(seconds=1)
    await desk.look()
    desk.things = farm(share_problem=SHARE, clock_problem=CLOCK)
    desk.now += 30 * timedelta(seconds=1)
    await desk.look()

    assert desk.told() == [[("problem", "clock", "clock.doubted"), ("problem", "share", "share.unavailable")]]
    desk.things = farm(
        share_problem=SHARE, clock_problem=CLOCK, config_problems=(Problem("config.invalid", "x"),)
    )
    await desk.look()
    desk.things = farm(share_problem=SHARE, clock_problem=CLOCK)
    assert await desk.passes(5) == 0


async def test_a_problem_is_told_once_more_when_its_deadline_is_near(desk: Desk) -> None:
    """An endpoint that shows a placeholder has an hour; in its last tenth it is told again, and past it not."""
    shown = proof(9, placeholder=True, since=NOW)
    for minutes in (0, 10, 30, 53, 55, 59, 61, 90):
        now = NOW + minutes * MINUTE
        desk.now = now - MINUTE
        late = {WHERE: (dataclasses.replace(shown, heard_at=now),)}
        desk.things = things(proofs=late, deployments={WHERE: (dataclasses.replace(deployment(1), at=NOW),)})
        await desk.passes()

    subject = "www.test/web1"
    assert desk.told() == [
        [("problem", subject, "endpoint.placeholder")],
        [("near", subject, "endpoint.placeholder")],
    ]


async def test_a_restart_repeats_nothing_and_loses_nothing(desk: Desk) -> None:
    """What was told stays told; what ended while nobody looked is told as over; what was not sent is sent."""
    desk.things = farm(share_problem=SHARE, clock_problem=CLOCK)
    await desk.passes()
    await desk.store.close()
    await desk.start()
    assert await desk.passes() == 0
    await desk.store.close()
    desk.things = farm(share_problem=SHARE)
    await desk.start()
    await desk.look()
    desk.now += MINUTE
    (posted,) = await desk.notifier.look()  # the process ends here, after it was written down
    await desk.store.close()
    await desk.start()
    await desk.passes()

    assert desk.told()[1:] == [[("recovered", "clock", "clock.doubted")]]
    assert [told.id for _, told in desk.said][1:] == [posted.id]
    assert await desk.passes() == 0


async def test_what_was_sent_before_the_process_died_is_sent_again_under_the_same_id(desk: Desk) -> None:
    """At least once: who gets it twice can tell by the id."""
    desk.things = farm(share_problem=SHARE)
    await desk.look()
    desk.now += MINUTE
    (posted,) = await desk.notifier.look()
    held = posted.message
    await desk.send(CHAT, Message(posted.id, held["subject"], held["text"], held["body"]))
    await desk.store.close()
    await desk.start()
    await desk.passes()

    first, second = (told for _, told in desk.said)
    assert first == second
    assert await desk.passes() == 0


async def test_a_broken_way_is_shown_and_holds_up_no_other(desk: Desk) -> None:
    """The others go on, and tell of it; it tries again after longer and longer, and then tells all that changed."""
    desk.config = Notify(channels=(CHAT, PAGER))
    desk.broken = {"chat"}
    desk.things = farm(share_problem=SHARE)
    await desk.passes()
    await desk.look()
    shown = view(dataclasses.replace(desk.things, notify_problems=desk.notifier.problems)).problems
    desk.things = farm(notify_problems=desk.notifier.problems)
    await desk.passes(0.5)
    await desk.passes(0.6)
    failures = [one.name for one in await desk.store.last_events(20)].count("notification.failed")
    desk.broken = set()
    desk.things = farm()
    await desk.passes(6)
    await desk.passes(2)

    assert ("notify chat", "notify.failed", "mend it") in [(one.subject, one.code, one.hint) for one in shown]
    assert failures == 1
    assert desk.told("chat") == [
        [("problem", "share", "share.unavailable")],
        [("recovered", "share", "share.unavailable")],
    ]
    assert desk.told("pager")[0] == [("problem", "share", "share.unavailable")]
    assert ("problem", "notify chat", "notify.failed") in list(chain.from_iterable(desk.told("pager")))
    assert desk.told("pager")[-1][-1] == ("recovered", "notify chat", "notify.failed")
    assert desk.notifier.problems == {}


async def test_a_way_that_left_the_config_is_forgotten(desk: Desk) -> None:
    """It is sent nothing any more, and when it comes back it is told how things stand."""
    desk.things = farm(share_problem=SHARE)
    await desk.passes()
    desk.config = Notify()
    await desk.passes()
    desk.config = Notify(channels=(CHAT,))
    await desk.passes()

    assert desk.told() == [[("problem", "share", "share.unavailable")]] * 2


async def test_a_test_goes_over_the_ways_that_were_named_and_leaves_no_trace(desk: Desk) -> None:
    """Each with its outcome; nothing that is to be told counts as told by it."""
    desk.config = Notify(channels=(CHAT, PAGER))
    desk.broken = {"pager"}

    assert await desk.notifier.test(None) == {"chat": None, "pager": "pager is broken"}
    assert await desk.notifier.test("chat") == {"chat": None}
    assert [told.body["test"] for _, told in desk.said] == [True, True]
    assert await desk.store.outbox() == await desk.store.told() == {}


def test_an_endpoint_that_only_waits_is_told_when_little_time_is_left() -> None:
    """Nothing has failed, so nothing else would tell of it."""
    seen = things(proofs={WHERE: (proof(1),)}, generations={"www.test": (generation(1), generation(2))})
    late = dataclasses.replace(seen, now=NOW + timedelta(days=88), live={WHERE: 2})
    late = dataclasses.replace(
        late, facts=dataclasses.replace(late.facts, proofs={WHERE: (proof(1, heard_at=late.now),)})
    )

    found = notices(view(late))

    assert Stage.NEAR in {one.stage for one in found.values() if one.subject.startswith("www.test")}


def notice(stage: Stage, detail: str = "it is broken") -> Notice:
    return Notice(stage, "www.test", "order.failed", detail, "run: certfan why www.test", NOW, NOW + MINUTE)


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        (None, Stage.PROBLEM, [Stage.PROBLEM]),
        (None, Stage.NEAR, [Stage.NEAR]),
        (Stage.PROBLEM, Stage.PROBLEM, []),
        (Stage.PROBLEM, Stage.NEAR, [Stage.NEAR]),
        (Stage.NEAR, Stage.PROBLEM, []),  # its deadline moved: better, and no news
        (Stage.NEAR, Stage.NEAR, []),
        (Stage.NEAR, None, [Stage.RECOVERED]),
        (None, None, []),
    ],
)
def test_only_what_came_became_worse_or_ended_is_news(
    before: Stage | None, now: Stage | None, expected: Sequence[Stage]
) -> None:
    """Every step that a problem can take."""
    key = ("www.test", "order.failed")
    told = {key: Told(before, "it is broken", NOW)} if before else {}

    assert [one.stage for one in changes(told, {key: notice(now)} if now else {})] == expected


def test_nothing_that_another_machine_said_begins_a_line_or_a_header() -> None:
    """Text from the wire is shown on one line, and cut."""
    evil = "x\r\nBcc: everybody@example.org\u2028\x1b[31m" + "y" * 2000
    told = message("example", NOW, "1", (notice(Stage.PROBLEM, evil),), summary="0 of 1 proven")

    assert not set(told.subject) & set("\r\n\x1b\u2028")
    assert not [line for line in told.text.splitlines() if line.startswith("Bcc")]
    assert len(told.subject) < 200
    assert max(map(len, told.text.splitlines())) < 800


async def test_what_came_after_something_that_went_away_is_gathered_for_a_minute_of_its_own(
    desk: Desk,
) -> None:
    """The minute begins with the first of what is told, not with what nobody heard of."""
    desk.things = farm(clock_problem=CLOCK)
    await desk.look()
    desk.things = farm()
    await desk.passes(5)
    desk.things = farm(share_problem=SHARE)

    assert await desk.look() == 0
    assert await desk.passes() == 1


async def test_a_broken_way_is_tried_again_after_longer_and_longer(desk: Desk) -> None:
    """1, 5, 15 and then 60 minutes after the try before, and no sooner, restarts or not."""
    desk.broken, desk.things = {"chat"}, farm(share_problem=SHARE)
    await desk.passes()
    tries = []
    for minute in range(150):
        if minute == 30:
            await desk.store.close()
            await desk.start()
        if await desk.look():
            tries.append(minute)
        desk.now += MINUTE

    assert tries == [1, 6, 21, 81, 141]
