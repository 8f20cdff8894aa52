"""Renewals on the real store and state folder: what they replace, which key they get, what is counted, what is revoked."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from certfan import pki
from certfan.core.ledger import SpendKind
from certfan.core.model import Desired, Identifier, Problem, Revocation, RevocationReason
from certfan.core.renewal import Window
from certfan.core.steps import AskRenewal, GiveUpOrder, Revoke, TidyOrders
from certfan.daemon.issuing.upkeep import Upkeep
from certfan.daemon.journal import Journal
from certfan.errors import AuthorityMalformed, AuthorityRefused, AuthoritySlow, ChallengeFailed
from tests.unit.scripted_authority import refused
from tests.unit.test_issuer import ISSUE, LAB, NAME, NOW, OTHER, Place, _places, clock, wanted
from tests.unit.test_issuer import roots as roots  # the machine's own trust no scripted authority

DAY = timedelta(days=1)


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async for one in _places(tmp_path / "state"):
        yield one


def upkeep(place: Place, *, dice: float = 0.5) -> Upkeep:
    """Start anew, as the composition root does."""
    issuer = place.life()

    async def unchecked(_identifier: Identifier) -> Problem | None:
        return None

    return Upkeep(
        store=place.store,
        state=place.state,
        journal=Journal(place.store, clock),
        accounts=issuer._accounts,
        tokens=issuer.tokens,
        check=unchecked,
        clock=clock,
        dice=lambda: dice,
    )


def with_reuse(age: timedelta) -> Desired:
    """The same config, whose certificate may keep its key for so long."""
    desired = wanted()
    certificate = replace(desired.certificates[NAME], reuse_key=age)
    return Desired(desired.authorities, {NAME: certificate}, {})


def spki(place: Place, number: int) -> str:
    return pki.public_key_hash(place.key(number))


async def certid(place: Place, number: int) -> str:
    found = pki.renewal_id(place.state.read_generation(NAME, number)["fullchain.pem"])
    assert found is not None
    return found


# What is replaced


async def test_a_renewal_says_what_it_replaces(place: Place) -> None:
    """Only the first one replaces nothing (RFC 9773 section 5)."""
    await place.issue()
    await place.issue()

    assert [None, await certid(place, 1)] == [order.replaces for order in place.ca.orders.values()]


@pytest.mark.parametrize("kind", ["alreadyReplaced", "malformed", "serverInternal", "unauthorized"])
async def test_what_cannot_be_replaced_is_ordered_without_saying_so(place: Place, kind: str) -> None:
    """It costs no attempt, and is then counted as the plain order that it is."""
    await place.issue()
    place.ca.scripts["new_order"] = [refused(kind, 409)]
    issuer = place.life()
    await issuer.issue(wanted(), replace(ISSUE, exempt=True), floor=0)
    spent = (await place.store.spends())["lab"]

    assert [None, None] == [order.replaces for order in place.ca.orders.values()]
    assert [False] * 4 == [spend.exempt for spend in spent]


async def test_a_revoked_generation_is_not_replaced(place: Place) -> None:
    """The authority would refuse it; and what replaces nothing is exempt from nothing."""
    await place.issue()
    await place.store.mark_revoked(NAME, 1, NOW)
    await place.life().issue(wanted(), replace(ISSUE, exempt=True), floor=0)
    spent = (await place.store.spends())["lab"]

    assert [None, None] == [order.replaces for order in place.ca.orders.values()]
    assert not any(spend.exempt for spend in spent)


# What is counted


async def test_orders_and_certificates_are_counted_once_whatever_happens(place: Place) -> None:
    """Cut off after every effect and resumed, one order and one certificate are on the ledger."""
    await place.cut_after("record_order_url")
    await place.issue()
    await place.life().issue(wanted(), replace(ISSUE, exempt=True), floor=0)
    spent = (await place.store.spends())["lab"]
    kinds = [SpendKind.ORDER, SpendKind.CERTIFICATE]

    assert [(kind, NOW) for kind in kinds * 2] == [(spend.kind, spend.at) for spend in spent]
    assert {frozenset({NAME, OTHER})} == {spend.names for spend in spent}
    assert [(False, False)] * 2 + [(True, True)] * 2 == [(spend.exempt, spend.same_set) for spend in spent]


async def test_a_failed_authorization_is_counted_for_its_name(place: Place) -> None:
    """Not for the other names of its order; and the order is remembered, to be tidied up."""
    place.ca.unreachable_names = {OTHER}
    with pytest.raises(ChallengeFailed):
        await place.issue()
    order, failure = (await place.store.spends())["lab"]
    (left,) = await place.store.leftovers()

    assert (SpendKind.ORDER, SpendKind.FAILURE) == (order.kind, failure.kind)
    assert frozenset({OTHER}) == failure.names
    assert left.order_url in place.ca.orders


async def test_what_an_order_left_pending_is_deactivated(place: Place) -> None:
    """Each once, and what another order waits for is left alone."""
    await place.cut_after("record_order_url")
    await place.issue(wanted(NAME))
    step = TidyOrders("lab")
    await upkeep(place).do(wanted(), step)
    await upkeep(place).do(wanted(), step)
    (first, *_) = place.ca.orders

    assert [f"{first}/authz/{name}" for name in (NAME, OTHER)] == place.ca.deactivated
    assert () == await place.store.leftovers()


# Which key


async def test_every_generation_has_a_key_of_its_own(place: Place) -> None:
    """Unless the config says otherwise."""
    await place.issue()
    await place.issue()

    assert spki(place, 1) != spki(place, 2)


async def test_a_key_is_used_again_up_to_its_age(place: Place) -> None:
    """Counted from the first generation that had it."""
    first = await place.issue(with_reuse(DAY))
    second = await place.issue(with_reuse(DAY))

    assert first.key == second.key == spki(place, 2)
    assert first.fingerprint != second.fingerprint
    assert (await place.issue()).key != first.key


@pytest.mark.parametrize("done", [True, False])
async def test_the_key_of_a_revoked_generation_is_never_used_again(place: Place, *, done: bool) -> None:
    """Nor that of one that is to be; not even when it lies ready for the next number."""
    first = await place.issue(with_reuse(DAY))
    place.state.generation_key(NAME, 2, lambda: place.key(1))
    if done:
        await place.store.mark_revoked(NAME, 1, NOW)
    else:
        wish = Revocation(RevocationReason.UNSPECIFIED, at_once=False, asked_at=NOW)
        await place.store.ask_revocation(NAME, 1, wish)
    successor = await place.issue(with_reuse(DAY))

    assert 3 == successor.number
    assert first.key != successor.key


# Revoking


@pytest.mark.parametrize("reason", list(RevocationReason))
async def test_a_generation_is_revoked_for_its_reason(place: Place, reason: RevocationReason) -> None:
    """The fact is recorded, and the wish is gone."""
    await place.issue()
    await place.store.ask_revocation(NAME, 1, Revocation(reason, at_once=True, asked_at=NOW))
    for _ in range(2):
        await upkeep(place).do(wanted(), Revoke(NAME, 1))
    facts = await place.store.facts()

    assert {(NAME, 1): NOW} == dict(facts.revoked)
    assert {} == dict(facts.revocations)
    assert [reason.code] == list(place.ca.revoked.values())


async def test_a_wish_to_revoke_what_has_expired_is_done_without_its_authority(place: Place) -> None:
    """Nobody is asked, the wish is gone, and the key stays spent."""
    await place.issue()
    wish = Revocation(RevocationReason.KEY_COMPROMISE, at_once=True, asked_at=NOW)
    await place.store.ask_revocation(NAME, 1, wish)
    await upkeep(place).do(wanted(), Revoke(NAME, 1, expired=True))
    facts = await place.store.facts()

    assert ({(NAME, 1): NOW}, {}) == (dict(facts.revoked), dict(facts.revocations))
    assert {} == place.ca.revoked


async def test_what_another_account_ordered_is_revoked_by_its_own_key(place: Place) -> None:
    """The account may not, whoever holds the certificate's key may (RFC 8555 section 7.6)."""
    await place.issue()
    wish = Revocation(RevocationReason.SUPERSEDED, at_once=True, asked_at=NOW)
    await place.store.ask_revocation(NAME, 1, wish)
    place.ca.scripts["revoke"] = [refused("unauthorized", 403)]
    await upkeep(place).do(wanted(), Revoke(NAME, 1))

    assert 2 == place.ca.calls["revoke"]
    assert {(NAME, 1)} == set((await place.store.facts()).revoked)


# Orders of what left the config


async def test_an_order_that_nobody_wants_any_more_is_closed_and_its_authority_is_told(place: Place) -> None:
    """Its token is answered no longer, and what it left pending is deactivated at the next turn."""
    await place.cut_after("record_token")
    keeper = upkeep(place)
    await keeper.do(wanted(), GiveUpOrder(NAME, 1))
    facts, tokens = await place.store.facts(), await place.store.tokens()

    assert ((), {}) == (facts.issuances, tokens)
    assert ["lab"] == [left.authority for left in facts.leftovers]


# When to renew


async def test_the_instant_to_renew_is_drawn_once_and_kept(place: Place) -> None:
    """Whatever the dice say later; a window that moved gets another one, and the journal tells."""
    await place.issue()
    window = Window(NOW + 10 * DAY, NOW + 20 * DAY, explanation_url="https://ca.example/why")
    place.ca.renewal = {await certid(place, 1): window}
    step = AskRenewal(NAME, 1)
    chosen = []
    for dice in (0.2, 0.9):
        await upkeep(place, dice=dice).do(wanted(), step)
        chosen.append((await place.store.facts()).renewal_infos[NAME, 1].chosen)
    place.ca.renewal = {await certid(place, 1): Window(NOW - 2 * DAY, NOW - DAY)}
    await upkeep(place, dice=0.5).do(wanted(), step)
    told = [event for event in await place.store.events() if event.name == "renewal.suggested"]

    assert [NOW + 12 * DAY] * 2 == chosen
    assert NOW - 1.5 * DAY == (await place.store.facts()).renewal_infos[NAME, 1].chosen
    assert ["https://ca.example/why", ""] == [event.fields["explanation"] for event in told]


async def test_an_authority_without_renewal_information_is_asked_daily(place: Place) -> None:
    """What it does not say is remembered, so that nothing is asked at every look."""
    await place.issue()
    await upkeep(place).do(wanted(), AskRenewal(NAME, 1))
    info = (await place.store.facts()).renewal_infos[NAME, 1]

    assert (NOW + DAY, True) == (info.ask_again_at, info.end <= info.start)


# Orders that lead nowhere


async def test_an_order_that_does_not_move_gives_up_its_place_and_stays_open(place: Place) -> None:
    """After five minutes of waiting; the next try looks at the same order."""
    place.ca.silent_names = {NAME}
    now = NOW
    issuer = place.life()
    issuer._clock = lambda: now

    async def pass_time() -> None:
        nonlocal now
        now += timedelta(minutes=6)

    place.ca.on_look = pass_time
    with pytest.raises(AuthoritySlow, match="has not moved its order for 5 minutes"):
        await issuer.issue(wanted(NAME), ISSUE, floor=0)

    assert 1 == len(await place.store.open_issuances())
    for order in place.ca.orders.values():
        order.valid.add(NAME)
    assert 1 == (await place.issue(wanted(NAME))).number
    assert 1 == place.ca.calls["new_order"]


@pytest.mark.parametrize(("age", "orders"), [(timedelta(minutes=1), 1), (timedelta(hours=2), 2)])
async def test_an_order_that_is_gone_without_a_word_is_given_up_in_time(
    place: Place, age: timedelta, orders: int
) -> None:
    """A bare 404 may be a proxy's; for an hour it is believed to be."""
    await place.cut_after("record_order_url")
    issuer = place.life()
    issuer._clock = lambda: NOW + age
    place.ca.scripts["order"] = [AuthorityMalformed("HTTP 404 without a problem document", status=404)]
    with pytest.raises(AuthorityMalformed):
        await issuer.issue(wanted(), ISSUE, floor=0)
    generation = await place.issue()

    assert (1, orders) == (generation.number, place.ca.calls["new_order"])


# Trials


async def test_a_trial_leaves_nothing_behind(place: Place) -> None:
    """No generation, key, token, intent or spending; and it says what was issued."""
    issuer = place.life()
    leaf = await issuer.trial(wanted().certificates[NAME], LAB)
    facts = await place.store.facts()

    assert (NAME, OTHER) == leaf.names
    assert {} == dict(facts.generations)
    assert ((), {}, frozenset()) == (
        facts.issuances,
        dict(facts.spends),
        place.state.generation_numbers(NAME),
    )
    assert None is issuer.tokens.key_authorization("1-a_example")


async def test_a_trial_that_fails_says_why_an_order_would(place: Place) -> None:
    """And it too leaves nothing behind."""
    place.ca.scripts["new_order"] = [refused("rejectedIdentifier", 400)]
    with pytest.raises(AuthorityRefused, match="rejectedIdentifier"):
        await place.life().trial(wanted().certificates[NAME], LAB)

    assert () == await place.store.leftovers()
