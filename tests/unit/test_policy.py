"""The small rules: why issue, when to renew, when to try again, by when an endpoint must agree."""

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from certfan.core import policy
from certfan.core.model import Attempt, Health, KeyType, Reason, RenewalInfo
from tests.unit.planner_parts import (
    DAY,
    HOUR,
    MINUTE,
    NOW,
    PROBLEM,
    WWW,
    make_certificate,
    make_generation,
    make_proof,
)


def renewal(chosen: datetime, *, number: int = 1) -> RenewalInfo:
    return RenewalInfo(
        WWW, number, start=NOW + 10 * DAY, end=NOW + 12 * DAY, chosen=chosen, ask_again_at=NOW + HOUR
    )


def test_nothing_is_issued_while_the_newest_is_right() -> None:
    """A fresh generation with the wanted names and key is left alone."""
    assert policy.why_issue(make_certificate(), [make_generation()], NOW) is None


def test_each_reason_to_issue_is_told() -> None:
    """Missing, changed names, changed key type, revoked, asked for and due each say so."""
    certificate, generation = make_certificate(), make_generation()
    other_key = replace(certificate, key_type=KeyType.RSA_2048)
    revoked = frozenset({(WWW, 1)})

    assert policy.why_issue(certificate, [], NOW) is Reason.MISSING
    assert policy.why_issue(make_certificate(names=("x.org",)), [generation], NOW) is Reason.NAMES_CHANGED
    assert policy.why_issue(other_key, [generation], NOW) is Reason.KEY_TYPE_CHANGED
    assert policy.why_issue(certificate, [generation], NOW, revoked=revoked) is Reason.REVOKED
    asked = policy.why_issue(certificate, [generation], NOW + HOUR, asked_at=NOW + MINUTE)
    assert asked is Reason.ASKED_FOR
    assert policy.why_issue(certificate, [generation], NOW + 60 * DAY) is Reason.RENEWAL_DUE


def test_a_request_counts_once_and_not_before_it_is_made() -> None:
    """A generation issued after it answers a request; one dated in the future waits, or it would never be answered."""
    certificate, generation = make_certificate(), make_generation()

    assert policy.why_issue(certificate, [generation], NOW, asked_at=NOW - MINUTE) is None
    assert policy.why_issue(certificate, [generation], NOW, asked_at=NOW + MINUTE) is None


def test_a_wrong_clock_starts_no_renewal_but_holds_up_nothing_else() -> None:
    """What does not depend on time goes on."""
    late = NOW + 89 * DAY
    changed = make_certificate(names=("x.org",))

    assert policy.why_issue(make_certificate(), [make_generation()], late, clock_trusted=False) is None
    reason = policy.why_issue(changed, [make_generation()], late, clock_trusted=False)
    assert reason is Reason.NAMES_CHANGED


@pytest.mark.parametrize(("lifetime", "share"), [(90 * DAY, 2 / 3), (160 * HOUR, 1 / 2)])
def test_without_ari_renewal_is_a_fraction_of_the_lifetime(lifetime: timedelta, share: float) -> None:
    """Two thirds, or a half below ten days."""
    generation = make_generation(lifetime=lifetime)

    assert policy.renewal_instant(generation, None) == NOW + lifetime * share


def test_ari_decides_when_it_is_sane() -> None:
    """The chosen instant counts; another generation's, or an upside-down window, does not."""
    generation = make_generation()
    chosen = NOW + 11 * DAY
    upside_down = replace(renewal(chosen), end=NOW + 9 * DAY)

    assert policy.renewal_instant(generation, renewal(chosen)) == chosen
    assert policy.renewal_instant(generation, renewal(chosen, number=7)) == NOW + 60 * DAY
    assert policy.renewal_instant(generation, upside_down) == NOW + 60 * DAY


def test_an_ari_instant_beyond_its_window_counts_as_now() -> None:
    """A stored instant that its rule cannot have produced must not postpone a renewal."""
    assert policy.renewal_instant(make_generation(), renewal(NOW + 40 * DAY)) <= NOW


def test_orders_back_off_as_the_authority_asks() -> None:
    """1, 10, 100 minutes, then daily, up to a tenth later."""
    waits = [policy.next_try(failures, NOW, jitter=0.0) - NOW for failures in (1, 2, 3, 4, 9)]

    assert [MINUTE, 10 * MINUTE, 100 * MINUTE, DAY, DAY] == waits
    assert policy.next_try(1, NOW, jitter=0.999) < NOW + 1.1 * MINUTE


def test_retry_after_is_obeyed_up_to_a_day() -> None:
    """It lengthens a wait, never shortens it."""
    assert policy.next_try(1, NOW, jitter=0, not_before=NOW + 3 * HOUR) == NOW + 3 * HOUR
    assert policy.next_try(1, NOW, jitter=0, not_before=NOW + 9 * DAY) == NOW + DAY
    assert policy.next_try(2, NOW, jitter=0, not_before=NOW) == NOW + 10 * MINUTE


def test_questions_about_renewal_back_off_as_the_rfc_says() -> None:
    """1, 10, 100 minutes, then every six hours; a Retry-After is obeyed up to a day."""
    waits = [policy.next_ask(failures, NOW, jitter=0.0) - NOW for failures in (1, 2, 3, 4, 9)]

    assert [MINUTE, 10 * MINUTE, 100 * MINUTE, 6 * HOUR, 6 * HOUR] == waits
    assert policy.next_ask(1, NOW, jitter=0, not_before=NOW + 9 * HOUR) == NOW + 9 * HOUR
    assert policy.next_ask(9, NOW, jitter=0.9, not_before=NOW + 9 * DAY) == NOW + policy.LONGEST_ASK_WAIT


def test_a_near_deadline_shortens_the_daily_step() -> None:
    """Back-off yields to a deadline that it would miss."""
    assert policy.next_try(7, NOW, jitter=0, deadline=NOW + 5 * HOUR) == NOW + 100 * MINUTE
    assert policy.next_try(7, NOW, jitter=0, deadline=NOW + 5 * DAY) == NOW + DAY


def test_a_step_at_the_share_backs_off_to_fifteen_seconds() -> None:
    """One second, doubling."""
    waits = [(policy.next_short_try(n, NOW, jitter=0) - NOW).total_seconds() for n in (1, 2, 3, 4, 5, 50)]

    assert [1, 2, 4, 8, 15, 15] == waits


def test_a_stored_wait_that_no_rule_makes_does_not_hold() -> None:
    """After the clock was set back, yesterday's future is no reason to wait for days."""
    attempt = Attempt(WWW, PROBLEM, 1, NOW + 9 * DAY, NOW + 9 * DAY + MINUTE)

    assert not policy.attempt_holds(attempt, NOW, policy.LONGEST_ORDER_WAIT)
    assert policy.attempt_holds(attempt, NOW + 9 * DAY, policy.LONGEST_ORDER_WAIT)


def test_what_changed_after_a_failure_lifts_its_wait() -> None:
    """A request or config change before the failure, or in the future, does not."""
    attempt = Attempt(WWW, PROBLEM, 3, NOW, NOW + 100 * MINUTE)

    def held(lift: datetime) -> bool:
        return policy.attempt_holds(attempt, NOW + MINUTE, policy.LONGEST_ORDER_WAIT, (None, lift))

    assert [True, True, False, True] == [held(NOW - HOUR), held(NOW), held(NOW + MINUTE), held(NOW + HOUR)]


@pytest.mark.parametrize(
    ("lifetime", "before"), [(90 * DAY, 7 * DAY), (45 * DAY, 4.5 * DAY), (2 * DAY, 12 * HOUR)]
)
def test_an_endpoint_must_agree_a_tenth_of_the_lifetime_before_its_leaf_expires(
    lifetime: timedelta, before: timedelta
) -> None:
    """At least 12 hours, at most 7 days."""
    proof = replace(make_proof(fingerprint="aa"), not_before=NOW, not_after=NOW + lifetime)

    assert policy.endpoint_deadline(proof, NOW) == NOW + lifetime - before


def test_where_nothing_of_ours_is_served_the_deadline_is_an_hour() -> None:
    """It is counted from since when that is so, not anew each time one looks."""
    refused = make_proof()
    placeholder = make_proof(fingerprint="placeholder")

    assert policy.endpoint_deadline(None, NOW) == NOW + HOUR
    assert policy.endpoint_deadline(placeholder, NOW, missing_since=NOW - MINUTE) == NOW + 59 * MINUTE
    assert refused.health is Health.REFUSED
    assert policy.endpoint_deadline(refused, NOW, missing_since=NOW - HOUR) == NOW


def test_a_proof_grows_stale_after_two_probe_intervals() -> None:
    """By the daemon's clock when that is known; one from the future is none."""
    heard = replace(make_proof(fingerprint="aa", at=NOW - DAY), heard_at=NOW)

    assert policy.proof_is_fresh(heard, NOW + 9 * MINUTE, 5 * MINUTE)
    assert not policy.proof_is_fresh(heard, NOW + 10 * MINUTE, 5 * MINUTE)
    assert not policy.proof_is_fresh(heard, NOW - HOUR, 5 * MINUTE)
