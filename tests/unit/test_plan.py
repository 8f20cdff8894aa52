"""The daemon's plan, one rule at a time."""

from dataclasses import replace
from datetime import datetime, timedelta

from certfan.core.issuance import Issuance
from certfan.core.model import Attempt, Identifier, Reason
from certfan.core.plan import (
    Clear,
    Issue,
    Observed,
    Offer,
    Outlooks,
    Publish,
    Retire,
    Withdraw,
    plan,
)
from tests.unit.planner_parts import (
    DAY,
    HOUR,
    MINUTE,
    NOW,
    PLACE,
    PROBLEM,
    WEB1,
    WWW,
    make_certificate,
    make_desired,
    make_generation,
    make_proof,
    steps_of,
)

DESIRED = make_desired(make_certificate())
# Issued, published and offered: nothing is left to do.
SETTLED = Observed(
    generations={WWW: (make_generation(),)},
    published={PLACE: frozenset({1})},
    live={PLACE: 1},
    offered={PLACE: 1},
)


def failed_at(at: datetime, wait: timedelta = MINUTE, subject: str = WWW) -> dict[str, Attempt]:
    return {subject: Attempt(subject, PROBLEM, 1, at, at + wait)}


def test_a_new_certificate_is_ordered_and_assigned_at_once() -> None:
    """The consumer learns of it before anything is issued, so that it can lay a placeholder."""
    steps = plan(DESIRED, Observed(), NOW).steps

    assert (Offer(WWW, WEB1, 0, reason=Reason.MISSING), Issue(WWW, Reason.MISSING, "ca")) == steps


def test_a_settled_world_waits_for_the_renewal() -> None:
    """Nothing is planned, and the plan says until when."""
    planned = plan(DESIRED, SETTLED, NOW + HOUR)

    assert () == planned.steps
    assert NOW + 6 * HOUR == planned.wake_at  # then the authority is asked when to renew
    assert (
        NOW + 60 * DAY == plan(DESIRED, SETTLED, NOW + 6 * HOUR).wake_at
    )  # nothing of so few can be retired
    assert (Issue(WWW, Reason.RENEWAL_DUE, "ca"),) == steps_of(DESIRED, SETTLED, NOW + 60 * DAY)


def test_a_key_in_flight_is_not_started_again() -> None:
    """Its step is left out, whatever else is planned."""
    flying = Observed(in_flight=frozenset({(WWW,), (*PLACE, "offer")}))

    assert () == plan(DESIRED, flying, NOW).steps


def test_a_failed_order_waits_for_its_time() -> None:
    """And the plan wakes for it."""
    observed = replace(SETTLED, generations={}, published={}, live={}, offered={PLACE: 0})
    held = plan(DESIRED, replace(observed, attempts=failed_at(NOW)), NOW)

    assert () == held.steps
    assert NOW + MINUTE == held.wake_at
    later = plan(DESIRED, replace(observed, attempts=failed_at(NOW)), NOW + MINUTE)
    assert (Issue(WWW, Reason.MISSING, "ca"),) == later.steps


def test_a_request_or_a_changed_config_lifts_the_wait() -> None:
    """Only when it came after the failure."""
    failing = Observed(attempts=failed_at(NOW, HOUR), offered={PLACE: 0})
    later = NOW + MINUTE

    assert (Issue(WWW, Reason.MISSING, "ca"),) == plan(
        DESIRED, replace(failing, asked={WWW: later}), later
    ).steps
    assert (Issue(WWW, Reason.MISSING, "ca"),) == plan(
        DESIRED, replace(failing, config_changed={WWW: later}), later
    ).steps
    assert () == plan(DESIRED, replace(failing, asked={WWW: NOW - HOUR}), later).steps


def test_the_cap_leaves_room_for_the_most_urgent() -> None:
    """Open orders first, then nothing issued yet, then what expires first; those in flight count."""
    desired = make_desired(
        *(make_certificate(n, (n,)) for n in ("a", "b", "c", "d")), cap=1
    )  # three are begun
    generations = {
        "a": (make_generation(name="a", names=("a",)),),
        "b": (make_generation(name="b", names=("b",), issued_at=NOW - DAY),),
    }
    unfinished = Issuance("a", 2, "ca", (Identifier("a"),), NOW)
    observed = Observed(generations=generations, open_orders={"a": unfinished})
    late = NOW + 80 * DAY

    def ordered(observed: Observed) -> list[str]:
        return [step.certificate for step in plan(desired, observed, late).steps if isinstance(step, Issue)]

    assert ["a", "c", "d"] == ordered(observed)
    assert ["a"] == ordered(replace(observed, in_flight=frozenset({("c",), ("d",)})))
    assert ["c", "d", "b"] == ordered(replace(observed, open_orders={}))


def test_an_unfinished_order_is_resumed_though_nothing_is_wanted_any_more() -> None:
    """Unless it is for other names, or became a generation already."""
    begun = Issuance(WWW, 2, "ca", (Identifier(WWW),), NOW, "https://ca/1")

    def planned(begun: Issuance) -> tuple[object, ...]:
        return plan(DESIRED, replace(SETTLED, open_orders={WWW: begun}), NOW).steps

    assert (Issue(WWW, Reason.ASKED_FOR, "ca"),) == planned(begun)
    assert () == planned(replace(begun, identifiers=(Identifier("x.org"),)))
    assert () == planned(replace(begun, generation=1))


def test_a_generation_is_published_and_then_offered() -> None:
    """The offer follows the pointer on the share."""
    issued = replace(SETTLED, published={}, live={}, offered={PLACE: 0})
    folder_only = replace(issued, published={PLACE: frozenset({1})})

    assert (Publish(WWW, WEB1, 1),) == plan(DESIRED, issued, NOW).steps
    assert (Publish(WWW, WEB1, 1),) == plan(DESIRED, folder_only, NOW).steps
    assert (Offer(WWW, WEB1, 1),) == plan(DESIRED, replace(SETTLED, offered={PLACE: 0}), NOW).steps


def test_after_a_minute_without_the_share_the_bundle_goes_over_the_channel() -> None:
    """Not earlier, and only when publishing really fails."""
    down = replace(SETTLED, published={}, live={}, offered={PLACE: 0}, share_up=False)

    assert () == plan(DESIRED, down, NOW + 59 * timedelta(seconds=1)).steps
    assert NOW + MINUTE == plan(DESIRED, down, NOW).wake_at
    assert (Offer(WWW, WEB1, 1),) == plan(DESIRED, down, NOW + MINUTE).steps
    slow = replace(down, share_up=True, in_flight=frozenset({PLACE}))
    assert () == plan(DESIRED, slow, NOW + HOUR).steps


def test_nothing_older_is_published_or_offered_over_something_newer() -> None:
    """A store restored from yesterday leaves today's share alone."""
    ahead = replace(SETTLED, published={PLACE: frozenset({1, 2})}, live={PLACE: 2}, offered={PLACE: 2})

    assert () == plan(DESIRED, ahead, NOW).steps


def test_neither_a_revoked_nor_an_expired_generation_is_published() -> None:
    """A replacement is ordered instead."""
    unpublished = replace(SETTLED, published={}, live={}, offered={PLACE: 0})
    revoked = replace(unpublished, revoked=frozenset({(WWW, 1)}))

    assert (Issue(WWW, Reason.REVOKED, "ca"),) == plan(DESIRED, revoked, NOW).steps
    assert (Issue(WWW, Reason.RENEWAL_DUE, "ca"),) == plan(DESIRED, unpublished, NOW + 91 * DAY).steps


def test_a_new_consumer_gets_no_name_beyond_those_wanted() -> None:
    """One that serves the old names already keeps getting them until the new are issued."""
    wide = replace(
        SETTLED, generations={WWW: (make_generation(names=(WWW, "x.org")),)}, published={}, live={}
    )
    new = plan(DESIRED, replace(wide, offered={PLACE: 0}), NOW).steps
    old = plan(DESIRED, replace(wide, offered={PLACE: 1}), NOW).steps

    assert (Issue(WWW, Reason.NAMES_CHANGED, "ca"),) == new
    assert (Publish(WWW, WEB1, 1), Issue(WWW, Reason.NAMES_CHANGED, "ca")) == old


def test_what_left_the_config_is_withdrawn_and_stays_on_the_share_until_it_expires() -> None:
    """Nothing is removed on the strength of an edit."""
    nothing = make_desired()

    assert (Withdraw(WWW, WEB1),) == plan(nothing, SETTLED, NOW).steps
    withdrawn = replace(SETTLED, offered={})
    assert () == plan(nothing, withdrawn, NOW + 89 * DAY).steps
    assert (Clear(WWW, WEB1),) == plan(nothing, withdrawn, NOW + 90 * DAY).steps
    assert () == plan(nothing, replace(withdrawn, clock_trusted=False), NOW + 90 * DAY).steps


def test_a_generation_that_is_served_is_never_retired_however_old() -> None:
    """A consumer may use it in place: what its endpoints show, and all that is newer, stays on the share."""
    numbers = range(1, 7)
    generations = tuple(make_generation(n, issued_at=NOW + n * HOUR) for n in numbers)
    late = NOW + 30 * DAY
    for served in numbers:
        proof = replace(make_proof(fingerprint=f"{WWW}@{served}"), heard_at=late)
        shared = frozenset(numbers)
        while True:  # as long as something goes
            observed = replace(
                SETTLED, generations={WWW: generations}, published={PLACE: shared}, live={PLACE: 6},
                offered={PLACE: 6}, proofs={PLACE: (proof,)},
            )  # fmt: skip
            gone = {step.generation for step in steps_of(DESIRED, observed, late) if isinstance(step, Retire)}
            if not gone:
                break
            shared -= gone

        assert set(range(min(served, 5), 7)) == shared


def test_an_old_generation_is_retired_when_a_newer_one_is_proven_for_the_keep_time() -> None:
    """Two always remain; a stale, missing or older proof at one endpoint keeps everything."""
    generations = tuple(make_generation(n, issued_at=NOW + n * HOUR) for n in (1, 2, 3))
    late = NOW + 8 * DAY
    newest = replace(make_proof(fingerprint=f"{WWW}@3"), heard_at=late)
    observed = replace(
        SETTLED,
        generations={WWW: generations},
        published={PLACE: frozenset({1, 2, 3})},
        live={PLACE: 3},
        offered={PLACE: 3},
        proofs={PLACE: (newest,)},
    )

    def planned(observed: Observed, now: datetime = late) -> tuple[object, ...]:
        return steps_of(DESIRED, observed, now)

    assert (Retire(WWW, WEB1, 1),) == planned(observed)
    assert () == planned(replace(observed, published={PLACE: frozenset({2, 3})}))
    assert () == planned(replace(observed, proofs={}))
    assert () == planned(replace(observed, proofs={PLACE: (newest, replace(newest, fingerprint="foreign"))}))
    assert () == planned(observed, late + HOUR)
    early = NOW + 2 * DAY
    fresh = replace(newest, heard_at=early)
    assert () == planned(replace(observed, proofs={PLACE: (fresh,)}), early)


def test_nothing_is_published_before_the_first_look_has_shown_what_is_there() -> None:
    """At every start each current generation would be published again."""
    desired = make_desired(make_certificate())
    unseen = Observed(generations={WWW: (make_generation(1),)}, share_seen=False)

    assert [] == [step for step in plan(desired, unseen, NOW).steps if isinstance(step, Publish)]
    assert Publish(WWW, WEB1, 1) in plan(desired, replace(unseen, share_seen=True), NOW).steps


def test_what_begins_to_want_something_again_comes_in_its_place() -> None:
    """The steps of a plan that was made with what is kept of an earlier one are the same, in the order of the config."""
    names = ("a.test", "b.test", "c.test")
    desired = make_desired(*(make_certificate(name, (name,)) for name in names))
    made = {name: (make_generation(1, name=name, names=(name,)),) for name in names}
    places = {(name, WEB1): 1 for name in names}
    shown = {where: frozenset({1}) for where in places}
    settled = Observed(generations=made, published=shown, live=places, offered=places)
    kept = Outlooks()
    plan(desired, settled, NOW, kept)
    last = replace(settled, offered={**places, ("c.test", WEB1): 0})
    plan(desired, last, NOW, kept)
    planned = plan(desired, replace(last, offered=dict.fromkeys(places, 0)), NOW, kept)

    assert tuple(Offer(name, WEB1, 1) for name in names) == planned.steps
    assert () == plan(desired, settled, NOW, kept).steps
    assert {} == kept.wanting


def test_an_order_is_judged_anew_when_it_has_landed_not_while_it_goes_on() -> None:
    """Each of its records would else have its certificate judged again, of which nothing can begin meanwhile."""
    kept, observed = Outlooks(), Observed(self_check=True)
    begun = Issuance(WWW, 1, "ca", DESIRED.certificates[WWW].identifiers, NOW)
    sent = replace(begun, order_url="https://ca/order/1")
    answered = replace(sent, answered=frozenset({"https://ca/challenge/1"}))
    first = kept.of(DESIRED, observed, NOW)[WWW]
    flying = [
        replace(observed, open_orders={WWW: order}, in_flight=frozenset({(WWW,)}))
        for order in (begun, sent, answered)
    ]
    judged = [kept.of(DESIRED, one, NOW)[WWW] for one in flying]
    landed = [replace(one, in_flight=frozenset()) for one in flying]
    alone = [Outlooks().of(DESIRED, one, NOW)[WWW] for one in landed]

    assert all(one is first for one in judged)
    assert alone == [kept.of(DESIRED, one, NOW)[WWW] for one in landed]
    # Our own look at the challenge's way comes first, but not where a challenge was answered.
    assert [True, True, False] == [one.due is None for one in alone]
