"""An order is presumed ready only where nothing is left to be done, and asked about as its authority's last ones went."""

import asyncio
from asyncio import sleep
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certfan.core.issuance import (
    AuthorizationSeen,
    AuthorizationStatus,
    ChallengeSeen,
    ChallengeStatus,
    Issuance,
    OrderSeen,
    OrderStatus,
)
from certfan.core.model import Identifier
from certfan.core.pace import LONGEST_QUIET, SHORTEST_QUIET, Pace, presumed
from certfan.daemon.issuing.ordering import Memory, Order, Tokens
from tests.unit.planner_parts import NOW, WWW

ORDER = OrderSeen("https://ca/order/1", OrderStatus.PENDING, ("https://ca/authz/1", "https://ca/authz/2"), "")
PENDING, VALID = AuthorizationStatus.PENDING, AuthorizationStatus.VALID


def authorization(number: int, status: AuthorizationStatus = PENDING) -> AuthorizationSeen:
    url = f"https://ca/authz/{number}"
    challenges = [
        ChallengeSeen(kind, f"{url}/{kind}", ChallengeStatus.PENDING, f"{kind}-{number}")
        for kind in ("dns-01", "http-01")
    ]
    return AuthorizationSeen(url, status, Identifier(f"n{number}.org"), tuple(challenges))


def begun(*answered: int) -> Issuance:
    urls = frozenset(f"https://ca/authz/{number}/http-01" for number in answered)
    return Issuance(WWW, 1, "ca", (Identifier(WWW),), NOW, ORDER.url, urls)


def seen(*them: AuthorizationSeen) -> dict[str, AuthorizationSeen]:
    return {one.url: one for one in them}


def test_an_order_is_presumed_ready_once_each_authorization_is_valid_or_answered_and_fetched() -> None:
    """It is as it was shown, but for its status."""
    ready = replace(ORDER, status=OrderStatus.READY)

    both = seen(authorization(1), authorization(2))
    assert presumed(begun(1, 2), ORDER, both, {"http-01-1", "http-01-2"}) == ready
    reused = seen(authorization(1), authorization(2, VALID))
    assert presumed(begun(1), ORDER, reused, {"http-01-1"}) == ready


@pytest.mark.parametrize(
    ("answered", "second", "fetched"),
    [
        ((1, 2), authorization(2), {"http-01-1"}),
        ((1,), authorization(2), {"http-01-1", "http-01-2"}),
        ((1, 2), authorization(2), {"http-01-1", "dns-01-2"}),
        ((1, 2), authorization(2, AuthorizationStatus.INVALID), {"http-01-1", "http-01-2"}),
        ((1, 2), None, {"http-01-1", "http-01-2"}),
    ],
    ids=["not fetched", "not answered", "another challenge's token", "invalid", "not seen"],
)
def test_an_order_is_not_presumed_ready_while_anything_is_missing(
    answered: tuple[int, ...], second: AuthorizationSeen | None, fetched: set[str]
) -> None:
    """Of one authorization, though the other is done: finalizing would be in vain."""
    them = seen(authorization(1), *([second] if second else []))

    assert presumed(begun(*answered), ORDER, them, fetched) is None


@pytest.mark.parametrize("status", sorted(set(OrderStatus) - {OrderStatus.PENDING}))
def test_only_a_pending_order_is_presumed_anything(status: OrderStatus) -> None:
    """Of any other the authority has said what it is."""
    both = seen(authorization(1), authorization(2))

    assert presumed(begun(1, 2), replace(ORDER, status=status), both, {"http-01-1", "http-01-2"}) is None


def test_an_authority_is_prompt_as_long_as_its_last_order_was() -> None:
    """Before any order nothing is presumed of it."""
    quick = Pace().after(SHORTEST_QUIET, ready=True)
    slow = quick.after(quick.quiet, ready=False)

    assert [one.is_prompt for one in (Pace(), quick, slow)] == [False, True, False]
    assert [one.quiet for one in (Pace(), quick, slow)] == [
        SHORTEST_QUIET,
        SHORTEST_QUIET,
        2 * SHORTEST_QUIET,
    ]


def test_orders_that_were_asked_too_early_together_make_it_slower_once() -> None:
    """Eight that began at one pace have learned one thing, not eight."""
    pace = Pace()
    for _ in range(8):
        pace = pace.after(SHORTEST_QUIET, ready=False)

    assert pace.quiet == 2 * SHORTEST_QUIET


@given(st.floats(0, 800).map(lambda ms: timedelta(milliseconds=ms)))
def test_the_quiet_finds_what_an_authority_needs(needs: timedelta) -> None:
    """After some orders at most one in five is asked too early, and none more than twice as late as it had to be."""
    pace, fared = Pace(), []
    for number in range(100):
        used, ready = pace.quiet, pace.quiet >= needs
        pace = pace.after(used, ready=ready)
        if number >= 50:
            fared.append((ready, used))

    assert sum(not ready for ready, _ in fared) <= len(fared) / 5
    assert all(used <= max(2 * needs, SHORTEST_QUIET) for _, used in fared)
    assert all(SHORTEST_QUIET <= used <= LONGEST_QUIET for _, used in fared)


class Fetching:
    """An order whose tokens are fetched at instants of the loop's clock, which goes on while it sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fetches: dict[float, str]) -> None:
        self.now, self._fetches = 100.0, fetches
        self.order = Order(None, b"", begun(1, 2), Memory(), Tokens(), lambda: NOW)  # type: ignore[arg-type]
        self.order._tokens, self.order._last = {"http-01-1", "http-01-2"}, ORDER
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: self.now)
        monkeypatch.setattr(asyncio, "sleep", self._sleep)
        self.order.note_fetch("http-01-1", "a place")

    async def _sleep(self, seconds: float) -> None:
        until = self.now + seconds
        while self._fetches and min(self._fetches) <= until:
            self.now = min(self._fetches)
            self.order.note_fetch(self._fetches.pop(self.now), "a place")
        self.now = until
        await sleep(0)

    async def waited(self) -> timedelta:
        before = self.now
        await self.order._wait(NOW + timedelta(seconds=10))
        return timedelta(seconds=self.now - before)


async def test_the_quiet_is_counted_from_the_last_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fetch that comes amid it has the rest of it waited for, not all of it again; one of another token does not end it."""
    fetching = Fetching(monkeypatch, {100.002: "http-01-1", 100.0055: "http-01-1", 100.006: "http-01-2"})
    quiet = await fetching.order._fetched_and_quiet()

    assert quiet == SHORTEST_QUIET
    assert fetching.now == pytest.approx(100.006 + quiet.total_seconds())


async def test_an_authority_that_was_asked_too_early_is_asked_again_after_twice_as_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each time, although it fetches no more: an order that needs a little longer holds its place no second longer."""
    fetching = Fetching(monkeypatch, {100.001: "http-01-2"})

    waited = [round((await fetching.waited()) / SHORTEST_QUIET, 3) for _ in range(4)]

    assert waited == [1.2, 2, 4, 8]


async def test_an_authority_that_says_when_to_ask_again_is_not_asked_sooner(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Unless it fetches once more."""
    fetching = Fetching(monkeypatch, {100.001: "http-01-2"})
    await fetching.waited()
    fetching.order._last = replace(ORDER, retry_after=timedelta(seconds=3))
    again = asyncio.create_task(fetching.waited())
    for _ in range(5):
        await sleep(0)
    waits = not again.done()
    fetching.order.note_fetch("http-01-1", "a place")

    assert waits
    assert round((await again) / SHORTEST_QUIET, 3) == 2


async def test_an_order_that_waited_for_its_place_is_no_older_than_its_place() -> None:
    """How often it is looked at goes by its age at the authority; one that is resumed is as old as it was."""
    later = NOW + timedelta(hours=1)

    class Authority:
        async def new_order(self, *_: object, **__: object) -> OrderSeen:
            return replace(ORDER, status=OrderStatus.VALID, certificate="https://ca/certificate/1")

        async def order(self, _url: str) -> OrderSeen:
            return await self.new_order()

        async def certificate(self, *_: object, **__: object) -> bytes:
            return b"chain"

    ages = []
    for url in (None, ORDER.url):
        issuance = replace(begun(), order_url=url)
        order = Order(Authority(), b"", issuance, Memory(), Tokens(), lambda: later)  # type: ignore[arg-type]
        await order.carry()
        assert b"chain" == await order.chain()
        ages.append(later - order.issuance.begun_at)

    assert [timedelta(0), timedelta(hours=1)] == ages
