"""Another program's pair becomes a generation: once, whole, whatever cuts it off, and only if it is good."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from certfan import log, pki
from certfan.core.model import Authority, Identifier, KeyType
from certfan.daemon.desk.adoptions import Adoptions
from certfan.daemon.listeners import Listener
from certfan.daemon.status import app
from certfan.daemon.status.control import adoption as adoption_control
from certfan.errors import ActionRefused, MessageInvalid, UnknownName
from tests.unit.fleet_parts import PAIRS, Cut, Fleet, PowerCut, a_fleet
from tests.unit.planner_parts import DAY, NOW, WWW, make_certificate, make_desired
from tests.unit.status_parts import DOORS

KEY, CHAIN = PAIRS[1]
LEAF = pki.read_leaf(CHAIN)
BODY = {"key": KEY.decode(), "fullchain": CHAIN.decode(), "authority": "ca"}


class Desk:
    """A fleet whose one authority has signed the pairs of the tests."""

    def __init__(self, fleet: Fleet, folder: Path) -> None:
        self.fleet = fleet
        self.roots = folder / "roots.pem"
        self.roots.write_bytes(b"".join(cert for _, cert in PAIRS.values()))
        self.in_flight: set[tuple[str, ...]] = set()
        self.highest = 0
        self.reread = 0
        self.want()

    def want(self, *certificates: Any) -> None:
        ca = Authority("ca", "https://ca/dir", roots_file=str(self.roots))
        self.fleet.desired = replace(make_desired(*certificates), authorities={"ca": ca})

    def adoptions(self, left: list[int] | None = None) -> Adoptions:
        store, state = self.fleet.store, self.fleet.state
        return Adoptions(
            store=store if left is None else Cut(store, left),  # type: ignore[arg-type]
            state=state if left is None else Cut(state, left),  # type: ignore[arg-type]
            journal=self.fleet.journal,
            desired=lambda: self.fleet.desired,
            highest=self.highest_of,
            in_flight=lambda: self.in_flight,
            reread_tokens=self.reread_tokens,
            ring=lambda: None,
            clock=self.fleet.clock,
        )

    async def highest_of(self, name: str) -> int:
        return max(self.highest, await self.fleet.store.highest_number(name))

    async def reread_tokens(self) -> None:
        self.reread += 1

    async def adopt(
        self, name: str = WWW, key: bytes = KEY, chain: bytes = CHAIN, authority: str = "ca"
    ) -> tuple[int, bool]:
        return await self.adoptions().adopt(name, key, chain, authority, uid=0)


@contextlib.asynccontextmanager
async def at_the_desk(desk: Desk, folder: Path) -> AsyncIterator[aiohttp.ClientSession]:
    """Serve the application on a control socket."""
    socket = str(folder / "control.sock")
    runner = await app.start(
        app.make_app(DOORS, others=adoption_control.adoption_routes(desk.adoptions())),
        (Listener(path=socket),),
    )
    try:
        async with aiohttp.ClientSession(
            "http://localhost/api/v1/adoptions/", connector=aiohttp.UnixConnector(path=socket)
        ) as session:
            yield session
    finally:
        await runner.cleanup()


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with a_fleet(tmp_path) as fleet:
        yield Desk(fleet, tmp_path)


async def test_a_pair_becomes_the_first_generation_and_twice_is_once(desk: Desk) -> None:
    """The second call finds it; one event tells of it, with who asked."""
    first, second = await desk.adopt(), await desk.adopt()

    (known,) = await desk.fleet.known()
    (event,) = await desk.fleet.happened("generation.adopted")
    assert [(1, True), (1, False)] == [first, second]
    assert (LEAF.fingerprint, frozenset({Identifier(WWW)}), "ca", NOW) == (
        known.fingerprint,
        known.identifiers,
        known.authority,
        known.issued_at,
    )
    assert pki.public_key_hash(KEY) == known.key
    assert (f"{WWW}@1", 0) == (event.subject, event.fields["uid"])


async def test_it_comes_after_every_number_that_anyone_has_seen(desk: Desk) -> None:
    """A certificate that has generations, or had them on the share, gets the next."""
    await desk.fleet.issue(2)
    desk.highest = 6

    assert (7, False) == await desk.adoptions().adopted(WWW, LEAF.fingerprint)
    assert (7, True) == await desk.adopt()
    assert (7, True) == await desk.adoptions().adopted(WWW, LEAF.fingerprint)


async def test_cut_off_anywhere_it_is_completed_under_the_same_number(desk: Desk) -> None:
    """The power fails before each call to store and state folder in turn; the next call makes one whole generation."""
    cuts = 0
    while True:
        name = f"cut{cuts}.test"
        try:
            await desk.adoptions([cuts]).adopt(name, KEY, CHAIN, "ca", uid=0)
        except PowerCut:
            cuts += 1
        else:
            break
        assert 1 == (await desk.adopt(name))[0]
        assert ["privkey.pem", "fullchain.pem"] == list(desk.fleet.state.read_generation(name, 1))
        assert {1} == desk.fleet.state.generation_numbers(name)

    assert cuts > 3


async def test_an_order_that_waits_is_done_with(desk: Desk) -> None:
    """What is here need not be ordered; its tokens are answered no longer."""
    await desk.fleet.store.begin_issuance(WWW, 1, "ca", (Identifier(WWW),), NOW)

    await desk.adopt()

    assert [] == list(await desk.fleet.store.open_issuances())
    assert 1 == desk.reread


async def test_what_is_due_for_renewal_is_taken_over_all_the_same(desk: Desk) -> None:
    """It is served until its successor is."""
    desk.want(make_certificate())
    desk.fleet.now = LEAF.not_after - timedelta(hours=2)

    assert (1, True) == await desk.adopt()


async def test_a_key_of_another_form_is_kept_in_ours(desk: Desk) -> None:
    """OpenSSL's traditional form, with its parameters before it, is what dehydrated writes."""
    from cryptography.hazmat.primitives import serialization as pem

    key = pem.load_pem_private_key(KEY, None)
    old = key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.TraditionalOpenSSL, pem.NoEncryption())
    parameters = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"

    await desk.adopt(key=parameters + old)

    assert KEY == desk.fleet.state.read_generation(WWW, 1)["privkey.pem"]


@pytest.mark.parametrize(
    ("changed", "error", "text"),
    [
        ({"key": PAIRS[2][0]}, ActionRefused, "does not belong"),
        ({"key": b"-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n"}, ActionRefused, "does not parse"),
        ({"chain": CHAIN[:-40]}, ActionRefused, "truncated"),
        ({"authority": "ce"}, UnknownName, "no authority 'ce' in the config"),
        ({"name": "../x"}, MessageInvalid, "cannot be a certificate's name"),
    ],
    ids=["other key", "no key", "cut chain", "no authority", "no name"],
)  # fmt: skip
async def test_what_is_no_good_pair_changes_nothing(
    desk: Desk, changed: dict[str, Any], error: type[Exception], text: str
) -> None:
    """Each is refused with its cause, and no folder is made for it."""
    with pytest.raises(error, match=text) as refused:
        await desk.adopt(**changed)

    assert "c2VjcmV0" not in str(refused.value)
    assert {} == (await desk.fleet.store.facts()).generations
    assert frozenset() == desk.fleet.state.generation_numbers(WWW)


async def test_a_pair_of_nobody_we_trust_or_of_yesterday_is_refused(desk: Desk) -> None:
    """Neither a chain that ends in none of the roots, nor one that has ended."""
    stranger = pki.make_placeholder([WWW], NOW)
    with pytest.raises(ActionRefused, match="ends in none of the roots"):
        await desk.adopt(key=stranger[0], chain=stranger[1])
    desk.fleet.now = LEAF.not_after + DAY
    with pytest.raises(ActionRefused, match="is valid from"):
        await desk.adopt()


async def test_nothing_is_adopted_that_the_config_would_order_anew(desk: Desk) -> None:
    """Other names, another type of key, or an order under way: an import orders nothing."""
    desk.want(make_certificate(WWW, names=(WWW, "more.example.org")))
    with pytest.raises(ActionRefused, match="names_changed"):
        await desk.adopt()
    desk.want(replace(make_certificate(), key_type=KeyType.RSA_2048))
    with pytest.raises(ActionRefused, match="key_type_changed"):
        await desk.adopt()
    desk.want(make_certificate())
    desk.in_flight = {(WWW,)}
    with pytest.raises(ActionRefused, match="under way"):
        await desk.adopt()


async def test_a_pair_comes_in_from_root_only(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A member of the socket's group is refused before the body is read."""
    monkeypatch.setattr(
        adoption_control, "caller", lambda _: 1000
    )  # the kernel would say 0: tests run as root
    async with at_the_desk(desk, tmp_path) as session, session.put(WWW, json=BODY) as response:
        refused = (response.status, (await response.json())["hint"])

    assert (403, "run: sudo certfan import DIR") == refused
    assert {} == (await desk.fleet.store.facts()).generations


async def test_the_route_takes_a_pair_and_nothing_of_it_is_ever_told(desk: Desk, tmp_path: Path) -> None:
    """A body that is too long, or of another form, is refused; no answer, log line or event has the key in it."""
    heard = io.StringIO()
    log.set_up(level="debug", stream=heard)
    answers = []
    async with at_the_desk(desk, tmp_path) as session:
        for one in (BODY, {**BODY, "more": 1}, {**BODY, "key": "x" * (1 << 16)}, {**BODY, "key": 7}):
            async with session.put(WWW, json=one) as response:
                answers.append((response.status, await response.text()))
        async with session.get(f"{WWW}/{LEAF.fingerprint}") as response:
            answers.append((response.status, await response.text()))

    assert [200, 400, 400, 400, 200] == [status for status, _ in answers]
    assert {"certificate": WWW, "generation": 1, "new": True} == json.loads(answers[0][1])
    assert {"generation": 1, "adopted": True} == json.loads(answers[-1][1])
    told = "".join(text for _, text in answers) + heard.getvalue() + str(await desk.fleet.store.events())
    assert KEY.decode().splitlines()[1] not in told
