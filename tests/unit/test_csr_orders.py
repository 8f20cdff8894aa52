"""Consumer custody from the CSR to the bundle: ordered, cut off anywhere, rolled back, packed, sent over the channel."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from certfan import pki
from certfan.agent.own_keys import OwnKeys, Wanted
from certfan.core.model import Custody, Desired, KeyType, Reason, Revocation, RevocationReason
from certfan.core.steps import AskCsr, Revoke
from certfan.daemon.issuing import signing
from certfan.daemon.journal import Journal
from certfan.daemon.publishing.rollback import RollBacks
from certfan.errors import AuthorityRefused, MessageInvalid, NotAllowed, RequestInvalid
from certfan.protocol.messages import MAX_CSR, CsrMessage
from certfan.protocol.wire import decode
from tests.unit.daemon_parts import Daemon, certificate_of, running_daemon
from tests.unit.fleet_parts import Cut, Fleet, PowerCut, a_fleet
from tests.unit.planner_parts import HOUR, WWW, make_certificate, make_desired
from tests.unit.scripted_authority import Gate, refused
from tests.unit.test_issuer import ISSUE, NAME, NOW, OTHER, Place, _places, clock, roots, wanted
from tests.unit.test_issuer_renewal import upkeep

__all__ = ["roots"]
NAMES = (NAME, OTHER)


def own(custody: Custody = Custody.CONSUMER) -> Desired:
    desired = wanted()
    certificate = replace(desired.certificates[NAME], custody=custody)
    return replace(desired, certificates={NAME: certificate})


async def asked_and_sent(place: Place, keys: OwnKeys, *, floor: int = 0) -> int:
    """Do what plan, channel and consumer do before an order; return the number."""
    step = AskCsr(NAME, "web1", Reason.MISSING)
    await signing.ask(step, own(), place.store, place.state, floor=floor, now=NOW)
    one = (await place.store.facts()).signing_requests[NAME]
    made = keys.csr(Wanted(NAME, one.generation, one.key_type, NAMES, one.key))
    assert await place.store.record_csr(one, pki.read_server_csr(made.encode()).der)
    return one.generation


def keyless(place: Place) -> bool:
    """Whether nothing in the state folder is a private key of a certificate."""
    return not [
        path
        for path in (place.state.path / "generations").rglob("*")
        if path.is_file() and b"PRIVATE KEY" in path.read_bytes()
    ]


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async for one in _places(tmp_path / "state"):
        yield one


async def test_an_order_goes_out_with_the_consumers_own_csr(place: Place, tmp_path: Path) -> None:
    """What comes back belongs to the key that is there alone; with it what was asked is done with."""
    keys = OwnKeys(tmp_path)
    number = await asked_and_sent(place, keys)
    generation = await place.issue(own())
    chain = place.state.read_generation(NAME, number)["fullchain.pem"]
    key = keys.find(NAME, generation.key)

    assert (number, "web1") == (generation.number, generation.holder)
    assert key is not None and pki.load_pair(key, chain)
    assert keyless(place)
    assert {} == (await place.store.facts()).signing_requests


async def test_without_the_csr_nothing_is_ordered(place: Place) -> None:
    """Not even a number is used up."""
    with pytest.raises(RequestInvalid, match="is not here yet"):
        await place.issue(own())
    assert frozenset() == place.state.generation_numbers(NAME)
    assert "new_order" not in place.ca.calls


async def test_cut_off_after_any_effect_the_same_csr_is_gone_on_with(tmp_path: Path) -> None:
    """Killed after any call that changes store or authority: one key, at most one order more, no key here."""
    rehearsal = Gate()
    async for place in _places(tmp_path / "whole"):
        await asked_and_sent(place, OwnKeys(tmp_path / "rehearsal"))
        await place.life(rehearsal).issue(own(), ISSUE, floor=0)
    for point, name in enumerate(rehearsal.names, 1):
        async for place in _places(tmp_path / str(point)):
            keys = OwnKeys(tmp_path / f"{point}-keys")
            await asked_and_sent(place, keys)
            assert await place.cut_at(point, own()), name
            if not (await place.store.facts()).generations:
                await place.issue(own())
            (generation,) = (await place.store.facts()).generations[NAME]

            assert keys.find(NAME, generation.key)
            assert keyless(place)
            assert place.ca.calls["new_order"] <= 2


async def test_a_number_that_was_used_meanwhile_is_asked_for_anew(place: Place, tmp_path: Path) -> None:
    """A restored daemon hears late how far its consumer was: nothing is ordered twice under one number."""
    await asked_and_sent(place, OwnKeys(tmp_path))
    issuer = place.life()
    with pytest.raises(RequestInvalid, match="used already"):
        await issuer.issue(own(), ISSUE, floor=7)

    assert {} == (await place.store.facts()).signing_requests
    assert 8 == await asked_and_sent(place, OwnKeys(tmp_path), floor=7)
    assert 8 == (await place.issue(own())).number


async def test_a_change_of_custody_orders_with_another_key(place: Place, tmp_path: Path) -> None:
    """There and back: the consumer's key never comes here, the daemon's is not asked for again."""
    keys = OwnKeys(tmp_path)
    first = await place.issue(own(Custody.SHARE))
    await asked_and_sent(place, keys)
    second = await place.issue(own())
    third = await place.issue(own(Custody.SHARE))

    assert ["", "web1", ""] == [g.holder for g in (first, second, third)]
    assert 3 == len({g.key for g in (first, second, third)})
    assert "privkey.pem" not in place.state.read_generation(NAME, 2)


async def test_a_key_is_kept_up_to_its_age_where_the_config_says_so(place: Place, tmp_path: Path) -> None:
    """What the consumer is asked for names the key; it is the one that it has."""
    keys = OwnKeys(tmp_path)
    await asked_and_sent(place, keys)
    first = await place.issue(own())
    reusing = replace(own().certificates[NAME], reuse_key=HOUR)
    desired = replace(own(), certificates={NAME: reusing})
    step = AskCsr(NAME, "web1", Reason.RENEWAL_DUE)
    await signing.ask(step, desired, place.store, place.state, floor=0, now=NOW)

    assert first.key == (await place.store.facts()).signing_requests[NAME].key


@pytest.mark.parametrize(
    "wished", ["done", "first", "while asked", "with its CSR here", "with its order open"]
)
async def test_the_key_of_what_is_revoked_is_never_ordered_with_again(
    place: Place, tmp_path: Path, wished: str
) -> None:
    """However late the wish comes, and although keys are to be kept: the authority never sees that key again."""
    keys = OwnKeys(tmp_path)
    desired = replace(own(), certificates={NAME: replace(own().certificates[NAME], reuse_key=HOUR)})
    desk = signing.CsrDesk(place.store, Journal(place.store, clock), lambda: desired, lambda: None, clock)
    await asked_and_sent(place, keys)
    first = await place.issue(own())

    async def revoke(then: str) -> None:
        if then == wished:
            wish = Revocation(RevocationReason.KEY_COMPROMISE, at_once=wished == "done", asked_at=NOW)
            await place.store.ask_revocation(NAME, 1, wish)
        if then == "done" == wished:
            await upkeep(place).do(desired, Revoke(NAME, 1))

    async def asked() -> Wanted:
        step = AskCsr(NAME, "web1", Reason.REVOKED)
        await signing.ask(step, desired, place.store, place.state, floor=0, now=NOW)
        one = (await place.store.facts()).signing_requests[NAME]
        return Wanted(NAME, one.generation, one.key_type, NAMES, one.key)

    async def send(one: Wanted) -> None:
        await desk.take("web1", NAME, one.number, keys.csr(one).encode())

    await revoke("done")
    await revoke("first")
    one = await asked()
    if wished in {"done", "first"}:
        assert one.like == ""
        with pytest.raises(RequestInvalid, match="in use elsewhere"):
            await send(replace(one, like=first.key))
    await revoke("while asked")
    await send(one)
    await revoke("with its CSR here")
    for point in range(1, 9) if wished == "with its order open" else ():
        if place.ca.calls["new_order"] < 2:
            assert await place.cut_at(point, desired)
    await revoke("with its order open")
    if wished not in {"done", "first"}:
        with pytest.raises(RequestInvalid, match="used already"):
            await place.issue(desired)
        await send(await asked())
    second = await place.issue(desired)

    assert first.key != second.key
    chains = [order.chain for order in place.ca.orders.values() if order.chain]
    ordered = [pki.load_chain(chain).key_hash for chain in chains]
    assert [first.key, second.key] == ordered


@pytest.mark.parametrize("reason", [RevocationReason.KEY_COMPROMISE, RevocationReason.SUPERSEDED])
async def test_what_the_daemon_has_no_key_of_is_revoked_by_the_account(
    place: Place, tmp_path: Path, reason: RevocationReason
) -> None:
    """Also a compromised one; where the account may not, nobody here may, and that is told."""
    await asked_and_sent(place, OwnKeys(tmp_path))
    await place.issue(own())
    await place.store.ask_revocation(NAME, 1, Revocation(reason, at_once=True, asked_at=NOW))
    place.ca.scripts["revoke"] = [refused("unauthorized", 403)]
    with pytest.raises(AuthorityRefused):
        await upkeep(place).do(own(), Revoke(NAME, 1))
    await upkeep(place).do(own(), Revoke(NAME, 1))

    assert 2 == place.ca.calls["revoke"]
    assert [reason.code] == list(place.ca.revoked.values())
    assert {(NAME, 1)} == set((await place.store.facts()).revoked)


# Rolled back


async def test_a_copy_of_a_keyless_generation_is_one_too_wherever_it_is_cut(tmp_path: Path) -> None:
    """Every touch of store and state folder is cut before, once; what follows completes the same copy."""
    points = 0
    for left in range(50):
        async with a_fleet(tmp_path / str(left)) as fleet:
            certificate = replace(make_certificate(), custody=Custody.CONSUMER)
            fleet.desired = make_desired(certificate)
            await fleet.issue(1, holder="web1")
            await fleet.store.ask_rollback(WWW, 1, fleet.now)
            ended = await _rolled_back(fleet, left)
            if not ended:
                points += 1
                await _rolled_back(fleet, 1000)
            files = fleet.state.read_generation(WWW, 2)

            assert [(1, "web1"), (2, "web1")] == [(g.number, g.holder) for g in await fleet.known()]
            assert "privkey.pem" not in files
            assert files == fleet.state.read_generation(WWW, 1)
            if ended:
                break
    assert points > 5


async def _rolled_back(fleet: Fleet, left: int) -> bool:
    count = [left]
    store, state = Cut(fleet.store, count), Cut(fleet.state, count)
    one = RollBacks(store=store, state=state, journal=fleet.journal, clock=fleet.clock)
    try:
        await one.back_to(fleet.desired, WWW, 1, floor=1)
    except PowerCut:
        return False
    return True


# Packed, and over the channel


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    async with running_daemon(tmp_path / "daemon") as running:
        name = certificate_of("web1")
        certificate = replace(running.desired.certificates[name], custody=Custody.CONSUMER)
        running.desired = replace(
            running.desired, certificates={**running.desired.certificates, name: certificate}
        )
        yield running


async def test_a_csr_goes_over_the_channel_and_the_chain_comes_back_bare(
    daemon: Daemon, tmp_path: Path
) -> None:
    """Asked for in the list, taken once, and what is then packed holds no key; others' keys are not sent bare."""
    name = certificate_of("web1")
    trust = await daemon.enrolled("web1", tmp_path)
    await daemon.store.offer([(name, "web1", 0)], daemon.now)
    step = AskCsr(name, "web1", Reason.MISSING)
    await signing.ask(step, daemon.desired, daemon.store, daemon._state, floor=0, now=daemon.now)
    async with daemon.link(trust, tmp_path) as link:
        (told,) = (await link.assignments()).assignments
        assert told.request is not None
        asked = Wanted(
            name, told.request.generation, KeyType(told.request.key_type), told.request.identifiers
        )
        csr = OwnKeys(tmp_path / "own").csr(asked)
        await link.csr(name, 1, csr)
        (after,) = (await link.assignments()).assignments
        with pytest.raises(NotAllowed):
            await link.csr(name, 2, csr)
        with pytest.raises(MessageInvalid):
            await link.csr(name, 1, "x" * 60_000)

    with pytest.raises(MessageInvalid, match="too_long"):
        decode(CsrMessage, json.dumps({"csr": "x" * MAX_CSR}).encode())
    assert after.request is None
    assert daemon._state.generation_numbers(name) == frozenset()


async def test_what_the_daemon_has_the_key_of_is_not_sent_for_the_consumers_own(daemon: Daemon) -> None:
    """A certificate that has just changed its custody: what is there goes nowhere any more."""
    await daemon.issue("web1")
    facts = await daemon.store.facts()
    bundles = daemon.board._bundles

    with pytest.raises(NotAllowed, match="is to have one of its own"):
        await daemon.board.bundle("web1", certificate_of("web1"), 1)
    assert bundles.asked(certificate_of("web1"), "web1", 1, facts=facts) is None
