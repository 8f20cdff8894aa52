"""Which certificates are ordered, at which authority, and what holds an order up until when."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certfan.core.issuance import Issuance
from certfan.core.ledger import Ledger, Spend, SpendKind
from certfan.core.model import (
    Attempt,
    Authority,
    Certificate,
    Consumer,
    Desired,
    Identifier,
    Limit,
    Limits,
    PathCheck,
    Problem,
    Reason,
    RenewalInfo,
    Revocation,
    RevocationReason,
)
from certfan.core.plan import CheckPath, Issue, Observed, Plan, RollAccountKey, plan
from certfan.core.room import BEGUN
from certfan.core.standing import LIMIT, PATH, Holding, Standing, fallback_instant, standing, why
from certfan.core.subjects import order_subject, path_subject, rollover_subject
from tests.unit.planner_parts import DAY, HOUR, MINUTE, NOW, WWW, make_certificate, make_generation

SECOND = timedelta(seconds=1)
REFUSED = Problem("challenge.failed", "404 at 192.0.2.1", "look there")
SILENT = Problem("authority.unreachable", "no answer")
OWN = Problem(PATH, "nothing listens on 192.0.2.1:80", "start it")
LIMITS = Limits(orders=Limit(3, 3 * HOUR), certificates_per_set=Limit(2, 7 * DAY))
WITH_FALLBACK = replace(make_certificate(), fallback=("second", "third"), fallback_after=12 * HOUR)


def wanted(*certificates: Certificate, cap: int = 8) -> Desired:
    names = ("ca", "second", "third")
    authorities = {name: Authority(name, f"https://{name}/dir", orders_at_once=cap) for name in names}
    return Desired(authorities, {c.name: c for c in certificates}, {"web1": Consumer("web1")})


def many(names: Iterable[str], cap: int = 8) -> Desired:
    return wanted(*(make_certificate(name, (name,)) for name in names), cap=cap)


def failed(
    since: datetime,
    *,
    at: datetime = NOW,
    wait: timedelta = DAY,
    subject: str = WWW,
    problem: Problem = REFUSED,
) -> dict[str, Attempt]:
    return {subject: Attempt(subject, problem, 3, at, at + wait, since)}


def stands(certificate: Certificate, observed: Observed, now: datetime = NOW) -> Standing:
    found = standing(certificate, wanted(certificate), observed, now)
    assert found is not None
    return found


def begun(authority: str = "ca", *, name: str = WWW, **changes: Any) -> dict[str, Issuance]:
    one = Issuance(name, 1, authority, (Identifier(name),), NOW, f"https://{authority}/1")
    return {name: replace(one, **changes)}


def spends_at(at: datetime) -> list[Spend]:
    return [Spend(SpendKind.ORDER, at, frozenset({"x.example"}))]


def spent(count: int, *, limits: Limits = LIMITS, at: datetime = NOW) -> Ledger:
    return Ledger.of(limits, spends_at(at) * count, domains=lambda name: name)


def issues(planned: Plan) -> list[str]:
    return [step.certificate for step in planned.steps if isinstance(step, Issue)]


def looks(planned: Plan) -> list[str]:
    return [step.identifier for step in planned.steps if isinstance(step, CheckPath)]


def info(start: timedelta, end: timedelta, *, number: int = 1, name: str = WWW) -> RenewalInfo:
    """Return a window around NOW whose instant is its start."""
    at = NOW + start
    return RenewalInfo(name, number, start=at, end=NOW + end, chosen=at, ask_again_at=NOW + HOUR)


# Where


def test_the_configs_authority_is_asked_first() -> None:
    """Fallbacks wait for its lasting failure; nothing is told instead of it."""
    found = stands(WITH_FALLBACK, Observed())

    assert ("ca", None, None) == (found.authority, found.holding, found.instead_of)


@pytest.mark.parametrize(("hours", "where"), [(11, "ca"), (12, "second")])
def test_a_fallback_is_asked_once_the_authority_has_failed_for_long(hours: int, where: str) -> None:
    """It counts since when it fails, not how often; before that the order waits where it is."""
    found = stands(WITH_FALLBACK, Observed(attempts=failed(NOW - hours * HOUR)))

    assert where == found.authority
    assert (found.holding is None) == (where == "second")
    assert (REFUSED if where == "second" else None) == found.instead_of


def test_a_hold_says_why_and_until_when() -> None:
    """The failure itself, its hint, and the end of its back-off."""
    found = stands(make_certificate(), Observed(attempts=failed(NOW)))

    assert Holding("challenge.failed", REFUSED.detail, NOW + DAY, "look there") == found.holding


def test_fallbacks_are_tried_in_their_order() -> None:
    """The third only when the second has failed for long too; one that is not in the config is passed over."""
    second = order_subject(WITH_FALLBACK, "second")
    first = failed(NOW - 2 * DAY)
    fresh = {**first, **failed(NOW - HOUR, subject=second)}
    both = {**first, **failed(NOW - DAY, subject=second)}
    unknown = replace(WITH_FALLBACK, fallback=("gone", "third"))

    assert stands(WITH_FALLBACK, Observed(attempts=fresh)).holding is not None
    assert "third" == stands(WITH_FALLBACK, Observed(attempts=both)).authority
    assert "third" == stands(unknown, Observed(attempts=first)).authority


def test_when_all_are_held_the_first_to_be_free_is_waited_for() -> None:
    """Its instant is what the status tells."""
    second = order_subject(WITH_FALLBACK, "second")
    attempts = {**failed(NOW - 2 * DAY), **failed(NOW, subject=second, wait=10 * MINUTE)}
    found = stands(WITH_FALLBACK, Observed(attempts=attempts))

    assert "second" == found.authority
    assert found.holding is not None
    assert NOW + 10 * MINUTE == found.holding.until


def test_the_first_authority_is_tried_again_before_any_fallback() -> None:
    """As soon as its back-off has ended, however long it has failed."""
    attempts = failed(NOW - 9 * DAY, at=NOW - 2 * DAY, wait=DAY)

    assert "ca" == stands(WITH_FALLBACK, Observed(attempts=attempts)).authority


@pytest.mark.parametrize(("left", "where"), [(12 * HOUR, "ca"), (13 * HOUR, "second")])
def test_a_limit_that_holds_for_longer_than_a_failure_may_last_leads_to_the_fallback(
    left: timedelta, where: str
) -> None:
    """Known in advance, it is not waited for; the limit is told instead of a failure, and it ends the detour in time."""
    used_up = spent(3, limits=Limits(orders=Limit(3, DAY)), at=NOW - DAY + left)
    found = stands(WITH_FALLBACK, Observed(ledgers={"ca": used_up}))
    alone = stands(make_certificate(), Observed(ledgers={"ca": used_up}))

    assert (where, alone.authority) == (found.authority, "ca")
    assert (LIMIT if where == "second" else None) == (found.instead_of.code if found.instead_of else None)
    assert NOW + (left - 12 * HOUR if where == "second" else left) == wakes(
        Observed(ledgers={"ca": used_up}, offered=ALONE, in_flight=frozenset({(WWW,)}))
    )


def test_where_no_fallback_may_be_asked_the_limit_is_waited_for() -> None:
    """The first authority is the one that is held, until its limit ends."""
    subjects = [order_subject(WITH_FALLBACK, name) for name in WITH_FALLBACK.fallback]
    attempts = {name: one for s in subjects for name, one in failed(NOW, subject=s).items()}
    used_up = spent(3, limits=Limits(orders=Limit(3, 2 * DAY)))
    found = stands(WITH_FALLBACK, Observed(ledgers={"ca": used_up}, attempts=attempts))

    assert "ca" == found.authority
    assert found.holding is not None
    assert (LIMIT, NOW + 2 * DAY) == (found.holding.code, found.holding.until)


def test_a_near_deadline_shortens_the_wait_for_a_fallback() -> None:
    """Half of what is left until the leaf must be replaced, when that is sooner than the config says."""
    patient = replace(WITH_FALLBACK, fallback_after=30 * DAY)
    young = (make_generation(issued_at=NOW - 61 * DAY),)  # replaced by day 83: 22 days left
    (attempt,) = failed(NOW).values()

    assert NOW + 11 * DAY == fallback_instant(patient, attempt, Observed(generations={WWW: young}))
    late = (make_generation(issued_at=NOW - 89 * DAY),)
    assert NOW == fallback_instant(patient, attempt, Observed(generations={WWW: late}))
    assert NOW + 30 * DAY == fallback_instant(patient, attempt, Observed())


def test_failing_since_the_future_is_failing_since_the_last_failure() -> None:
    """A clock that was 90 days ahead when the row began does not keep fallbacks away for 90 days."""
    attempts = failed(NOW + 90 * DAY, at=NOW - 13 * HOUR)

    assert "second" == stands(WITH_FALLBACK, Observed(attempts=attempts)).authority


def test_an_open_order_stays_where_it_is() -> None:
    """Begun at a fallback, it is finished there though the first authority may be asked again."""
    observed = Observed(open_orders=begun("second"))
    ended = failed(NOW - 9 * DAY, at=NOW - 2 * DAY, wait=DAY)

    assert "second" == stands(WITH_FALLBACK, observed).authority
    assert "second" == stands(WITH_FALLBACK, replace(observed, attempts=ended)).authority


def test_an_open_order_whose_authority_is_in_trouble_holds_up_no_other() -> None:
    """Stuck at the fallback, the first authority is asked; stuck at the first for long, the fallback is."""
    second = order_subject(WITH_FALLBACK, "second")
    at_second = Observed(open_orders=begun("second"), attempts=failed(NOW - HOUR, subject=second))
    at_first = Observed(open_orders=begun("ca"), attempts=failed(NOW - DAY, problem=SILENT))

    assert "ca" == stands(WITH_FALLBACK, at_second).authority
    assert "second" == stands(WITH_FALLBACK, at_first).authority


def test_an_open_order_for_other_names_or_elsewhere_decides_nothing() -> None:
    """Neither one for names that changed, nor one at an authority that left the config."""
    other_names = begun("second", identifiers=(Identifier("x.example"),))

    assert "ca" == stands(WITH_FALLBACK, Observed(open_orders=other_names)).authority
    assert "ca" == stands(WITH_FALLBACK, Observed(open_orders=begun("gone"))).authority


# What lifts a wait


def test_what_may_have_mended_a_failure_frees_one_try() -> None:
    """A request, a change of the config; an authority that answers; our own check that passes after it failed."""
    held = Observed(attempts=failed(NOW - MINUTE, at=NOW - MINUTE))
    silent = Observed(attempts=failed(NOW - MINUTE, at=NOW - MINUTE, problem=SILENT))
    mended = PathCheck(at=NOW, problem=None, mended_at=NOW)

    def is_free(observed: Observed) -> bool:
        return stands(make_certificate(), observed).holding is None

    assert not is_free(held)
    assert is_free(replace(held, asked={WWW: NOW}))
    assert is_free(replace(held, config_changed={WWW: NOW}))
    assert is_free(replace(silent, answered={"ca": NOW}))
    assert is_free(replace(held, checks={WWW: mended}))


def test_a_path_that_comes_and_goes_frees_no_daily_try() -> None:
    """Our check passes after it failed, again and again, while the authority never sees the answer."""
    mended = Observed(checks={WWW: PathCheck(at=NOW, problem=None, mended_at=NOW)})

    def is_free(failures: int) -> bool:
        attempt = Attempt(WWW, REFUSED, failures, NOW - MINUTE, NOW + HOUR, NOW - DAY)
        return stands(make_certificate(), replace(mended, attempts={WWW: attempt})).holding is None

    assert [True, True, False, False] == [is_free(failures) for failures in (1, 3, 4, 99)]


def test_only_the_cause_that_went_away_lifts_a_wait() -> None:
    """An answer of the authority mends no challenge, our check no silence, and nothing from before the failure."""
    held = Observed(attempts=failed(NOW - MINUTE, at=NOW - MINUTE))
    silent = Observed(attempts=failed(NOW - MINUTE, at=NOW - MINUTE, problem=SILENT))
    mended = PathCheck(at=NOW, problem=None, mended_at=NOW)

    def is_free(observed: Observed) -> bool:
        return stands(make_certificate(), observed).holding is None

    assert not is_free(replace(held, answered={"ca": NOW}))
    assert not is_free(replace(silent, answered={"second": NOW}))
    assert not is_free(replace(silent, checks={WWW: mended}))
    assert not is_free(replace(held, checks={WWW: replace(mended, mended_at=NOW - HOUR)}))
    assert not is_free(replace(held, asked={WWW: NOW - MINUTE}))
    assert not is_free(replace(held, checks={"other.example": mended}))


# What is suggested is exempt


@pytest.mark.parametrize(
    ("start", "end", "is_exempt"),
    [(-HOUR, HOUR, True), (timedelta(0), HOUR, True), (-2 * DAY, -DAY, False), (-DAY, timedelta(0), False)],
)
def test_a_renewal_inside_its_window_is_exempt(start: timedelta, end: timedelta, is_exempt: bool) -> None:
    """One after the window is due too, but counts like any other."""
    observed = Observed(generations={WWW: (make_generation(issued_at=NOW - DAY),)})
    found = stands(make_certificate(), replace(observed, renewals={WWW: info(start, end)}))

    assert (Reason.RENEWAL_DUE, is_exempt) == (found.reason, found.exempt)


def test_only_the_renewal_at_the_authority_that_suggested_it_is_exempt() -> None:
    """Neither an order somebody asked for, nor one elsewhere, nor one by the window of an older generation."""
    old = (make_generation(issued_at=NOW - 70 * DAY),)
    observed = Observed(generations={WWW: old}, renewals={WWW: info(-HOUR, HOUR)})
    newer = (*old, make_generation(2, issued_at=NOW - 70 * DAY))

    assert stands(make_certificate(), observed).exempt
    assert not stands(make_certificate(), replace(observed, asked={WWW: NOW})).exempt
    assert not stands(make_certificate(), replace(observed, generations={WWW: newer})).exempt
    elsewhere = (replace(old[0], authority="second"),)
    assert not stands(make_certificate(), replace(observed, generations={WWW: elsewhere})).exempt
    assert not stands(WITH_FALLBACK, replace(observed, attempts=failed(NOW - DAY))).exempt


def test_a_clock_in_doubt_starts_no_renewal() -> None:
    """Not by the fraction, not by a window; what was asked for goes on."""
    old = Observed(generations={WWW: (make_generation(issued_at=NOW - 70 * DAY),)}, clock_trusted=False)
    desired = wanted(make_certificate())

    assert standing(make_certificate(), desired, old, NOW) is None
    suggested = replace(old, renewals={WWW: info(-HOUR, HOUR)})
    assert standing(make_certificate(), desired, suggested, NOW) is None
    assert Reason.ASKED_FOR is stands(make_certificate(), replace(old, asked={WWW: NOW})).reason


# The ledger


def test_a_limit_that_is_used_up_holds_an_order_until_some_of_it_comes_back() -> None:
    """The status names authority and limit; the plan wakes for it."""
    observed = Observed(ledgers={"ca": spent(3, at=NOW - HOUR)}, offered={(WWW, "web1"): 0})
    found = stands(make_certificate(), observed)
    planned = plan(wanted(make_certificate()), observed, NOW)

    assert found.holding is not None
    assert ("authority.limit", NOW + 2 * HOUR) == (found.holding.code, found.holding.until)
    assert "ca: 3 orders of the account in 3 hours are used up" == found.holding.why
    assert "another authority" in found.holding.hint
    assert ([], NOW + 2 * HOUR) == (issues(planned), planned.wake_at)
    assert [WWW] == issues(plan(wanted(make_certificate()), observed, NOW + 2 * HOUR))


def test_an_exempt_renewal_is_not_held_by_a_limit() -> None:
    """Nor does it use one up."""
    certificates = many("abcdef")
    generations = {n: (make_generation(name=n, names=(n,), issued_at=NOW - DAY),) for n in "abcdef"}
    renewals = {n: info(-HOUR, HOUR, name=n) for n in "abcdef"}
    observed = Observed(generations=generations, renewals=renewals, ledgers={"ca": spent(3)})

    assert list("abcdef") == issues(plan(certificates, observed, NOW))
    assert [] == issues(plan(certificates, replace(observed, generations={}, renewals={}), NOW))


def test_orders_that_begin_in_one_plan_count_for_each_other() -> None:
    """A limit of three with one used begins two."""
    observed = Observed(ledgers={"ca": spent(1)})

    assert ["a", "b"] == issues(plan(many("abcde"), observed, NOW))


def test_what_others_under_way_use_up_comes_back_too() -> None:
    """An order that only they hold up may begin when an older one leaves the window: the plan wakes for it."""
    ledger = Ledger.of(LIMITS, [*spends_at(NOW - HOUR), *spends_at(NOW)], domains=lambda name: name)
    certificate = make_certificate("a", ("a",), ())
    observed = Observed(ledgers={"ca": ledger}, in_flight=frozenset({("b",)}))
    desired = wanted(certificate, make_certificate("b", ("b",), ()))

    assert ([], NOW + 2 * HOUR) == (
        issues(plan(desired, observed, NOW)),
        plan(desired, observed, NOW).wake_at,
    )
    assert ["a"] == issues(plan(desired, observed, NOW + 2 * HOUR))


def test_an_order_that_has_begun_counts_before_its_record() -> None:
    """Between its start and its first record, between intent and answer, and while its certificate is to come."""
    observed = Observed(ledgers={"ca": spent(1)}, in_flight=frozenset({("a",)}))
    intent = replace(observed, open_orders=begun(name="a", order_url=None))
    sent = replace(observed, open_orders=begun(name="a"), ledgers={"ca": spent(2)})

    assert ["b"] == issues(plan(many("abcde"), observed, NOW))
    assert ["b"] == issues(plan(many("abcde"), intent, NOW))
    assert ["b"] == issues(plan(many("abcde"), sent, NOW))


def test_an_order_under_way_counts_where_it_is() -> None:
    """One that has just begun at a fallback uses nothing up at the first authority, and leaves its place there free."""
    away = replace(make_certificate("a", ("a",)), fallback=("second",), fallback_after=12 * HOUR)
    others = [make_certificate(name, (name,)) for name in "bcde"]
    observed = Observed(
        ledgers={"ca": spent(1)},
        in_flight=frozenset({("a",)}),
        attempts=failed(NOW - DAY, subject="a"),
    )

    assert ["b", "c"] == issues(plan(wanted(away, *others), observed, NOW))
    capped = wanted(away, *others, cap=1)
    assert ["b", "c"] == issues(plan(capped, observed, NOW))


def test_an_order_that_moves_to_another_authority_counts_at_both() -> None:
    """It has begun at the first again, and what is written down is still the one at the fallback."""
    moving = replace(make_certificate("a", ("a",)), fallback=("second",))
    second = order_subject(moving, "second")
    observed = Observed(
        in_flight=frozenset({("a",)}),
        open_orders=begun("second", name="a"),
        attempts=failed(NOW - HOUR, subject=second),
    )
    here = [make_certificate(name, (name,)) for name in "bcd"]
    there = [replace(make_certificate(name, (name,)), authority="second") for name in "efg"]

    assert ["b", "c", "e", "f"] == issues(plan(wanted(moving, *here, *there, cap=1), observed, NOW))


def test_an_order_that_goes_on_under_a_config_that_changed_counts_twice_over() -> None:
    """It may end as the certificate that it was for, or be given up for another one: both, and both authorities, count."""
    away = replace(make_certificate("a", ("a",)), authority="second")
    others = [make_certificate(name, (name,)) for name in "bcde"]
    observed = Observed(
        ledgers={"ca": spent(1)},
        in_flight=frozenset({("a",)}),
        open_orders=begun(name="a", identifiers=(Identifier("old"),), order_url=None),
    )

    assert ["b"] == issues(plan(wanted(away, *others), observed, NOW))
    there = [replace(other, authority="second") for other in others]
    assert ["b", "c"] == issues(plan(wanted(away, *others, cap=1), replace(observed, ledgers={}), NOW))
    assert ["b", "c"] == issues(plan(wanted(away, *there, cap=1), observed, NOW))


def test_an_intent_that_is_not_under_way_keeps_no_place_from_others() -> None:
    """One whose newOrder was refused and who waits for a day is asked about when its time comes."""
    waiting = Observed(
        ledgers={"ca": spent(2)},
        open_orders=begun(name="a", order_url=None),
        attempts=failed(NOW, subject="a"),
    )
    freed = replace(waiting, attempts={}, ledgers={"ca": spent(3)})

    assert ["b"] == issues(plan(many("ab"), waiting, NOW))
    assert [] == issues(plan(many("ab"), freed, NOW))


def test_an_open_order_needs_no_room_in_the_ledger() -> None:
    """It is among what was spent; giving it up would cost another."""
    observed = Observed(ledgers={"ca": spent(3)}, open_orders=begun(name="a"))

    assert ["a"] == issues(plan(many("ab"), observed, NOW))


def test_an_open_order_elsewhere_or_for_other_names_is_no_excuse() -> None:
    """What is begun instead of it is another order."""
    second = order_subject(WITH_FALLBACK, "second")
    full = {name: spent(3) for name in ("ca", "second")}
    stuck = Observed(ledgers=full, open_orders=begun("second"), attempts=failed(NOW - HOUR, subject=second))
    renamed = Observed(ledgers=full, open_orders=begun(identifiers=(Identifier("x.example"),)))

    assert [] == issues(plan(wanted(WITH_FALLBACK), stuck, NOW))
    assert [] == issues(plan(wanted(make_certificate()), renamed, NOW))


def test_an_order_that_will_be_given_up_counts_for_nothing_more() -> None:
    """One for the old names leads to no certificate, so it does not hold up the one that follows it."""
    limits = Limits(certificates_per_domain=Limit(1, 7 * DAY))
    ledger = Ledger.of(limits, [], domains=lambda _: "example.org")
    observed = Observed(ledgers={"ca": ledger}, open_orders=begun(identifiers=(Identifier("x.example.org"),)))

    assert [WWW] == issues(plan(wanted(make_certificate()), observed, NOW))


# Caps


def test_certificates_in_trouble_take_half_of_the_places_and_come_last() -> None:
    """However many of them there are, and though one of them expires first."""
    attempts = {
        name: attempt
        for name in "abcde"
        for name, attempt in failed(NOW - DAY, at=NOW - DAY, wait=MINUTE, subject=name).items()
    }
    troubled = Observed(attempts=attempts)

    assert ["a", "b"] == issues(plan(many("abcde", cap=4), troubled, NOW))
    assert ["x", "y", "z", "a", "b"] == issues(plan(many("abcdexyz", cap=4), troubled, NOW))
    assert [*"uvwxyz"] == issues(plan(many("abcdeuvwxyz", cap=2), troubled, NOW))
    assert ["a"] == issues(plan(many("abcde", cap=1), troubled, NOW))
    flying = replace(troubled, in_flight=frozenset({("d",), ("e",)}))
    assert ["x", "y", "z"] == issues(plan(many("abcdexyz", cap=4), flying, NOW))


def test_each_authority_has_its_own_places() -> None:
    """A full one holds up nothing elsewhere."""
    here = [make_certificate(name, (name,)) for name in "abcd"]
    there = replace(make_certificate("z", ("z",)), authority="second")
    observed = Observed(in_flight=frozenset({("a",), ("b",), ("c",)}))

    assert ["z"] == issues(plan(wanted(*here, there, cap=1), observed, NOW))


def test_what_is_revoked_is_as_urgent_as_what_has_expired() -> None:
    """Whoever checks refuses it already; one that is only due to be renewed waits."""
    generations = {
        name: (make_generation(name=name, names=(name,), issued_at=NOW - days * DAY),)
        for name, days in (("a", 70), ("b", 80), ("c", 5), ("d", 75))
    }
    observed = Observed(generations=generations, revoked=frozenset({("c", 1)}))

    assert ["c", "b", "d"] == issues(plan(many("abcd", cap=1), observed, NOW))


@given(
    st.lists(st.integers(0, 100), min_size=1, max_size=30),
    st.integers(1, 6),
    st.integers(0, 5),
    st.integers(0, 3),
    st.sets(st.integers(0, 29)),
)
def test_no_plan_begins_more_than_caps_and_limits_allow(
    ages: list[int], cap: int, limit: int, used: int, troubled: set[int]
) -> None:
    """Whatever is due and whoever is in trouble: what may be begun, half of the places, and the limit hold, and more is never left over."""
    names = [f"n{number:02}" for number in range(len(ages))]
    generations = {
        name: (make_generation(name=name, names=(name,), issued_at=NOW - age * DAY),)
        for name, age in zip(names, ages, strict=True)
    }
    in_trouble = {name for number, name in enumerate(names) if number in troubled}
    attempts = {
        name: attempt
        for one in in_trouble
        for name, attempt in failed(NOW - DAY, at=NOW - DAY, wait=MINUTE, subject=one).items()
    }
    ledger = spent(used, limits=Limits(orders=Limit(limit, HOUR)))
    begun_now = issues(
        plan(
            many(names, cap=cap),
            Observed(generations=generations, attempts=attempts, ledgers={"ca": ledger}),
            NOW,
        )
    )
    due = {name for name, age in zip(names, ages, strict=True) if age >= 60}
    # A renewal of a set that was issued before counts for none of this ledger's limits.
    sound = [name for name in begun_now if name not in in_trouble]

    assert set(begun_now) <= due
    assert len(begun_now) <= BEGUN * cap
    assert len(begun_now) - len(sound) <= max(cap // 2, 1)
    assert min(len(due - in_trouble), BEGUN * cap) == len(sound)
    assert sound == sorted(sound, key=lambda name: (-ages[int(name[1:])], name))


# Our own check


def test_an_order_waits_for_our_own_check() -> None:
    """Never seen, seen too long ago, or failing: then the authority is not asked; off, nothing waits."""
    good = PathCheck(at=NOW, problem=None)
    bad = PathCheck(at=NOW, problem=OWN, failures=1)

    def held(check: PathCheck | None, now: datetime = NOW, *, is_on: bool = True) -> Holding | None:
        checks = {WWW: check} if check is not None else {}
        return stands(make_certificate(), Observed(checks=checks, self_check=is_on), now).holding

    first = Holding(PATH, f"our own check of {WWW} comes first")
    assert first == held(None)
    assert held(good) is None
    assert held(good, NOW + 10 * MINUTE - SECOND) is None
    assert first == held(good, NOW + 10 * MINUTE)
    assert first == held(good, NOW - SECOND)
    assert Holding(PATH, OWN.detail, hint="start it") == held(bad)
    assert held(bad) == held(bad, NOW + DAY)
    assert held(bad, is_on=False) is None


def test_every_name_but_a_wildcard_is_checked() -> None:
    """One name whose check fails holds the whole order up."""
    certificate = make_certificate(names=(WWW, "x.example", "*.example"))
    good = PathCheck(at=NOW, problem=None)
    observed = Observed(self_check=True, checks={WWW: good})

    assert stands(certificate, observed).holding is not None
    assert stands(certificate, replace(observed, checks={WWW: good, "x.example": good})).holding is None


def test_a_challenge_that_was_answered_needs_no_check_any_more() -> None:
    """The authority looks by itself; an order that is begun anew is checked for."""
    answered = begun(answered=frozenset({"https://ca/1/http"}))
    renamed = begun(answered=frozenset({"https://ca/1/http"}), identifiers=(Identifier("x.example"),))
    elsewhere = begun("gone", answered=frozenset({"https://gone/1/http"}))

    def held(open_orders: dict[str, Issuance]) -> bool:
        return (
            stands(make_certificate(), Observed(open_orders=open_orders, self_check=True)).holding is not None
        )

    assert not held(answered)
    assert held(renamed)
    assert held(elsewhere)


def test_an_order_that_waits_for_its_check_has_it_at_once() -> None:
    """And again when it is too old; a name that nobody waits for is looked at every six hours."""
    desired = wanted(make_certificate())
    good = {WWW: PathCheck(at=NOW, problem=None)}
    settled = Observed(generations={WWW: (make_generation(),)}, self_check=True, checks=good)
    due = replace(settled, generations={})

    assert [WWW] == looks(plan(desired, replace(due, checks={}), NOW))
    assert ([WWW], []) == (issues(plan(desired, due, NOW)), looks(plan(desired, due, NOW)))
    assert [WWW] == looks(plan(desired, due, NOW + 10 * MINUTE))
    assert [] == looks(plan(desired, settled, NOW + 6 * HOUR - SECOND))
    assert [WWW] == looks(plan(desired, settled, NOW + 6 * HOUR))
    assert [WWW] == looks(plan(desired, settled, NOW - SECOND))
    assert [] == looks(plan(desired, replace(settled, self_check=False), NOW + 6 * HOUR))


def test_a_name_whose_order_waits_for_its_back_off_is_not_looked_at_more_often() -> None:
    """Until tomorrow nobody needs the answer."""
    observed = Observed(attempts=failed(NOW), self_check=True, checks={WWW: PathCheck(at=NOW, problem=None)})

    assert [] == looks(plan(wanted(make_certificate()), observed, NOW + HOUR))


@pytest.mark.parametrize(("failures", "seconds"), [(1, 5), (2, 15), (3, 60), (4, 300), (99, 300)])
def test_a_check_that_fails_is_repeated_soon(failures: int, seconds: int) -> None:
    """5 s, 15 s, 1 min, then every 5 min, whether or not an order waits; the plan wakes for it."""
    bad = PathCheck(at=NOW, problem=OWN, failures=failures)
    observed = Observed(
        self_check=True,
        checks={WWW: bad},
        generations={WWW: (make_generation(),)},
        offered={(WWW, "web1"): 1},
        published={(WWW, "web1"): frozenset({1})},
        live={(WWW, "web1"): 1},
    )
    early = plan(wanted(make_certificate()), observed, NOW + (seconds - 1) * SECOND)

    assert ([], NOW + seconds * SECOND) == (looks(early), early.wake_at)
    assert [WWW] == looks(plan(wanted(make_certificate()), observed, NOW + seconds * SECOND))


def test_a_look_that_could_not_be_done_waits_a_moment() -> None:
    """Whatever was in its way says nothing about the path, and must not be run into without a pause."""
    attempts = failed(NOW, wait=SECOND, subject=path_subject(WWW))
    observed = Observed(self_check=True, attempts=attempts, offered={(WWW, "web1"): 0})
    held = plan(wanted(make_certificate()), observed, NOW)

    assert ((), NOW + SECOND) == (held.steps, held.wake_at)
    assert [WWW] == looks(plan(wanted(make_certificate()), observed, NOW + SECOND))


# Our account


def test_orders_wait_for_the_accounts_new_key() -> None:
    """It comes next, as soon as no order is under way there; elsewhere orders go on."""
    there = replace(make_certificate("b", ("b",)), authority="second")
    desired = wanted(make_certificate("a", ("a",)), there)
    observed = Observed(rollovers=frozenset({"ca"}))
    planned = plan(desired, observed, NOW)
    found = standing(desired.certificates["a"], desired, observed, NOW)

    assert ["b"] == issues(planned)
    assert RollAccountKey("ca") in planned.steps
    assert found is not None
    assert found.holding is not None
    assert ("authority.account", None) == (found.holding.code, found.holding.until)


def test_while_the_account_gets_its_key_no_order_begins() -> None:
    """Also when a clock that was set back makes an earlier failure of it count again."""
    rolling = RollAccountKey("ca")
    attempts = failed(NOW, subject=rollover_subject("ca"))
    observed = Observed(rollovers=frozenset({"ca"}), attempts=attempts, in_flight=frozenset({rolling.key}))

    assert [] == issues(plan(wanted(make_certificate()), observed, NOW))


def test_a_new_key_that_the_authority_refuses_holds_up_no_order() -> None:
    """While it waits for its next try orders go on with the old key, or certificates would expire for it."""
    subject = rollover_subject("ca")
    observed = Observed(rollovers=frozenset({"ca"}), attempts=failed(NOW, subject=subject))

    assert [WWW] == issues(plan(wanted(make_certificate()), observed, NOW))
    assert [] == issues(plan(wanted(make_certificate()), observed, NOW + DAY))


# When the plan wakes

ALONE = {(WWW, "web1"): 0}  # offered already, so that only the order has an instant


def wakes(observed: Observed, certificate: Certificate = WITH_FALLBACK) -> datetime | None:
    return plan(wanted(certificate), replace(observed, share_up=False), NOW).wake_at


def test_the_plan_wakes_for_the_fallback() -> None:
    """At the instant from which on it may be asked, long before the first authority's back-off ends."""
    observed = Observed(attempts=failed(NOW - 7 * HOUR), offered=ALONE)

    assert NOW + 5 * HOUR == wakes(observed)


def test_the_plan_wakes_for_a_request_from_the_future() -> None:
    """Made before the clock was set back, it counts once the clock is there; so does each other thing that lifts."""
    later = NOW + 7 * MINUTE
    held = Observed(attempts=failed(NOW - MINUTE), offered=ALONE)
    silent = Observed(attempts=failed(NOW - MINUTE, problem=SILENT), offered=ALONE)
    mended = {WWW: PathCheck(at=NOW, problem=None, mended_at=later)}

    assert later == wakes(replace(held, asked={WWW: later}))
    assert later == wakes(replace(held, config_changed={WWW: later}))
    assert later == wakes(replace(silent, answered={"ca": later}))
    assert later == wakes(replace(held, checks=mended))


def test_the_plan_wakes_where_a_window_begins_and_ends() -> None:
    """Inside it the order is exempt, so a limit holds it only until then, or from then on."""
    old = (make_generation(issued_at=NOW - 70 * DAY),)
    full = Ledger.of(Limits(certificates_per_set=Limit(0, 7 * DAY)), [], domains=lambda name: name)
    observed = Observed(generations={WWW: old}, ledgers={"ca": full}, offered={(WWW, "web1"): 1})
    soon = replace(info(HOUR, 2 * HOUR), chosen=NOW - DAY, ask_again_at=NOW + 9 * HOUR)
    ahead = replace(observed, renewals={WWW: soon})
    inside = replace(observed, renewals={WWW: info(-HOUR, 2 * HOUR)})

    alone = make_certificate()

    assert ([], NOW + HOUR) == (issues(plan(wanted(alone), ahead, NOW)), wakes(ahead, alone))
    assert [WWW] == issues(plan(wanted(alone), ahead, NOW + HOUR))
    assert [WWW] == issues(plan(wanted(alone), inside, NOW + 2 * HOUR - SECOND))
    assert [] == issues(plan(wanted(alone), inside, NOW + 2 * HOUR))


# Reasons


def test_what_is_to_be_revoked_gets_a_successor_with_another_key() -> None:
    """So does whatever has its key or its leaf again, be it a renewal or the copy of a roll-back."""
    first = replace(make_generation(1), key="aa")
    same_key = replace(make_generation(2), key="aa")
    other = replace(make_generation(3), key="bb")
    old_copy = replace(make_generation(4), fingerprint=first.fingerprint, copy_of=1)  # its key is not known
    wish = Revocation(RevocationReason.UNSPECIFIED, at_once=False, asked_at=NOW)

    def reason(*generations: Any) -> Reason | None:
        observed = Observed(generations={WWW: generations}, revocations={(WWW, 1): wish})
        return why(make_certificate(), observed, NOW)

    assert Reason.REVOKED is reason(first)
    assert Reason.REVOKED is reason(first, same_key)
    assert Reason.REVOKED is reason(first, other, old_copy)
    assert reason(first, other) is None


def test_while_a_roll_back_is_wanted_nothing_is_ordered() -> None:
    """It would take the place of what somebody wants back."""
    observed = Observed(rolled_back={WWW: 1}, generations={WWW: (make_generation(issued_at=NOW - 70 * DAY),)})

    assert standing(make_certificate(), wanted(make_certificate()), observed, NOW) is None
