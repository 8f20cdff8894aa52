"""The order machine: every state of an order, in the middle of it too, has one right next move."""

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from certfan.core.issuance import (
    Answer,
    AuthorizationSeen,
    AuthorizationStatus,
    ChallengeSeen,
    ChallengeStatus,
    Download,
    Finalize,
    GiveUp,
    Issuance,
    LookAtAuthorization,
    LookAtOrder,
    Move,
    NewOrder,
    OrderSeen,
    OrderStatus,
    StartOver,
    Wait,
    is_spoilt,
    kept,
    next_move,
)
from certfan.core.model import Attempt, Identifier, Problem
from certfan.core.pace import presumed
from tests.unit.planner_parts import DAY, HOUR, MINUTE, NOW, WWW

URL, FIRST, SECOND = "https://ca/order/1", "https://ca/authz/1", "https://ca/authz/2"
NAMES = (Identifier(WWW), Identifier("x.org"))
BEGUN = Issuance(WWW, 1, "ca", NAMES, NOW, URL)
PENDING = OrderSeen(URL, OrderStatus.PENDING, (FIRST, SECOND), "https://ca/finalize/1")
SECOND_LONG = timedelta(seconds=1)


def challenge(
    status: ChallengeStatus = ChallengeStatus.PENDING, *, of: str = FIRST, kind: str = "http-01"
) -> ChallengeSeen:
    problem = Problem("authority.refused", "404 at 192.0.2.1") if status is ChallengeStatus.INVALID else None
    return ChallengeSeen(kind, f"{of}/{kind}", status, "token", problem)


def authorization(
    url: str = FIRST,
    status: AuthorizationStatus = AuthorizationStatus.PENDING,
    *challenges: ChallengeSeen,
) -> AuthorizationSeen:
    name = NAMES[0] if url == FIRST else NAMES[1]
    return AuthorizationSeen(url, status, name, challenges or (challenge(of=url),))


def move(
    order: OrderSeen | None,
    *seen: AuthorizationSeen,
    begun: Issuance = BEGUN,
    now: datetime = NOW,
) -> Move:
    return next_move(begun, order, {one.url: one for one in seen}, now)


VALID = AuthorizationStatus.VALID


def test_an_issuance_without_url_asks_for_an_order() -> None:
    """The answer to an earlier newOrder may be lost; asking again is all that can be done."""
    assert move(None, begun=replace(BEGUN, order_url=None)) == NewOrder()


def test_after_a_restart_the_order_is_looked_at_first() -> None:
    """Its URL is what survived."""
    assert move(None) == LookAtOrder(URL)


def test_each_authorization_is_looked_at_and_answered() -> None:
    """One after the other, the second as soon as the first is on its way."""
    answered = replace(BEGUN, answered=frozenset({challenge().url}))

    assert move(PENDING) == LookAtAuthorization(FIRST)
    assert move(PENDING, authorization()) == Answer(FIRST, challenge())
    assert move(PENDING, authorization(), begun=answered) == LookAtAuthorization(SECOND)


def test_a_reused_authorization_needs_no_answer() -> None:
    """One that is valid already is passed over, also when it shows no challenge we know."""
    reused = authorization(FIRST, VALID, challenge(ChallengeStatus.VALID, kind="dns-01"))

    assert move(PENDING, reused) == LookAtAuthorization(SECOND)


def test_a_challenge_that_the_authority_tries_already_is_not_answered_again() -> None:
    """Answered before a crash whose record was lost: the authority's word counts."""
    trying = authorization(FIRST, AuthorizationStatus.PENDING, challenge(ChallengeStatus.PROCESSING))

    assert isinstance(move(PENDING, trying, authorization(SECOND, VALID)), Wait)


def test_while_all_is_on_its_way_one_waits_longer_as_the_order_grows_old() -> None:
    """A second at first, fifteen at most."""
    valid = (authorization(FIRST, VALID), authorization(SECOND, VALID))

    assert move(PENDING, *valid) == Wait(NOW + SECOND_LONG)
    assert move(PENDING, *valid, now=NOW + MINUTE) == Wait(NOW + MINUTE + 6 * SECOND_LONG)
    assert move(PENDING, *valid, now=NOW + HOUR) == Wait(NOW + HOUR + 15 * SECOND_LONG)
    assert move(PENDING, *valid, now=NOW - HOUR) == Wait(NOW - HOUR + SECOND_LONG)


@pytest.mark.parametrize(
    ("told", "waits"),
    [(timedelta(0), SECOND_LONG / 250), (30 * SECOND_LONG, 30 * SECOND_LONG), (DAY, 5 * MINUTE)],
)
def test_retry_after_is_obeyed_within_bounds(told: timedelta, waits: timedelta) -> None:
    """Never a busy loop, never a day."""
    processing = replace(PENDING, status=OrderStatus.PROCESSING, retry_after=told)

    assert move(processing) == Wait(NOW + waits)


@pytest.mark.parametrize(
    ("told", "age", "waits"),
    [
        (timedelta(0), 1, 0.1),
        (timedelta(0), 3600, 1),
        (None, 0, 0.004),
        (None, 1, 0.1),
        (None, 30, 3),
        (None, 3600, 15),
        (None, -3600, 0.004),
    ],
)
def test_what_the_authority_does_by_itself_is_looked_at_soon_and_ever_rarer(
    told: timedelta | None, age: float, waits: float
) -> None:
    """A certificate that is made in a moment is not waited for a second; one that takes minutes costs few looks."""
    processing = replace(PENDING, status=OrderStatus.PROCESSING, retry_after=told)
    now = NOW + age * SECOND_LONG

    assert move(processing, now=now) == Wait(now + waits * SECOND_LONG)


def test_a_ready_order_is_finalized_and_a_valid_one_downloaded() -> None:
    """Also right after a restart, with no authorization seen."""
    ready = replace(PENDING, status=OrderStatus.READY)
    valid = replace(PENDING, status=OrderStatus.VALID, certificate="https://ca/cert/1")

    assert move(ready) == Finalize(PENDING.finalize)
    assert move(valid) == Download("https://ca/cert/1")
    assert isinstance(move(replace(valid, certificate=None)), Wait)


def test_an_order_that_expired_is_begun_anew() -> None:
    """A valid one is not: its certificate can still be had."""
    late = NOW + 8 * DAY
    expiring = replace(PENDING, expires=NOW + 7 * DAY)
    valid = replace(expiring, status=OrderStatus.VALID, certificate="https://ca/cert/1")

    assert isinstance(move(expiring, now=late), StartOver)
    assert move(valid, now=late) == Download("https://ca/cert/1")


def test_an_invalid_authorization_ends_the_try_and_names_its_identifier() -> None:
    """The challenge's own problem is told, with a hint where to look."""
    refused = authorization(
        SECOND, AuthorizationStatus.INVALID, challenge(ChallengeStatus.INVALID, of=SECOND)
    )
    ended = move(PENDING, authorization(FIRST, VALID), refused)

    assert isinstance(ended, GiveUp)
    assert ended.problem.code == "challenge.failed"
    assert ended.problem.detail == f"{WWW}: x.org: 404 at 192.0.2.1"
    assert "http://x.org/.well-known/acme-challenge/" in ended.problem.hint


def test_an_invalid_order_is_searched_for_the_identifier_at_fault() -> None:
    """Without one at fault another order may do better."""
    invalid = replace(PENDING, status=OrderStatus.INVALID, problem=Problem("authority.refused", "internal"))
    valid = authorization(FIRST, VALID)
    refused = authorization(
        SECOND, AuthorizationStatus.INVALID, challenge(ChallengeStatus.INVALID, of=SECOND)
    )

    assert move(invalid) == LookAtAuthorization(FIRST)
    assert move(invalid, valid) == LookAtAuthorization(SECOND)
    assert isinstance(move(invalid, valid, refused), GiveUp)
    assert move(invalid, valid, authorization(SECOND, VALID)) == StartOver(
        Problem("authority.refused", "internal")
    )


def test_an_authorization_that_was_withdrawn_starts_over() -> None:
    """Deactivated, expired and revoked are no fault of the name."""
    for status in ("deactivated", "expired", "revoked"):
        dead = authorization(FIRST, AuthorizationStatus(status))
        assert isinstance(move(PENDING, dead), StartOver)


def test_a_name_that_only_dns_can_prove_says_so() -> None:
    """A wildcard with http-01 alone is told apart from a failure."""
    ended = move(PENDING, authorization(FIRST, AuthorizationStatus.PENDING, challenge(kind="dns-01")))

    assert isinstance(ended, GiveUp)
    assert "dns-01" in ended.problem.detail


def test_what_was_seen_of_authorizations_is_dropped_when_the_order_moves_on() -> None:
    """Pending ones tell nothing about an order that became invalid since."""
    seen = {FIRST: authorization()}
    invalid = replace(PENDING, status=OrderStatus.INVALID)

    assert kept(PENDING, PENDING, seen) == seen
    assert kept(PENDING, invalid, seen) == {}


def test_what_an_order_led_to_is_spoilt_when_it_is_refused_again_for_the_same_reason() -> None:
    """The first time, and when the refusal before was of another order or for another reason, it may become better."""
    problem = Problem("pki.chain_invalid", "it ends in none of the roots")
    again, earlier = Attempt(WWW, problem, 1, NOW, NOW), Attempt(WWW, problem, 1, NOW - HOUR, NOW)
    other = Attempt(WWW, Problem("authority.malformed", "no PEM"), 1, NOW, NOW)

    assert is_spoilt(BEGUN, again, problem)
    assert [False] * 3 == [is_spoilt(BEGUN, one, problem) for one in (None, earlier, other)]


class ToyCa:
    """One order: some authorizations are reused, the others end as they are fated to; each look takes it a step on."""

    def __init__(self, fates: list[str], patience: int) -> None:
        self.urls = [f"https://ca/authz/{n}" for n in range(len(fates))]
        self.fates = dict(zip(self.urls, fates, strict=True))
        reused = {url for url, fate in self.fates.items() if fate == "reused"}
        self.states = {url: "valid" if url in reused else "pending" for url in self.urls}
        self.answered: list[str] = []
        self.finalized = 0
        self.processing = patience
        self.validating = dict.fromkeys(self.urls, patience)
        self.status = OrderStatus.PENDING
        self._settle()

    def _settle(self) -> None:
        if self.status is not OrderStatus.PENDING:
            return
        if any(state not in ("pending", "valid") for state in self.states.values()):
            self.status = OrderStatus.INVALID
        elif all(state == "valid" for state in self.states.values()):
            self.status = OrderStatus.READY

    def order(self) -> OrderSeen:
        """Answer a look; every one finds it a step further."""
        for url in {answered.removesuffix("/http-01") for answered in self.answered}:
            self.validating[url] -= 1
            if self.validating[url] < 0 and self.states[url] == "pending":
                self.states[url] = self.fates[url]
        self._settle()
        if self.status is OrderStatus.PROCESSING:
            self.processing -= 1
            self.status = OrderStatus.VALID if self.processing < 0 else self.status
        chain = "https://ca/cert/1" if self.status is OrderStatus.VALID else None
        return OrderSeen(URL, self.status, tuple(self.urls), "https://ca/finalize/1", certificate=chain)

    def authorization(self, url: str) -> AuthorizationSeen:
        status = AuthorizationStatus(self.states[url])
        is_tried = f"{url}/http-01" in self.answered and status is AuthorizationStatus.PENDING
        state = ChallengeStatus.PROCESSING if is_tried else ChallengeStatus.PENDING
        if status in (AuthorizationStatus.VALID, AuthorizationStatus.INVALID):
            state = ChallengeStatus(status.value)
        return AuthorizationSeen(url, status, Identifier(f"n{url[-1]}"), (challenge(state, of=url),))


FATES = st.sampled_from(["reused", "valid", "valid", "valid", "invalid", "expired", "deactivated", "revoked"])


@settings(deadline=None)
@given(
    st.lists(FATES, min_size=1, max_size=4),
    st.integers(0, 3),
    st.sets(st.integers(0, 40), max_size=6),
    st.booleans(),
)
def test_an_order_comes_to_its_right_end_however_often_it_is_cut_off(
    fates: list[str], patience: int, cuts: set[int], hasty: bool
) -> None:
    """Cut off before any move, and before the record of any answer: one CSR, each challenge told once more at most a cut.

    Finalized once unlooked at, too: a refusal of that changes nothing.
    """
    ca, begun, now = ToyCa(fates, patience), BEGUN, NOW
    order = last = None
    seen: dict[str, AuthorizationSeen] = {}
    for number in range(200):
        if number in cuts:
            order, last, seen = None, None, {}
        now += SECOND_LONG
        next_one = next_move(begun, order, seen, now)
        match next_one:
            case LookAtOrder():
                order = ca.order()
                seen, last = dict(kept(last, order, seen)), order
            case LookAtAuthorization(url):
                seen[url] = ca.authorization(url)
            case Answer(_, one):
                ca.answered.append(one.url)
                if number + 1 not in cuts:
                    begun = replace(begun, answered=begun.answered | {one.url})
            case Wait(until):
                assert until > now
                now, order = until, presumed(begun, last, seen, {"token"}) if hasty else None
                hasty = hasty and order is None
            case Finalize() if order is not last and ca.status is not OrderStatus.READY:
                order = None
            case Finalize():
                assert ca.status is OrderStatus.READY
                ca.finalized += 1
                ca.status, order = OrderStatus.PROCESSING, None
            case end:
                break
    bad = [fate for fate in fates if fate not in ("reused", "valid")]

    expected = Download if not bad else (GiveUp if "invalid" in bad else StartOver)
    if len(bad) < 2:  # of several the first to end decides
        assert isinstance(end, expected)
    else:
        assert isinstance(end, GiveUp | StartOver)
    assert ca.finalized == (not bad)
    assert len(ca.answered) - len(set(ca.answered)) <= len(cuts)
    assert not any(ca.fates[url.removesuffix("/http-01")] == "reused" for url in ca.answered)


def test_an_answer_that_was_recorded_is_not_given_again() -> None:
    """Though the authority shows its challenge as pending still: it may only not have begun."""
    begun = replace(BEGUN, answered=frozenset({challenge().url}))

    assert isinstance(move(PENDING, authorization(), authorization(SECOND, VALID), begun=begun), Wait)


def test_what_is_not_wanted_of_an_authorization_is_left_alone() -> None:
    """Of several challenges only one of the kinds that are set up is answered, in their order."""
    both = authorization(
        FIRST,
        AuthorizationStatus.PENDING,
        challenge(kind="dns-01"),
        challenge(),
        challenge(kind="tls-alpn-01"),
    )
    seen = {FIRST: both}

    assert next_move(BEGUN, PENDING, seen, NOW) == Answer(FIRST, challenge())
    by_dns = next_move(BEGUN, PENDING, seen, NOW, supported=("dns-01", "http-01"))
    assert by_dns == Answer(FIRST, challenge(kind="dns-01"))


def test_a_challenge_that_failed_ends_the_try_before_its_authorization_does() -> None:
    """The authority may not have come to mark the authorization as invalid."""
    failed = authorization(FIRST, AuthorizationStatus.PENDING, challenge(ChallengeStatus.INVALID))

    assert isinstance(move(PENDING, failed), GiveUp)


@pytest.mark.parametrize("status", [OrderStatus.READY, OrderStatus.PROCESSING])
def test_an_order_that_expires_late_is_begun_anew_too(status: OrderStatus) -> None:
    """Whatever it had come to, short of a certificate."""
    late = replace(PENDING, status=status, expires=NOW)

    assert isinstance(move(late), StartOver)
