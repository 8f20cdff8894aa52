"""When the wall clock is doubted, and when it is believed again."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certfan.core import clock
from certfan.core.clock import ClockState, Reading
from certfan.daemon.journal import Journal
from certfan.daemon.timekeeper import Timekeeper, wall_clock
from certfan.systemd import booted_for
from tests.unit.planner_parts import DAY, HOUR, MINUTE, NOW

BUILT_AT = NOW - 20 * DAY
SECOND = timedelta(seconds=1)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
UP = 5 * HOUR
BEFORE = Reading(NOW, UP, "this boot")


def later(after: timedelta, jump: timedelta = timedelta(0), *, of: Reading = BEFORE) -> Reading:
    return Reading(of.wall + after + jump, of.boot + after, of.boot_id)


def judge(before: Reading | None, now: Reading) -> str | None:
    return clock.judge(before, now, built_at=BUILT_AT)


@pytest.mark.parametrize("jump", [timedelta(0), MINUTE, 23 * HOUR, -MINUTE, -59 * MINUTE])
def test_a_clock_that_is_set_right_is_believed(jump: timedelta) -> None:
    """NTP's steps and a day of drift are no reason to doubt."""
    assert judge(BEFORE, later(MINUTE, jump)) is None


@pytest.mark.parametrize(
    ("jump", "why"),
    [
        (90 * DAY, "it jumped ahead from 2026-11-22 12:01:00 UTC to 2027-02-20 12:01:00 UTC"),
        (-61 * MINUTE, "it jumped back from 2026-11-22 12:01:00 UTC to 2026-11-22 11:00:00 UTC"),
        (25 * HOUR, "it jumped ahead from 2026-11-22 12:01:00 UTC to 2026-11-23 13:01:00 UTC"),
    ],
)
def test_a_clock_that_jumps_is_doubted(jump: timedelta, why: str) -> None:
    """More than an hour back or a day ahead of the time since boot; the reason says from when to when."""
    assert why == judge(BEFORE, later(MINUTE, jump))


def test_a_suspended_machine_is_believed() -> None:
    """Both clocks go on while it sleeps, however long."""
    assert judge(BEFORE, later(100 * DAY)) is None


def test_after_a_boot_only_the_way_back_is_doubted() -> None:
    """The machine may have been off for a year, but time does not go backwards meanwhile."""
    booted = Reading(NOW + 365 * DAY, MINUTE, "another boot")

    assert judge(BEFORE, booted) is None
    assert judge(BEFORE, Reading(NOW - MINUTE, MINUTE, "another boot")) is None
    assert judge(BEFORE, Reading(NOW - 2 * HOUR, MINUTE, "another boot")) == (
        "it shows 2026-11-22 10:00:00 UTC, and was at 2026-11-22 12:00:00 UTC before the last start"
    )
    assert judge(clock.remembered(NOW), Reading(NOW - 2 * HOUR, UP, "this boot")) is not None
    assert judge(clock.remembered(NOW), Reading(NOW + 90 * DAY, UP, "this boot")) is None


def test_a_clock_from_before_the_release_is_doubted() -> None:
    """A machine without a battery starts in 1970, and nothing remembered is needed to see that."""
    assert judge(None, Reading(EPOCH, MINUTE, "this boot")) == (
        "it shows 1970-01-01 00:00:00 UTC, and this release was built on 2026-11-02"
    )
    assert judge(None, Reading(BUILT_AT, MINUTE, "this boot")) is None


@pytest.mark.parametrize(
    ("off", "answer"), [(timedelta(0), True), (HOUR, True), (-HOUR, True), (HOUR + SECOND, False)]
)
def test_an_authoritys_date_agrees_within_an_hour(off: timedelta, answer: bool) -> None:
    """Seconds on the way do not matter, days do."""
    assert answer == clock.agrees(NOW + off, NOW)


def test_a_doubt_stays_until_an_authority_agrees() -> None:
    """Neither time nor an authority that says something else ends it; since when it lasts is not forgotten."""
    jumped = clock.another_reading(ClockState(BEFORE), later(MINUTE, 90 * DAY))
    after = clock.another_reading(jumped, later(HOUR, of=jumped.reading))

    assert jumped.doubt is not None
    assert (after.doubt, after.since) == (jumped.doubt, jumped.reading.wall)
    assert clock.authority_said(after, NOW) == after
    assert clock.authority_said(after, after.reading.wall + MINUTE) == ClockState(after.reading)


def test_a_clock_that_comes_back_still_needs_a_witness() -> None:
    """Which of two jumps was the right one only an authority knows."""
    away = clock.another_reading(ClockState(BEFORE), later(MINUTE, 90 * DAY))
    back = clock.another_reading(away, later(MINUTE, -90 * DAY, of=away.reading))

    assert back.doubt == "it jumped back from 2027-02-20 12:02:00 UTC to 2026-11-22 12:02:00 UTC"
    assert away.since is not None
    assert back.since == away.since - 90 * DAY
    assert clock.authority_said(back, NOW).doubt is None


def test_an_authority_that_is_wrong_begins_no_doubt() -> None:
    """Its clock may be broken, ours has done nothing strange."""
    state = ClockState(BEFORE)

    assert clock.authority_said(state, NOW + 90 * DAY) == state


def test_a_confirmed_clock_from_before_the_release_stays_believed() -> None:
    """A build date in the future is not raised at every look again once an authority has agreed."""
    early = clock.first_reading(None, Reading(EPOCH, UP, "this boot"), built_at=BUILT_AT)
    confirmed = clock.authority_said(early, EPOCH)

    assert early.doubt is not None
    assert clock.another_reading(confirmed, later(MINUTE, of=confirmed.reading)).doubt is None


STEPS = st.lists(
    st.tuples(
        st.integers(0, 100_000),
        st.one_of(st.just(0), st.integers(-3600, 86400), st.integers(-(10**7), 10**7)),
        st.one_of(st.none(), st.integers(-(10**7), 10**7)),
    ),
    max_size=30,
)


@given(STEPS)
def test_the_clock_is_believed_exactly_when_nothing_strange_came_after_the_last_witness(
    steps: list[tuple[int, int, int | None]],
) -> None:
    """Whatever happens: doubt begins with a jump and with nothing else, and ends with an agreeing Date alone."""
    state, expected = ClockState(BEFORE), True
    for seconds, jump, authority in steps:
        state = clock.another_reading(state, later(seconds * SECOND, jump * SECOND, of=state.reading))
        expected = expected and -3600 <= jump <= 86400
        if authority is not None:
            state = clock.authority_said(state, state.reading.wall + authority * SECOND)
            expected = expected or abs(authority) <= 3600

        assert expected == (state.doubt is None)
        assert (state.doubt is None) == (state.since is None)


@dataclass
class Clocks:
    """A machine's clocks, moved by hand."""

    wall: datetime = NOW
    boot: timedelta = UP

    def go(self, after: timedelta, jump: timedelta = timedelta(0)) -> None:
        self.boot += after
        self.wall += after + jump

    def keeper(self, before: Reading | None = None) -> Timekeeper:
        return Timekeeper(
            before, wall=lambda: self.wall, boot=lambda: self.boot, boot_id=lambda: "b", built_at=BUILT_AT
        )


def test_what_is_judged_is_what_is_used() -> None:
    """The instant of a look is the one that was judged in it."""
    clocks = Clocks()
    keeper = clocks.keeper()
    clocks.go(MINUTE, 90 * DAY)

    assert keeper.tick() == clocks.wall
    assert not keeper.trusted


def test_an_authority_is_asked_every_15_seconds_while_in_doubt_and_never_else() -> None:
    """By the time since boot, since the other clock is what is in doubt; a new doubt asks at once."""
    clocks = Clocks()
    keeper = clocks.keeper()
    assert (keeper.should_ask, keeper.ask_in) == (False, None)

    clocks.go(MINUTE, 90 * DAY)
    keeper.tick()
    assert keeper.should_ask
    keeper.asked()
    clocks.go(5 * SECOND, -90 * DAY)
    keeper.tick()
    assert (keeper.should_ask, keeper.ask_in) == (False, 10 * SECOND)
    clocks.go(11 * SECOND)
    assert keeper.should_ask
    keeper.asked()

    keeper.authority_said(clocks.wall)
    assert (keeper.should_ask, keeper.ask_in) == (False, None)
    clocks.go(SECOND, 90 * DAY)
    keeper.tick()
    assert keeper.should_ask


def test_a_date_is_compared_with_the_clock_as_it_is_when_the_date_arrives() -> None:
    """A clock that jumped since the last look is not confirmed by what it would have agreed with."""
    clocks = Clocks()
    keeper = clocks.keeper()
    clocks.go(MINUTE, 90 * DAY)

    keeper.authority_said(NOW)

    assert not keeper.trusted


def test_a_date_heard_before_ends_a_doubt_that_began_since() -> None:
    """It is passed over only while there is none: many answers come within the same second."""
    clocks = Clocks()
    keeper = clocks.keeper()
    keeper.authority_said(NOW)
    clocks.go(SECOND, 90 * DAY)
    keeper.tick()
    doubted = not keeper.trusted
    clocks.go(SECOND, -90 * DAY)

    keeper.authority_said(NOW)

    assert (doubted, keeper.trusted) == (True, True)


def test_a_start_in_1970_is_a_problem_until_an_authority_agrees() -> None:
    """The status names the clock, says what is wrong with it and what to run."""
    clocks = Clocks(wall=EPOCH)
    keeper = clocks.keeper(clock.remembered(NOW))

    problem = keeper.problem
    assert problem is not None
    assert problem.code == "clock"
    assert "1970-01-01 00:00:00 UTC" in problem.detail
    assert problem.hint == "run: timedatectl status"
    clocks.wall = NOW + MINUTE
    keeper.authority_said(NOW + MINUTE)
    assert keeper.problem is None


def test_a_doubt_is_told_since_when_and_never_since_the_future() -> None:
    """By the clock as it is now: one that is set back again has been in doubt for as long as before."""
    clocks = Clocks()
    keeper = clocks.keeper()
    assert keeper.doubted_since is None
    clocks.go(MINUTE, 90 * DAY)
    began = keeper.tick()
    clocks.go(MINUTE)
    keeper.tick()
    assert began == keeper.doubted_since
    clocks.go(MINUTE, -90 * DAY)

    assert keeper.tick() - 2 * MINUTE == keeper.doubted_since
    keeper.authority_said(clocks.wall)
    assert keeper.doubted_since is None


class Book(Journal):
    """A journal that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    async def note(self, name: str, subject: str, *, at: datetime | None = None, **_: Any) -> None:
        self.told.append(name)

    async def warn(self, name: str, subject: str, **_: Any) -> None:
        self.told.append(name)


async def test_the_journal_hears_of_each_doubt_once() -> None:
    """When it begins, when its reason changes, and when it ends."""
    clocks, book = Clocks(), Book()
    keeper = clocks.keeper()
    for jump in (0, 90, 0, -90, 0):
        clocks.go(MINUTE, jump * DAY)
        keeper.tick()
        await keeper.tell(book)
    keeper.authority_said(clocks.wall)
    await keeper.tell(book)
    await keeper.tell(book)

    assert book.told == ["clock.doubted", "clock.doubted", "clock.confirmed"]


def test_the_machines_own_clocks_are_read() -> None:
    """The wall clock is aware UTC; the boot clock has counted at least the monotonic one's seconds."""
    keeper = Timekeeper()

    assert wall_clock().tzinfo is UTC
    assert booted_for() > timedelta(0)
    assert keeper.reading.boot_id
