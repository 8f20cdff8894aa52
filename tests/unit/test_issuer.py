"""Orders on the real store and state folder: cut off anywhere and resumed, refused, mixed up, and what is kept."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from certfan import pki, tls
from certfan.core.model import Authority, Certificate, Desired, Generation, Identifier, Reason
from certfan.core.steps import Issue
from certfan.daemon.authority import AcmeAuthority, make_account_key
from certfan.daemon.disk import Disk
from certfan.daemon.issuing.accounts import Accounts
from certfan.daemon.issuing.issuer import Issuer
from certfan.daemon.issuing.known import Known
from certfan.daemon.journal import Journal
from certfan.daemon.state import StateFolder
from certfan.daemon.store import Store
from certfan.errors import (
    AuthorityRefused,
    AuthorityUnreachable,
    ChainInvalid,
    ChallengeFailed,
    OrderUnanswered,
    PairMismatch,
)
from tests.unit.odd_authority import OddAuthority, problem
from tests.unit.scripted_authority import Gate, ScriptedCa, refused

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
LATER = NOW + timedelta(minutes=90)
NAME, OTHER = "a.example", "b.example"
LAB = Authority("lab", "https://ca.example/dir")
ISSUE = Issue(NAME, Reason.MISSING, "lab")


def clock() -> datetime:
    return NOW


def wanted(*names: str, authority: Authority = LAB) -> Desired:
    """A config with one certificate called NAME."""
    certificate = Certificate(
        NAME, tuple(map(Identifier, names or (NAME, OTHER))), consumers=("web1",), authority=authority.name
    )
    return Desired({authority.name: authority}, {NAME: certificate}, {})


@dataclass
class Place:
    """A daemon's disk, and as many lives of its issuer as a test wants."""

    store: Store
    state: StateFolder
    ca: ScriptedCa = field(default_factory=lambda: ScriptedCa(NOW))

    def life(self, gate: Gate | None = None, connect: Any = None) -> Issuer:
        """Start anew, with nothing but what is on disk."""
        gate = gate or Gate()
        store = gate.around(self.store)

        def connected(*given: Any) -> Any:
            return gate.around((connect or self.ca.connect)(*given))

        journal = Journal(self.store, clock)
        accounts = Accounts(
            store=store,
            state=self.state,
            journal=journal,
            connect=connected,
            make_key=make_account_key,
            clock=clock,
        )
        issuer = Issuer(
            store=store, state=self.state, journal=journal, accounts=accounts, disk=Disk(), clock=clock
        )
        self.ca.fetched = issuer.tokens.fetched
        return issuer

    async def issue(self, desired: Desired | None = None) -> Generation:
        """Issue in a life of its own."""
        issuer = self.life()
        await issuer.open()
        return await issuer.issue(desired or wanted(), ISSUE, floor=0)

    async def cut_at(self, point: int, desired: Desired | None = None) -> bool:
        """Issue, and be killed at that point; False when the order ended before."""
        gate = Gate(point)
        issuer = self.life(gate)
        trying = asyncio.create_task(issuer.issue(desired or wanted(), ISSUE, floor=0))
        stopped = asyncio.create_task(gate.reached.wait())
        async with asyncio.timeout(10):
            await asyncio.wait({trying, stopped}, return_when=asyncio.FIRST_COMPLETED)
        for task in (trying, stopped):
            task.cancel()
        await asyncio.wait({trying, stopped})
        return gate.reached.is_set()

    async def cut_after(self, name: str) -> None:
        """Issue, and be killed right after the first call of that name."""
        gate = Gate()
        await Place(self.store, self.state, ScriptedCa(NOW)).rehearse(gate)
        assert await self.cut_at(gate.names.index(name) + 1)

    async def rehearse(self, gate: Gate) -> None:
        """Pass every point once, on a disk of its own."""
        folder = self.state.path.parent / f"rehearsal-{id(gate)}"
        store = await Store.open(_made(folder) / "certfan.db", clock)
        try:
            with StateFolder(folder) as state:
                await Place(store, state, self.ca).life(gate).issue(wanted(), ISSUE, floor=0)
        finally:
            await store.close()

    def key(self, number: int = 1) -> bytes:
        """The private key of a generation."""
        return self.state.read_generation(NAME, number)["privkey.pem"]


def _made(folder: Path) -> Path:
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


@pytest.fixture(autouse=True)
def roots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust the scripted authority: no machine's own roots do."""
    monkeypatch.setattr(tls, "system_roots_pem", lambda: ScriptedCa(NOW).root_pem)


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async for one in _places(tmp_path / "state"):
        yield one


async def _places(folder: Path) -> AsyncIterator[Place]:
    with StateFolder(_made(folder)) as state:
        store = await Store.open(state.database, clock)
        yield Place(store, state)
        await store.close()


# Cut off and resumed


async def test_an_order_cut_off_after_any_effect_is_resumed(tmp_path: Path) -> None:
    """Killed after any call that changes store or authority: one account, one key, at most one order more."""
    rehearsal = Gate()
    async for place in _places(tmp_path / "whole"):
        await place.life(rehearsal).issue(wanted(), ISSUE, floor=0)
    doubled = []
    for point, name in enumerate(rehearsal.names, 1):
        async for place in _places(tmp_path / str(point)):
            assert await place.cut_at(point), name
            if not (await place.store.facts()).generations:
                await place.issue()

            assert [str(one) for one in (await place.store.facts()).generations[NAME]] == [f"{NAME}@1"]
            assert len(place.ca.accounts) == 1
            assert await place.store.open_issuances() == ()
            assert await place.store.tokens() == {}
            assert pki.load_pair(place.key(), place.state.read_generation(NAME, 1)["fullchain.pem"])
            doubled += [name] * (place.ca.calls["new_order"] - 1)

    print(f"issuer: cut off at {rehearsal.passed} points, a second order after {doubled}")
    assert doubled == ["new_order"]
    assert {"begin_issuance", "register", "record_token", "answer", "finalize", "record_generation"} <= set(
        rehearsal.names
    )


async def test_a_token_promised_by_an_earlier_life_is_still_answered(place: Place) -> None:
    """The authority may come for it while nobody has looked at the order yet."""
    await place.cut_after("record_token")

    issuer = place.life()
    await issuer.open()

    answer = issuer.tokens.key_authorization("1-a_example")
    assert answer is not None
    assert answer.startswith("1-a_example.")
    assert issuer.tokens.key_authorization("unheard-of") is None


async def test_a_number_that_a_consumer_has_seen_is_never_ordered(place: Place) -> None:
    """Though it is ahead of what is remembered here, and the order begins with what was known before."""
    issuer, known = place.life(), Known.of(await place.store.facts(), NAME)
    await place.store.keep_number(NAME, 7)

    generation = await issuer.issue(wanted(), ISSUE, floor=0, known=known)

    assert generation.number == 8
    assert pki.load_pair(place.key(8), place.state.read_generation(NAME, 8)["fullchain.pem"])


async def test_a_number_whose_chain_is_kept_is_never_ordered_again(place: Place) -> None:
    """A restored database remembers less than the state folder holds: no pair of there is written over."""
    for number in (1, 4):
        place.state.generation_key(NAME, number, pki.make_key)
    place.state.save_chain(NAME, 4, b"a chain that the store has no word of")
    before = place.state.read_generation(NAME, 4)

    generation = await place.life().issue(wanted(), ISSUE, floor=0)

    assert generation.number == 5
    assert before == place.state.read_generation(NAME, 4)


@pytest.mark.parametrize("left", [b"", b"-----BEGIN PRIVATE KEY-----\nMIGHAgEA"])
async def test_a_key_that_was_cut_short_is_passed_over(place: Place, left: bytes) -> None:
    """The machine crashed while it was written, before anybody had heard of it: the next number gets a new one."""
    place.state.generation_key(NAME, 1, lambda: left)

    generation = await place.issue()

    assert generation.number == 2
    assert pki.load_pair(place.key(2), place.state.read_generation(NAME, 2)["fullchain.pem"])


async def test_an_open_order_whose_key_is_damaged_is_given_up(place: Place) -> None:
    """It says so, and the next one has a key of its own."""
    await place.cut_after("record_order_url")
    (place.state.path / f"generations/{NAME}@1.privkey.pem").write_bytes(b"")

    generation = await place.issue()

    (closed, _) = await place.store.closed_issuances(NAME)
    assert generation.number == 2
    assert closed.problem is not None and "its key cannot be read" in closed.problem.detail


async def test_an_order_begins_with_what_was_known_without_asking_the_store_again(place: Place) -> None:
    """What the plan saw a moment ago is good enough; the store has the last word where the intent is written."""
    gate = Gate()
    issuer, known = place.life(gate), Known.of(await place.store.facts(), NAME)

    await issuer.issue(wanted(), ISSUE, floor=0, known=known)

    assert "begin_issuance" in gate.names
    assert "facts" not in gate.names


# Accounts


async def test_an_account_is_registered_once_and_then_used_by_its_url(place: Place) -> None:
    """The second life connects with the URL that the first has recorded, and registers nothing."""
    await place.issue()
    await place.store.ask_renewal(NAME, NOW)
    await place.issue()

    assert place.ca.calls["register"] == 1
    assert place.ca.connected == [None, "https://ca.example/account/1"]


async def test_a_lost_account_is_registered_again_with_its_key_at_once(place: Place) -> None:
    """No try is spent on it, and the order of the lost account is forgotten with it."""
    await place.cut_after("record_order_url")
    (key,) = place.ca.accounts
    place.ca.lose_accounts()

    generation = await place.issue()

    assert generation.number == 1
    assert list(place.ca.accounts) == [key]
    (closed, _) = await place.store.closed_issuances(NAME)
    assert closed.problem is not None
    assert "account.lost" in [event.name for event in await place.store.last_events(10)]


async def test_many_orders_that_hear_of_the_loss_register_once(place: Place) -> None:
    """They share one client: the first one's remedy is everybody's."""
    await place.issue()
    names = [f"n{number}.example" for number in range(5)]
    certificates = {
        name: Certificate(name, (Identifier(name),), consumers=("web1",), authority="lab") for name in names
    }
    desired = Desired({"lab": LAB}, certificates, {})
    place.ca.lose_accounts()

    issuer = place.life()
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(issuer.issue(desired, Issue(name, Reason.MISSING, "lab"), floor=0))
            for name in names
        ]

    assert [str(task.result()) for task in tasks] == [f"{name}@1" for name in names]
    assert place.ca.calls["register"] == 2


# What is asked of an order


async def _kinds_asked(place: Place, issuer: Issuer, *names: str) -> dict[str, int]:
    """Return how often each kind of exchange was needed for one more certificate."""
    before = place.ca.calls.copy()
    await issuer.issue(wanted(*names), ISSUE, floor=0)
    kinds = ("new_order", "authorization", "answer", "order", "finalize", "certificate")
    return {kind: place.ca.calls[kind] - before[kind] for kind in kinds}


async def test_an_order_is_looked_at_no_more_once_the_authority_has_proved_to_be_prompt(place: Place) -> None:
    """The first order of a life is; each later one is finalized as soon as every token of it was fetched."""
    issuer = place.life()

    asked = [await _kinds_asked(place, issuer) for _ in range(3)]

    assert [one["order"] for one in asked] == [1, 0, 0]
    assert [one["finalize"] for one in asked] == [1, 1, 1]
    assert [one["answer"] for one in asked] == [2, 2, 2]


async def test_an_order_that_is_not_ready_after_all_is_looked_at_and_costs_no_failure(place: Place) -> None:
    """The authority says so to the CSR; the next order is looked at first again, and the one after it is not."""
    issuer = place.life()
    await _kinds_asked(place, issuer)
    place.ca.late_names = {OTHER}

    asked = [await _kinds_asked(place, issuer)]
    place.ca.late_names = set()
    asked += [await _kinds_asked(place, issuer) for _ in range(2)]

    assert [(one["order"], one["finalize"]) for one in asked] == [(1, 2), (1, 1), (0, 1)]
    assert await place.store.attempts() == {}
    assert len(await place.store.closed_issuances(NAME)) == 4
    assert {one.problem for one in await place.store.closed_issuances(NAME)} == {None}


async def test_an_order_with_a_name_whose_token_nobody_fetched_is_looked_at_when_its_time_has_come(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though every other token was fetched: it is neither looked at sooner nor finalized unlooked at."""
    issuer, looked = place.life(), []
    await _kinds_asked(place, issuer)
    place.ca.unfetched_names = {NAME}  # validated by what the authority has kept
    monkeypatch.setattr("certfan.core.issuance.SHORTEST_WAIT", timedelta(milliseconds=100))

    async def on_look() -> None:
        looked.append(time.monotonic())

    place.ca.on_look, began = on_look, time.monotonic()
    asked = await _kinds_asked(place, issuer)

    assert (asked["order"], asked["finalize"]) == (1, 1)
    assert looked[0] - began > 0.1


@pytest.mark.parametrize("kind", ["orderNotReady", "malformed", "unauthorized"])
async def test_an_order_that_turned_invalid_is_given_up_for_its_own_reason_after_a_refused_csr(
    place: Place, kind: str
) -> None:
    """The refusal, in whichever words, tells nothing of whose name it was; the look after it does."""
    issuer = place.life()
    await _kinds_asked(place, issuer)
    place.ca.unreachable_names = {OTHER}
    place.ca.scripts["finalize"] = [refused(kind, 403)]

    with pytest.raises(ChallengeFailed) as caught:
        await issuer.issue(wanted(), ISSUE, floor=0)

    assert caught.value.text == f"{NAME}: {OTHER}: got 404"
    assert place.ca.calls["finalize"] == 2


# Refusals


async def test_the_key_is_kept_across_tries_that_failed(place: Place) -> None:
    """Twice refused, then issued: the same number and the key of the first try."""
    place.ca.scripts["new_order"] = [refused("rejectedIdentifier"), refused("rejectedIdentifier")]
    for _ in range(2):
        with pytest.raises(AuthorityRefused, match="rejectedIdentifier"):
            await place.issue()
    key = place.key()

    generation = await place.issue()

    assert (generation.number, place.key()) == (1, key)
    assert place.state.generation_numbers(NAME) == {1}


async def test_a_changed_definition_abandons_the_order_under_way(place: Place) -> None:
    """The order for the old names is closed with its reason; the generation has the new ones."""
    await place.cut_after("record_order_url")

    generation = await place.issue(wanted(NAME, "c.example"))

    assert {str(i) for i in generation.identifiers} == {NAME, "c.example"}
    (closed, _) = await place.store.closed_issuances(NAME)
    assert closed.problem is not None
    assert closed.problem.detail.startswith(f"{NAME}: its definition or its authority has changed")
    assert [order.names for order in place.ca.orders.values()] == [(NAME, OTHER), (NAME, "c.example")]


async def test_a_rate_limit_keeps_the_order(place: Place) -> None:
    """What was validated stays validated: the try after Retry-After goes on with the same order."""
    place.ca.scripts["finalize"] = [refused("rateLimited", 429, not_before=LATER)]
    with pytest.raises(AuthorityRefused) as caught:
        await place.issue()

    generation = await place.issue()

    assert caught.value.not_before == LATER
    assert generation.number == 1
    assert (place.ca.calls["new_order"], place.ca.calls["answer"]) == (1, 2)


async def test_an_order_whose_answer_is_lost_is_a_try_one_that_never_left_is_none(place: Place) -> None:
    """The authority may have counted the one, and cannot have heard of the other."""
    place.ca.scripts["new_order"] = [
        AuthorityUnreachable("the answer broke off", was_sent=True, subject="lab"),
        AuthorityUnreachable("connection refused", subject="lab"),
    ]
    with pytest.raises(OrderUnanswered, match="the answer broke off"):
        await place.issue()
    with pytest.raises(AuthorityUnreachable):
        await place.issue()

    assert 1 == (await place.issue()).number


async def test_an_order_that_the_authority_has_lost_is_ordered_again_with_the_same_key(place: Place) -> None:
    """404 is a failed try; the next one begins anew."""
    await place.cut_after("record_order_url")
    key = place.key()
    place.ca.orders.clear()

    with pytest.raises(AuthorityRefused, match="malformed"):
        await place.issue()
    generation = await place.issue()

    assert (generation.number, place.key()) == (1, key)
    assert place.ca.calls["new_order"] == 2


async def test_a_failed_challenge_names_its_identifier_and_the_look_to_take(place: Place) -> None:
    """Also when the order became invalid while it was waited for, whose own problem names nobody."""
    place.ca.unreachable_names = {OTHER}

    with pytest.raises(ChallengeFailed) as caught:
        await place.issue()

    assert caught.value.text == f"{NAME}: {OTHER}: got 404"
    url = f"http://{OTHER}/.well-known/acme-challenge/"
    assert (
        caught.value.hint == f"look at the vhost; look with: curl -v {url} , then run: certfan renew {NAME}"
    )
    assert await place.store.tokens() == {}


# Chains


async def test_a_chain_for_another_key_is_refused_and_never_recorded(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it reaches the disk; the next try orders anew with the same key."""
    sign = place.ca.sign
    theirs = ec.generate_private_key(ec.SECP256R1()).public_key()
    with monkeypatch.context() as mixed_up:
        mixed_up.setattr(place.ca, "sign", lambda csr: sign(csr, theirs))
        with pytest.raises(PairMismatch, match="private key does not belong"):
            await place.issue()
    assert (await place.store.facts()).generations == {}
    assert set(place.state.read_generation(NAME, 1)) == {"privkey.pem"}
    key = place.key()

    assert (await place.issue()).number == 1
    assert place.key() == key


async def test_a_chain_that_does_not_end_in_the_roots_waits_for_its_mending(
    place: Place, tmp_path: Path
) -> None:
    """The wrong roots_file costs no second order: once mended, the same certificate is taken."""
    roots = tmp_path / "roots.pem"
    roots.write_bytes(pki.make_placeholder([NAME], NOW)[1])
    with pytest.raises(ChainInvalid, match="ends in none of the roots") as caught:
        await place.issue(wanted(authority=replace(LAB, roots_file=str(roots))))

    generation = await place.issue()

    assert caught.value.hint == f"check roots_file of authority lab and the clock; run: certfan renew {NAME}"
    assert generation.number == 1
    assert place.ca.calls["new_order"] == 1


# The real client, over HTTPS


@pytest.mark.parametrize(
    ("path", "kind", "status", "orders_open"),
    [
        ("/newOrder", "rateLimited", 429, 1),
        ("/finalize/1", "rateLimited", 429, 1),
        ("/finalize/1", "badCSR", 400, 0),
    ],
)
async def test_a_refusal_over_https_names_the_authority_the_reason_and_the_remedy(
    place: Place, ca: OddAuthority, path: str, kind: str, status: int, orders_open: int
) -> None:
    """A rate limit tells until when and keeps the order; a request that is bad for good gives it up; the key stays."""
    ca.order = {"status": "ready", "expires": "2026-12-01T00:00:00Z"}
    answer = {"detail": "too many" if status == 429 else "no", "headers": {"Retry-After": "5400"}}
    ca.twist = lambda _method, asked: problem(kind, status, **answer) if asked == path else None
    authority = Authority("lab", f"{ca.url}/dir", ca_file=str(ca.ca_file))
    clients: list[AcmeAuthority] = []

    def connect(spec: Authority, key: bytes, uri: str | None) -> AcmeAuthority:
        clients.append(AcmeAuthority(spec, account_key_pem=key, account_uri=uri, clock=clock))
        return clients[-1]

    with pytest.raises(AuthorityRefused) as caught:
        await place.life(connect=connect).issue(wanted(NAME, authority=authority), ISSUE, floor=0)
    for client in clients:
        await client.close()

    assert "authority lab refused " in caught.value.text
    assert kind in caught.value.text
    assert caught.value.hint
    assert caught.value.not_before == LATER
    assert len(await place.store.open_issuances()) == orders_open
    assert place.key()


async def test_the_next_order_is_made_ready_while_another_has_the_place_and_begins_when_that_is_issued(
    place: Place,
) -> None:
    """With one place: two intents, but no second newOrder before the first is finalized; its chain is fetched meanwhile."""
    gate, second = Gate(), asyncio.Event()  # there is a second order
    real = place.ca.connect

    def connect(*given: Any) -> Any:
        client = real(*given)
        ordered, fetched = client.new_order, client.certificate

        async def new_order(*args: Any, **kwargs: Any) -> Any:
            if place.ca.calls["new_order"]:
                second.set()
            return await ordered(*args, **kwargs)

        async def certificate(*args: Any, **kwargs: Any) -> Any:
            async with asyncio.timeout(10):
                await second.wait()
            return await fetched(*args, **kwargs)

        client.new_order, client.certificate = new_order, certificate
        return client

    issuer = place.life(gate, connect)
    await issuer.open()
    narrow = replace(LAB, orders_at_once=1)
    both = [
        Certificate(name, (Identifier(name),), consumers=("web1",), authority="lab") for name in (NAME, OTHER)
    ]
    desired = Desired({"lab": narrow}, {one.name: one for one in both}, {})
    issues = [Issue(one.name, Reason.MISSING, "lab") for one in both]
    await asyncio.gather(*(issuer.issue(desired, one, floor=0) for one in issues))

    steps = [name for name in gate.names if name in {"begin_issuance", "new_order", "finalize"}]
    assert ["begin_issuance"] * 2 + ["new_order", "finalize"] * 2 == steps
