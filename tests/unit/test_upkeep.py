"""What authorities are asked beside orders: when to renew, to revoke, to tidy up, a new key for our account."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from certfan.core.issuance import Issuance
from certfan.core.model import (
    Attempt,
    Generation,
    Identifier,
    Leftover,
    RenewalInfo,
    Revocation,
    RevocationReason,
)
from certfan.core.plan import (
    AskRenewal,
    GiveUpOrder,
    Observed,
    Plan,
    Revoke,
    RollAccountKey,
    TidyOrders,
    plan,
)
from certfan.core.subjects import renewal_subject, revocation_subject, rollover_subject, tidy_subject
from certfan.core.upkeep import is_succeeded
from tests.unit.planner_parts import (
    DAY,
    HOUR,
    HTTPS,
    MINUTE,
    NOW,
    PLACE,
    PROBLEM,
    SMTP,
    WWW,
    make_certificate,
    make_desired,
    make_generation,
    make_proof,
)

SECOND = timedelta(seconds=1)
DESIRED = make_desired(make_certificate())
FIRST = replace(make_generation(), key="aa")
ASKABLE = Observed(generations={WWW: (FIRST,)})


def asks(observed: Observed, now: datetime) -> bool:
    return AskRenewal(WWW, observed.generations[WWW][-1].number) in plan(DESIRED, observed, now).steps


def answered(ask_again_at: datetime, number: int = 1) -> dict[str, RenewalInfo]:
    end = NOW + 60 * DAY
    return {
        WWW: RenewalInfo(WWW, number, start=end - DAY, end=end, chosen=end - HOUR, ask_again_at=ask_again_at)
    }


def failed(subject: str, at: datetime, wait: timedelta) -> dict[str, Attempt]:
    return {subject: Attempt(subject, PROBLEM, 1, at, at + wait, at)}


# When to renew


@pytest.mark.parametrize(
    ("lifetime", "after"), [(90 * DAY, 6 * HOUR), (160 * HOUR, 6 * HOUR), (20 * HOUR, 2 * HOUR)]
)
def test_the_first_question_comes_a_while_after_issuance(lifetime: timedelta, after: timedelta) -> None:
    """Six hours, or a tenth of a short lifetime: nothing can be new before; the plan wakes for it."""
    observed = Observed(generations={WWW: (make_generation(lifetime=lifetime),)})

    assert not asks(observed, NOW + after - SECOND)
    assert asks(observed, NOW + after)
    settled = replace(observed, offered={PLACE: 1}, published={PLACE: frozenset({1})}, live={PLACE: 1})
    assert NOW + after == plan(DESIRED, settled, NOW + 2 * MINUTE).wake_at


def test_the_next_question_comes_when_the_answer_said() -> None:
    """An answer about an older generation says nothing about the newest."""
    later = replace(ASKABLE, renewals=answered(NOW + DAY))

    assert not asks(later, NOW + DAY - SECOND)
    assert asks(later, NOW + DAY)
    newer = make_generation(2, issued_at=NOW + HOUR)
    replaced = replace(later, generations={WWW: (FIRST, newer)})
    assert not asks(replaced, NOW + 7 * HOUR - SECOND)
    assert asks(replaced, NOW + 7 * HOUR)


def test_a_question_further_ahead_than_any_answer_says_is_due() -> None:
    """Stored while the clock was 90 days ahead, it would keep a moved window unseen."""
    assert asks(replace(ASKABLE, renewals=answered(NOW + 90 * DAY)), NOW)
    assert not asks(replace(ASKABLE, renewals=answered(NOW + 26 * HOUR)), NOW)
    early = Observed(generations={WWW: (make_generation(issued_at=NOW + 90 * DAY),)})
    assert asks(early, NOW)


def test_only_the_newest_is_asked_about_and_never_after_it_has_expired() -> None:
    """What was replaced, what has expired and what another authority issued that left the config needs no window."""
    newer = (FIRST, make_generation(2, issued_at=NOW))
    gone = (replace(FIRST, authority="gone"),)

    assert {AskRenewal(WWW, 2)} == {
        step
        for step in plan(DESIRED, Observed(generations={WWW: newer}), NOW + DAY).steps
        if isinstance(step, AskRenewal)
    }
    assert asks(ASKABLE, NOW + 90 * DAY - SECOND)
    assert not asks(ASKABLE, NOW + 90 * DAY)
    assert not asks(Observed(generations={WWW: gone}), NOW + DAY)


def test_a_question_that_failed_waits_for_its_time() -> None:
    """A wait that no rule makes does not hold."""
    due = NOW + DAY

    def asks_after(wait: timedelta, now: datetime) -> bool:
        return asks(replace(ASKABLE, attempts=failed(renewal_subject(WWW), due, wait)), now)

    assert not asks_after(10 * MINUTE, due + 9 * MINUTE)
    assert asks_after(10 * MINUTE, due + 10 * MINUTE)
    assert asks_after(9 * DAY, due)


def test_a_question_under_way_or_waiting_holds_up_no_order() -> None:
    """The order has another key, and other failures."""
    attempts = failed(renewal_subject(WWW), NOW + 70 * DAY, HOUR)
    observed = replace(ASKABLE, attempts=attempts, in_flight=frozenset({AskRenewal(WWW, 1).key}))

    assert WWW in {
        step.key[0] for step in plan(DESIRED, observed, NOW + 70 * DAY).steps if len(step.key) == 1
    }


# Revoking

OTHER_KEY = replace(make_generation(2), key="bb")
SAME_KEY = replace(make_generation(2), key="aa")


def wish(*, at_once: bool = False, asked_at: datetime = NOW) -> Revocation:
    return Revocation(RevocationReason.SUPERSEDED, at_once=at_once, asked_at=asked_at)


def to_revoke(*generations: Generation, proven: str = "", at_once: bool = False) -> Observed:
    proofs = {PLACE: (make_proof(fingerprint=proven),)} if proven else {}
    return Observed(
        generations={WWW: generations}, proofs=proofs, revocations={(WWW, 1): wish(at_once=at_once)}
    )


def revokes(observed: Observed, now: datetime = NOW) -> list[int]:
    return [step.generation for step in plan(DESIRED, observed, now).steps if isinstance(step, Revoke)]


def test_what_is_to_go_at_once_is_revoked_at_once() -> None:
    """Whatever is served."""
    assert [1] == revokes(to_revoke(FIRST, at_once=True))
    assert [] == revokes(to_revoke(FIRST))


def test_a_generation_is_revoked_when_every_endpoint_proves_a_newer_one_with_another_key() -> None:
    """Not by the same key, not by itself, not by a foreign leaf, not while any endpoint shows or says nothing."""
    newer = f"{WWW}@2"

    assert [1] == revokes(to_revoke(FIRST, OTHER_KEY, proven=newer))
    assert [] == revokes(to_revoke(FIRST, SAME_KEY, proven=newer))
    assert [] == revokes(to_revoke(FIRST, OTHER_KEY, proven=f"{WWW}@1"))
    assert [] == revokes(to_revoke(FIRST, OTHER_KEY, proven="foreign"))
    assert [] == revokes(to_revoke(FIRST, OTHER_KEY))
    two = {PLACE: (make_proof(HTTPS, newer), make_proof(SMTP, f"{WWW}@1"))}
    assert [] == revokes(replace(to_revoke(FIRST, OTHER_KEY), proofs=two))


def test_an_older_generation_is_no_successor() -> None:
    """Whoever shows what came before has not got the new one; the plan looks again when its proof grows stale."""
    newest = replace(to_revoke(FIRST, OTHER_KEY, proven=f"{WWW}@1"), revocations={(WWW, 2): wish()})
    waiting = replace(newest, share_up=False, offered={PLACE: 2}, in_flight=frozenset({(WWW,)}))

    assert [] == revokes(newest)
    assert NOW + 10 * MINUTE == plan(DESIRED, waiting, NOW + 6 * MINUTE).wake_at


def test_every_consumer_counts() -> None:
    """One that has proven nothing holds the revocation up."""
    desired = make_desired(make_certificate(consumers=("web1", "mail1")))
    observed = to_revoke(FIRST, OTHER_KEY, proven=f"{WWW}@2")
    both = replace(observed, proofs={**observed.proofs, (WWW, "mail1"): observed.proofs[PLACE]})

    assert not is_succeeded(WWW, 1, desired, observed, NOW)
    assert is_succeeded(WWW, 1, desired, both, NOW)


def test_a_stale_proof_revokes_nothing() -> None:
    """Fresh is less than two probe intervals old; the plan wakes when one from the future comes to count."""
    observed = to_revoke(FIRST, OTHER_KEY, proven=f"{WWW}@2")

    assert [1] == revokes(observed, NOW + 10 * MINUTE - SECOND)
    assert [] == revokes(observed, NOW + 10 * MINUTE)
    early = NOW - HOUR
    assert [] == revokes(observed, early)
    settled = replace(observed, offered={PLACE: 2}, published={PLACE: frozenset({1, 2})}, live={PLACE: 2})
    assert NOW - 5 * MINUTE == plan(DESIRED, settled, early).wake_at


def test_a_copy_of_a_roll_back_does_not_succeed_its_own_leaf() -> None:
    """Its number is newer, its leaf and key are those that are to be revoked."""
    copy = replace(make_generation(3), fingerprint=FIRST.fingerprint, key="aa", copy_of=1)
    unknown_key = replace(copy, key="")

    assert [] == revokes(to_revoke(FIRST, OTHER_KEY, copy, proven=FIRST.fingerprint))
    assert [] == revokes(to_revoke(replace(FIRST, key=""), unknown_key, proven=FIRST.fingerprint))


def test_what_has_expired_is_not_asked_for_at_its_authority() -> None:
    """The wish ends with the leaf, whatever failed before and whoever proves what; a clock in doubt ends nothing."""
    attempts = failed(revocation_subject(WWW, 1), FIRST.not_after, DAY)
    observed = replace(to_revoke(FIRST), attempts=attempts)
    expired = Revoke(WWW, 1, expired=True)

    assert not has(plan(DESIRED, observed, FIRST.not_after - SECOND), expired)
    assert has(plan(DESIRED, observed, FIRST.not_after), expired)
    assert not has(plan(DESIRED, replace(observed, clock_trusted=False), FIRST.not_after), expired)


def test_what_left_the_config_is_revoked_without_proof() -> None:
    """Nobody is left who could show a newer one."""
    assert [1] == [
        step.generation
        for step in plan(make_desired(), to_revoke(FIRST), NOW).steps
        if isinstance(step, Revoke)
    ]


def test_a_revocation_that_failed_waits_unless_it_was_asked_for_again() -> None:
    """A new word frees one try; the plan wakes for it, also when it comes from the future."""
    attempts = failed(revocation_subject(WWW, 1), NOW, HOUR)
    held = replace(to_revoke(FIRST, at_once=True), attempts=attempts)
    again = replace(held, revocations={(WWW, 1): wish(at_once=True, asked_at=NOW + 7 * MINUTE)})

    assert [] == revokes(held, NOW + 59 * MINUTE)
    assert [1] == revokes(held, NOW + HOUR)
    assert [] == revokes(again, NOW)
    assert [1] == revokes(again, NOW + 7 * MINUTE)
    flying = replace(again, in_flight=frozenset({(WWW,)}))
    assert NOW + 7 * MINUTE == plan(DESIRED, flying, NOW + 2 * MINUTE).wake_at


# Our account


def has(planned: Plan, step: object) -> bool:
    return step in planned.steps


def test_a_new_account_key_waits_for_the_orders_under_way() -> None:
    """Also for one that has just begun, and only at its own authority."""
    wanted = Observed(rollovers=frozenset({"ca"}))
    flying = replace(wanted, in_flight=frozenset({(WWW,)}))
    away = Issuance(WWW, 1, "second", (Identifier(WWW),), NOW, "https://second/1")
    orphan = Issuance("gone", 1, "ca", (Identifier("gone"),), NOW, "https://ca/1")

    assert has(plan(DESIRED, wanted, NOW), RollAccountKey("ca"))
    assert not has(plan(DESIRED, flying, NOW), RollAccountKey("ca"))
    orphaned = replace(wanted, in_flight=frozenset({("gone",)}), open_orders={"gone": orphan})
    assert not has(plan(DESIRED, orphaned, NOW), RollAccountKey("ca"))
    lying = replace(wanted, open_orders={WWW: replace(away, authority="ca")})
    assert has(plan(DESIRED, lying, NOW), RollAccountKey("ca"))
    assert not has(plan(DESIRED, replace(wanted, rollovers=frozenset({"gone"})), NOW), RollAccountKey("gone"))


def test_a_new_account_key_that_failed_waits_for_its_time() -> None:
    """Like an order."""
    attempts = failed(rollover_subject("ca"), NOW, HOUR)
    observed = Observed(rollovers=frozenset({"ca"}), attempts=attempts)

    assert not has(plan(DESIRED, observed, NOW), RollAccountKey("ca"))
    assert has(plan(DESIRED, observed, NOW + HOUR), RollAccountKey("ca"))


def test_what_orders_left_behind_is_tidied_once_an_authority() -> None:
    """Not while the account gets a new key, nor before a failure's time, nor at an authority that left the config."""
    left = tuple(Leftover(f"https://ca/{n}", "ca", NOW) for n in range(2))
    observed = Observed(leftovers=(*left, Leftover("https://gone/1", "gone", NOW)))
    held = replace(observed, attempts=failed(tidy_subject("ca"), NOW, HOUR))

    tidied = [step for step in plan(DESIRED, observed, NOW).steps if isinstance(step, TidyOrders)]
    assert [TidyOrders("ca")] == tidied
    rolling = replace(observed, rollovers=frozenset({"ca"}))
    assert not has(plan(DESIRED, rolling, NOW), TidyOrders("ca"))
    refused = replace(rolling, attempts=failed(rollover_subject("ca"), NOW, HOUR))
    assert has(plan(DESIRED, refused, NOW), TidyOrders("ca"))
    assert not has(plan(DESIRED, held, NOW), TidyOrders("ca"))
    assert has(plan(DESIRED, held, NOW + HOUR), TidyOrders("ca"))
    assert not has(plan(DESIRED, Observed(), NOW), TidyOrders("ca"))


# Orders of what left the config


def test_an_order_of_what_left_the_config_waits_an_hour_and_is_given_up() -> None:
    """A slip is mended by then, and what is wanted or under way is left alone; the plan wakes for it."""
    begun = Issuance(WWW, 1, "ca", (Identifier(WWW),), NOW, "https://ca/order/1")
    observed = Observed(open_orders={WWW: begun})
    nobodys = make_desired()
    step = GiveUpOrder(WWW, 1)

    assert (NOW + HOUR, False) == (
        plan(nobodys, observed, NOW).wake_at,
        has(plan(nobodys, observed, NOW), step),
    )
    assert has(plan(nobodys, observed, NOW + HOUR), step)
    assert not has(plan(nobodys, replace(observed, in_flight=frozenset({(WWW,)})), NOW + HOUR), step)
    assert not has(plan(DESIRED, observed, NOW + HOUR), step)
