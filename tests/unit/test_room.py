"""How many orders an authority has at once, and how many are begun: those that stand still do not count."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from certfan.core.model import Identifier
from certfan.core.plan import Issue, Observed, RollAccountKey, plan
from certfan.core.room import BEGUN, MOST_STANDING, STANDING_STILL, free_places, outdated
from tests.unit.planner_parts import MINUTE, NOW, make_certificate
from tests.unit.test_orders import begun, issues, many, wanted

MOVED = NOW - STANDING_STILL


def flying(names: str, *standing: str) -> Observed:
    moved = {name: MOVED if name in standing else NOW for name in names}
    return Observed(in_flight=frozenset((name,) for name in names), moved=moved)


def test_three_times_as_many_orders_are_begun_as_may_be_at_the_authority() -> None:
    """While some have its places the next are made ready, or the last are kept."""
    assert BEGUN * 2 == len(issues(plan(many("abcdef", cap=2), Observed(), NOW)))


def test_an_order_that_stands_still_leaves_its_place_to_another() -> None:
    """From the very instant on at which it does; not beyond some times what may be at once."""
    moved = [NOW - STANDING_STILL + timedelta(milliseconds=1), MOVED, None]

    assert [0, 1] == [free_places(most, moved, NOW) for most in (2, 3)]
    assert [2, 1] == [free_places(2, [MOVED] * (2 * MOST_STANDING + more), NOW) for more in (0, 1)]


def test_an_order_that_stands_still_counts_no_more() -> None:
    """It did until then, and whoever comes after it is begun at that very instant."""
    wanted = many("abcde", cap=1)
    moving = plan(wanted, flying("abc"), NOW)

    assert [] == issues(moving)
    assert NOW + STANDING_STILL == moving.wake_at
    assert ["d"] == issues(plan(wanted, flying("abc", "a"), NOW))
    assert ["d", "e"] == issues(plan(wanted, flying("abc", "a", "b"), NOW))


def test_what_is_not_known_to_have_got_any_further_counts() -> None:
    """It has just been begun, and may be asking for the account, or waits for a place."""
    observed = Observed(in_flight=frozenset({("a",), ("b",), ("c",)}))

    assert [] == issues(plan(many("abcd", cap=1), observed, NOW + MINUTE))


def test_a_clock_that_was_set_back_frees_no_fewer_places() -> None:
    """An order that moved in the future counts as one that stands still."""
    later = NOW + timedelta(hours=1)
    observed = replace(flying("abc"), moved={"a": later, "b": NOW, "c": NOW})

    assert ["d"] == issues(plan(many("abcde", cap=1), observed, NOW))
    assert 1 == free_places(1, [later], NOW)


def test_orders_that_stand_still_are_not_without_number() -> None:
    """Beyond some times what may be at once each of them counts again."""
    names = [f"n{number:02}" for number in range(MOST_STANDING + BEGUN)]
    observed = Observed(in_flight=frozenset((name,) for name in names), moved=dict.fromkeys(names, MOVED))
    planned = plan(many([*names, "z"], cap=1), observed, NOW)
    fewer = plan(
        many([*names, "z"], cap=1),
        Observed(in_flight=frozenset((name,) for name in names[1:]), moved=observed.moved),
        NOW,
    )

    assert [] == [step for step in planned.steps if isinstance(step, Issue)]
    assert 1 == len(issues(fewer))


def test_an_account_key_waits_for_orders_that_get_on_only() -> None:
    """One that stands still would hold it up, and with it every other order there."""
    moving = replace(flying("a"), rollovers=frozenset({"ca"}))
    standing = replace(flying("a", "a"), rollovers=frozenset({"ca"}))

    assert RollAccountKey("ca") not in plan(many("a"), moving, NOW).steps
    assert RollAccountKey("ca") in plan(many("a"), standing, NOW).steps


def test_an_order_that_stands_still_for_what_is_not_asked_for_any_more_is_outdated() -> None:
    """Other names, another authority, or out of the config; while it gets on, or is still wanted, it is not."""
    standing = replace(flying("a", "a"), open_orders=begun(name="a"))
    as_ordered = make_certificate("a", ("a",))
    renamed, moved = (
        replace(as_ordered, identifiers=(Identifier("b"),)),
        replace(as_ordered, authority="third"),
    )

    assert [] == list(outdated(wanted(as_ordered), standing, NOW))
    assert [["a"]] * 3 == [
        list(outdated(one, standing, NOW)) for one in (wanted(renamed), wanted(moved), wanted())
    ]
    assert [] == list(outdated(wanted(), replace(flying("a"), open_orders=begun(name="a")), NOW))


def test_two_certificates_for_the_same_names_are_ordered_one_after_the_other() -> None:
    """An authority may answer the second order with the first one; at another authority it cannot."""
    ecdsa, rsa = make_certificate("a", ("x.test", "y.test")), make_certificate("b", ("y.test", "x.test"))
    elsewhere, other = replace(rsa, name="c", authority="second"), make_certificate("d", ("x.test",))
    both = wanted(ecdsa, rsa, elsewhere, other)

    assert ["a", "c", "d"] == issues(plan(both, Observed(), NOW))
    assert ["c", "d"] == issues(plan(both, flying("a", "a"), NOW))
