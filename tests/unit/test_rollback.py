"""Going back: which pair it is, what it does to the plan, and that a crash anywhere does no harm."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from certfan.core import policy
from certfan.core.model import (
    Attempt,
    Generation,
    Identifier,
    KeyType,
    Reason,
    Revocation,
    RevocationReason,
)
from certfan.core.plan import Issue, Observed, Offer, Publish, Retire, RollBack, plan
from certfan.core.rollback import choose
from certfan.core.tries import Verdict, verdict
from certfan.daemon.publishing.rollback import RollBacks
from certfan.errors import ActionRefused, PairMismatch, UnknownName
from tests.unit.fleet_parts import PAIRS, Cut, Fleet, PowerCut, a_fleet
from tests.unit.planner_parts import (
    DAY,
    HOUR,
    HTTPS,
    MINUTE,
    NOW,
    PLACE,
    PROBLEM,
    SMTP,
    WEB1,
    WWW,
    make_certificate,
    make_desired,
    make_generation,
    make_proof,
    steps_of,
)
from tests.unit.test_deployment import APACHE, READY, staged

CERTIFICATE = make_certificate()
THREE = tuple(make_generation(n) for n in (1, 2, 3))
COPY = replace(THREE[1], number=4, issued_at=NOW + DAY, copy_of=2)


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with a_fleet(tmp_path) as found:
        yield found


def chosen(*generations: Generation, to: int | None = None, revoked: Any = frozenset()) -> int | str:
    found = choose(CERTIFICATE, generations, to, revoked=revoked, now=NOW + 2 * DAY)
    return found if isinstance(found, str) else found.number


def test_it_goes_to_the_newest_earlier_pair_and_again_further_back() -> None:
    """A second roll-back does not go forth to what the first one left."""
    assert 2 == chosen(*THREE)
    assert 1 == chosen(*THREE, COPY)
    assert 3 == chosen(*THREE, COPY, to=3)


@pytest.mark.parametrize(
    ("second", "revoked"),
    [
        (make_generation(2, lifetime=DAY), set()),
        (make_generation(2, names=(WWW, "other.example.org")), set()),
        (replace(make_generation(2), key_type=KeyType.RSA_2048), set()),
        (make_generation(2), {(WWW, 2)}),
    ],
    ids=["expired", "other names", "other key type", "revoked"],
)
def test_what_would_be_ordered_anew_at_once_is_passed_over_and_refused(
    second: Generation, revoked: set[tuple[str, int]]
) -> None:
    """Without a number the next older one is taken; with its number it is refused with the reason."""
    generations = (THREE[0], second, THREE[2])

    assert 1 == chosen(*generations, revoked=revoked)
    assert "cannot be gone back to: it" in str(chosen(*generations, to=2, revoked=revoked))


@pytest.mark.parametrize(
    ("to", "expected"),
    [(3, "the newest generation has the pair of"), (7, "no generation 7 (there are 1, 2, 3)"), (None, "")],
)
def test_what_cannot_be_chosen_is_said(to: int | None, expected: str) -> None:
    """The numbers that there are stand in the text."""
    generations = THREE if to else THREE[:1]

    assert expected in str(chosen(*generations, to=to))
    assert "no earlier generation is usable" == chosen(THREE[0])


def test_the_plan_goes_back_and_orders_nothing_meanwhile() -> None:
    """Not even what is due: else both would want to be the next generation."""
    late = NOW + 61 * DAY
    observed = Observed(generations={WWW: THREE}, rolled_back={WWW: 2}, live={PLACE: 3}, offered={PLACE: 3})
    observed = replace(observed, published={PLACE: frozenset({2, 3})}, asked={WWW: late})
    planned = steps_of(make_desired(CERTIFICATE), observed, late)
    flying = steps_of(make_desired(CERTIFICATE), replace(observed, in_flight=frozenset({(WWW,)})), late)

    assert (RollBack(WWW, 2),) == planned
    assert () == flying


def test_a_roll_back_that_failed_waits_a_moment_and_still_nothing_is_ordered() -> None:
    """However due it is; and an order's own long back-off holds no roll-back up."""
    late = NOW + 61 * DAY
    soon, long = (
        Attempt(WWW, PROBLEM, 1, late - MINUTE, late + wait) for wait in (timedelta(seconds=1), HOUR)
    )
    observed = Observed(
        generations={WWW: THREE},
        rolled_back={WWW: 2},
        offered={PLACE: 3},
        share_up=False,
        config_changed={WWW: late},  # lifts what holds an order up
    )
    failed, desired = replace(observed, attempts={WWW: soon}), make_desired(CERTIFICATE)

    assert () == steps_of(desired, failed, late)
    assert late + timedelta(seconds=1) == plan(desired, failed, late).wake_at
    assert (RollBack(WWW, 2),) == steps_of(desired, replace(observed, attempts={WWW: long}), late)


def test_the_copy_is_published_and_offered_like_any_generation() -> None:
    """Its number is the highest, so no rule needs an exception."""
    observed = Observed(
        generations={WWW: (*THREE, COPY)},
        published={PLACE: frozenset({2, 3})},
        live={PLACE: 3},
        offered={PLACE: 3},
    )
    shown = replace(observed, published={PLACE: frozenset({2, 3, 4})}, live={PLACE: 4})
    desired = make_desired(CERTIFICATE)

    assert (Publish(WWW, WEB1, 4),) == plan(desired, observed, NOW + DAY).steps
    assert (Offer(WWW, WEB1, 4),) == plan(desired, shown, NOW + DAY).steps


def test_a_pair_that_is_due_is_not_renewed_at_once_but_before_its_deadline() -> None:
    """Half of what it had left is its own; then `renewal_due` applies as ever."""
    back_at = NOW + 70 * DAY
    copy = replace(THREE[1], number=4, issued_at=back_at, copy_of=2)
    observed = Observed(
        generations={WWW: (*THREE, copy)},
        published={PLACE: frozenset({4})},
        live={PLACE: 4},
        offered={PLACE: 4},
    )
    desired = make_desired(CERTIFICATE)

    assert () == steps_of(desired, observed, back_at)
    assert back_at + 10 * DAY == policy.renewal_instant(copy, None)
    assert (Issue(WWW, Reason.RENEWAL_DUE, "ca"),) == steps_of(desired, observed, back_at + 10 * DAY)


@pytest.mark.parametrize(("day", "expected"), [(1, 60), (70, 80), (80, 83), (85, 83)])
def test_a_copys_renewal_never_waits_past_its_deadline(day: int, expected: int) -> None:
    """A fresh pair keeps its own instant; one that is late already is renewed as soon as it may be."""
    copy = replace(THREE[1], number=4, issued_at=NOW + day * DAY, copy_of=2)

    assert NOW + expected * DAY == policy.renewal_instant(copy, None)


def test_proofs_of_a_copy_do_not_retire_the_older_one_with_the_same_leaf() -> None:
    """They do not tell which of both is in use; what lies between is superseded as ever."""
    observed = Observed(
        generations={WWW: (*THREE, COPY)},
        published={PLACE: frozenset({1, 2, 3, 4, 5})},
        live={PLACE: 4},
        offered={PLACE: 4},
        proofs={PLACE: (make_proof(HTTPS, COPY.fingerprint, at=NOW + 9 * DAY),)},
    )
    without_first = replace(observed, published={PLACE: frozenset({2, 3, 4, 5})})
    desired = make_desired(CERTIFICATE)

    assert (Retire(WWW, WEB1, 1),) == steps_of(desired, observed, NOW + 9 * DAY)
    assert (Retire(WWW, WEB1, 3),) == steps_of(desired, without_first, NOW + 9 * DAY)


def test_the_agent_takes_the_copys_leaf_for_what_it_is() -> None:
    """The older number's staged pair does not make the right leaf look like an old one."""
    both = replace(APACHE, endpoints={WWW: (HTTPS, SMTP)})
    facts = replace(
        READY,
        live={WWW: 4},
        staged={(WWW, 2): staged(2), (WWW, 4): staged(2)},
        services={"apache2": both},
        proofs={(WWW, HTTPS): make_proof(HTTPS, f"{WWW}@2"), (WWW, SMTP): make_proof(SMTP, "foreign")},
    )
    proven = {(WWW, one): make_proof(one, f"{WWW}@2") for one in (HTTPS, SMTP)}

    assert Verdict.FOREIGN is verdict(facts, (WWW, 4))
    assert Verdict.PROVEN is verdict(replace(facts, proofs=proven), (WWW, 4))


async def roll_back(fleet: Fleet, left: int = 1000) -> Generation | None:
    """Carry the wish out; the power is cut after `left` touches of store or state folder."""
    count = [left]
    store, state = Cut(fleet.store, count), Cut(fleet.state, count)
    one = RollBacks(store=store, state=state, journal=fleet.journal, clock=fleet.clock)
    (wish,) = (await fleet.store.facts()).rolled_back.items()
    floor = await fleet.store.highest_number(wish[0])
    return await one.back_to(fleet.desired, *wish, floor=floor)


async def test_a_copy_is_a_generation_like_any_other(fleet: Fleet) -> None:
    """Same key, same chain, the next number, every file closed; the wish is done with."""
    old, _ = await fleet.issue(1), await fleet.issue(2)
    back = await fleet.actions.rollback(WWW, None, uid=7)
    fleet.now += HOUR
    copy = await roll_back(fleet)

    assert old == back
    assert replace(old, number=3, issued_at=fleet.now, copy_of=1) == copy == (await fleet.known())[-1]
    assert fleet.state.read_generation(WWW, 1) == fleet.state.read_generation(WWW, 3)
    copied = list((fleet.state.path / "generations").glob(f"{WWW}@3.*"))
    assert (2, {0o600}) == (len(copied), {stat.S_IMODE(path.stat().st_mode) for path in copied})
    assert {} == (await fleet.store.facts()).rolled_back
    assert [{"uid": 7, "to": 1}] == [dict(e.fields) for e in await fleet.happened("rollback.asked")]
    (told,) = await fleet.happened("generation.rolled_back")
    assert (f"{WWW}@3", f"{WWW}@1", old.serial) == (told.subject, told.fields["to"], told.fields["serial"])


async def test_a_crash_anywhere_leaves_one_copy_under_one_number(tmp_path: Path) -> None:
    """Every touch of store and state folder is cut before, once; what follows completes the same copy."""
    ends = []
    for left in range(50):
        async with a_fleet(tmp_path / str(left)) as fleet:
            old, _ = await fleet.issue(1), await fleet.issue(2)
            await fleet.actions.rollback(WWW, 1, uid=0)
            try:
                await roll_back(fleet, left)
                break
            except PowerCut:
                pass
            if (await fleet.store.facts()).rolled_back:
                await roll_back(fleet)
            numbers = [(g.number, g.copy_of) for g in await fleet.known()]
            ends.append((numbers, sorted(fleet.state.generation_numbers(WWW))))
            assert old.fingerprint == (await fleet.known())[-1].fingerprint

    assert 6 <= len(ends)
    assert [([(1, None), (2, None), (3, 1)], [1, 2, 3])] * len(ends) == ends


async def test_the_number_is_above_a_try_that_was_open_and_the_try_is_given_up(fleet: Fleet) -> None:
    """Its key stays another's: no number ever has two."""
    await fleet.issue(1)
    await fleet.issue(2)
    fleet.state.generation_key(WWW, 3, lambda: PAIRS[3][0])
    await fleet.store.begin_issuance(WWW, 3, "ca", (Identifier(WWW),), NOW)
    await fleet.store.record_token("token", "answer", WWW, WWW, NOW)
    await fleet.actions.rollback(WWW, 1, uid=0)
    copy = await roll_back(fleet)

    assert copy is not None
    assert 4 == copy.number
    assert {"privkey.pem": PAIRS[3][0]} == fleet.state.read_generation(WWW, 3)
    assert () == await fleet.store.open_issuances()
    assert {} == await fleet.store.tokens()


async def test_a_key_that_was_made_for_a_try_is_not_taken_for_the_copys(fleet: Fleet) -> None:
    """Whoever made it died before anything was recorded: its number is passed over."""
    await fleet.issue(1)
    await fleet.issue(2)
    fleet.state.generation_key(WWW, 3, lambda: PAIRS[3][0])
    await fleet.actions.rollback(WWW, 1, uid=0)
    copy = await roll_back(fleet)

    assert copy is not None
    assert 4 == copy.number
    assert fleet.state.read_generation(WWW, 1) == fleet.state.read_generation(WWW, 4)


async def test_the_number_is_above_what_only_the_folder_knows(fleet: Fleet) -> None:
    """Yesterday's database beside today's folder: nothing in it is written over."""
    for number in (1, 2):
        await fleet.issue(number)
    for number in (4, 5):
        key, cert = PAIRS[number]
        fleet.state.generation_key(WWW, number, lambda key=key: key)  # type: ignore[misc]
        fleet.state.save_chain(WWW, number, cert)
    await fleet.actions.rollback(WWW, 1, uid=0)
    copy = await roll_back(fleet)

    assert copy is not None
    assert 6 == copy.number


async def test_what_cannot_be_gone_back_to_any_more_is_dropped_with_a_word(fleet: Fleet) -> None:
    """The config changed, or it was revoked, between asking and doing: the wish does not wait for better times."""
    await fleet.issue(1)
    await fleet.issue(2)
    await fleet.actions.rollback(WWW, 1, uid=0)
    fleet.desired = make_desired(make_certificate(names=(WWW, "new.example.org")))

    assert await roll_back(fleet) is None
    assert {} == (await fleet.store.facts()).rolled_back
    (told,) = await fleet.happened("rollback.dropped")
    assert "other names" in told.fields["detail"]


async def test_a_damaged_pair_is_no_generation(fleet: Fleet) -> None:
    """The failure is told, the wish stays, nothing is recorded."""
    await fleet.issue(1)
    await fleet.issue(2)
    await fleet.actions.rollback(WWW, 1, uid=0)
    (fleet.state.path / f"generations/{WWW}@1.privkey.pem").write_bytes(PAIRS[2][0])

    with pytest.raises(PairMismatch):
        await roll_back(fleet)
    assert 2 == len(await fleet.known())
    assert {WWW: 1} == (await fleet.store.facts()).rolled_back


async def test_the_last_word_counts(fleet: Fleet) -> None:
    """Who renews takes a roll-back away that was not done yet, and the other way round."""
    await fleet.issue(1)
    await fleet.issue(2)
    await fleet.actions.rollback(WWW, 1, uid=0)
    await fleet.actions.renew(WWW, uid=0)
    renewing = await fleet.store.facts()
    await fleet.actions.rollback(WWW, 1, uid=0)
    back = await fleet.store.facts()

    assert ({WWW}, {}) == (renewing.asked.keys(), renewing.rolled_back)
    assert ({}, {WWW: 1}) == (back.asked, back.rolled_back)


async def test_a_revoked_leaf_is_revoked_under_each_of_its_numbers(fleet: Fleet) -> None:
    """Else the copy would be served on, or gone back to."""
    await fleet.issue(1)
    await fleet.issue(2)
    await fleet.actions.rollback(WWW, 1, uid=0)
    await roll_back(fleet)
    await fleet.store.mark_revoked(WWW, 1, NOW + MINUTE)

    assert {(WWW, 1), (WWW, 3)} == (await fleet.store.revoked()).keys()


async def test_nothing_that_is_to_be_revoked_is_gone_back_to(fleet: Fleet) -> None:
    """Neither when it is asked for, nor when the wish to revoke came in between."""
    await fleet.issue(1)
    await fleet.issue(2)
    wish = Revocation(RevocationReason.KEY_COMPROMISE, at_once=False, asked_at=NOW)
    await fleet.actions.rollback(WWW, 1, uid=0)
    await fleet.store.ask_revocation(WWW, 1, wish)

    assert await roll_back(fleet) is None
    with pytest.raises(ActionRefused, match="is revoked or is to be"):
        await fleet.actions.rollback(WWW, 1, uid=0)


async def test_refusals_name_the_thing(fleet: Fleet) -> None:
    """An unknown name gets a guess, an impossible number the reason; nothing is remembered."""
    await fleet.issue(1)
    with pytest.raises(UnknownName, match="did you mean"):
        await fleet.actions.rollback("ww.example.org", None, uid=0)
    with pytest.raises(ActionRefused, match="no earlier generation is usable"):
        await fleet.actions.rollback(WWW, None, uid=0)

    assert {} == (await fleet.store.facts()).rolled_back
