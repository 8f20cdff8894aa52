"""The authority's edge and the http-01 responder against Pebble on loopback, without root."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from certfan import pki
from certfan.core.issuance import AuthorizationStatus, OrderSeen, OrderStatus
from certfan.core.model import Authority
from certfan.daemon.authority import AcmeAuthority, make_account_key
from certfan.daemon.challenges.http01 import Responder
from certfan.daemon.listeners import Listener
from certfan.errors import AuthorityRefused
from tests.lab import machine
from tests.lab.pebble import BLOCKED, LoopbackDns, Pebble, free_port

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        machine.pebble_program() is None or not LoopbackDns.available(), reason="pebble is not installed"
    ),
]
KEY = make_account_key()
FETCHES = 3  # Pebble validates every challenge so often
EAB_KEY = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQp12"
POLL = 0.02  # seconds; finalize is always answered `processing` first


class Rig:
    """One Pebble, one responder on the port where it validates, one account."""

    def __init__(self, folder: Path, **options: Any) -> None:
        port = free_port()
        self.folder = folder
        self.dns = LoopbackDns(folder)
        self.pebble = Pebble(folder, self.dns.server, http_port=port, retry_after=0, **options)
        self.tokens: dict[str, str] = {}
        self.waiting: dict[str, asyncio.Semaphore] = {}
        self.places: set[str] = set()
        self.responder = Responder(self.tokens.get, self._fetched)
        self.listener = Listener("127.0.0.1", port)
        self.requests = 0
        self.acme = self.client()

    def client(self, key: bytes = KEY, account: str | None = None, **spec: Any) -> AcmeAuthority:
        fields = {"contact": ("mailto:admin@example.org",), "ca_file": str(self.pebble.ca_file), **spec}
        found = Authority("pebble", self.pebble.directory_url, **fields)
        return AcmeAuthority(found, account_key_pem=key, account_uri=account, clock=now)

    @asynccontextmanager
    async def other(self, *args: Any, **spec: Any) -> AsyncIterator[AcmeAuthority]:
        """A client of its own for a while."""
        client = self.client(*args, **spec)
        try:
            yield client
        finally:
            await client.close()

    async def start(self) -> None:
        self.dns.start()
        self.pebble.start()
        await self.responder.start([self.listener])

    async def stop(self) -> None:
        await self.acme.close()
        await self.responder.stop()
        self.pebble.stop()
        self.dns.stop()

    def _fetched(self, token: str, place: str) -> None:
        self.places.add(place)
        self.waiting[token].release()

    async def issue(self, *names: str, issuer: str | None = None, replaces: str | None = None) -> pki.Pair:
        """Order, prove, finalize and download by hand."""
        key = pki.make_key()
        csr = pki.make_csr(key, names)
        order = await self.acme.new_order(csr, profile="default", replaces=replaces)
        for url in order.authorizations:
            await self._prove(url)
        order = await self.acme.finalize(order.finalize, csr, order_url=order.url)
        order = await self._until(order, lambda seen: seen.certificate is not None)
        assert order.certificate is not None
        return pki.load_pair(key, await self.acme.certificate(order.certificate, issuer=issuer))

    async def management(self, path: str, body: dict[str, str] | None = None) -> str:
        return await asyncio.to_thread(self.pebble.management, path, body)

    async def _prove(self, url: str) -> None:
        authorization = await self.acme.authorization(url)
        if authorization.status is AuthorizationStatus.VALID:  # that of an order before, used again
            return
        challenge = next(c for c in authorization.challenges if c.kind == "http-01")
        self.tokens[challenge.token] = self.acme.key_authorization(challenge.token)
        hits = self.waiting[challenge.token] = asyncio.Semaphore(0)
        await self.acme.answer(challenge.url)
        for _ in range(FETCHES):
            await hits.acquire()
        while (authorization := await self.acme.authorization(url)).status is AuthorizationStatus.PENDING:
            await asyncio.sleep(POLL)
        del self.tokens[challenge.token]
        assert authorization.status is AuthorizationStatus.VALID, authorization

    async def _until(self, order: OrderSeen, done: Callable[[OrderSeen], bool]) -> OrderSeen:
        while not done(order):
            assert order.status is not OrderStatus.INVALID, order.problem
            await asyncio.sleep(POLL)
            order = await self.acme.order(order.url)
        return order


def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture
async def rig(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    rig = Rig(tmp_path, **getattr(request, "param", {}))
    await rig.start()
    yield rig
    await rig.stop()


async def test_the_account_of_a_key_is_the_same_at_every_registration_and_is_used_by_url(rig: Rig) -> None:
    """A lost answer costs nothing, and a later start looks nothing up."""
    first = await rig.acme.register()
    second = await rig.acme.register()
    async with rig.other(KEY, first) as later:
        order = await later.new_order(pki.make_csr(pki.make_key(), ["later.example.test"]), profile="default")

    assert first == second
    assert order.status is OrderStatus.PENDING


async def test_an_order_becomes_a_chain_that_ends_in_the_authoritys_root(rig: Rig) -> None:
    """Two names through the responder on Pebble's own validation port; the chain fits key, names and root."""
    await rig.acme.register()

    async with asyncio.timeout(20):
        pair = await rig.issue("a.example.test", "b.example.test")

    names = ["a.example.test", "b.example.test"]
    roots = rig.pebble.roots_file.read_bytes()
    leaf = pki.verify_chain(pair.fullchain_pem, names=names, now=now(), roots_pem=roots)
    assert leaf.names == tuple(names)
    assert rig.places == {"a.example.test from 127.0.0.1", "b.example.test from 127.0.0.1"}
    assert rig.acme.server_date is not None


@pytest.mark.parametrize("rig", [{"nonce_reject": 50}], indirect=True)
async def test_ten_orders_at_once_succeed_while_half_of_all_nonces_are_refused(rig: Rig) -> None:
    """The library alone retries once, and lost a quarter of its orders at half that rate."""
    await rig.acme.register()
    at_once = asyncio.Semaphore(5)

    async def issue(name: str) -> pki.Pair:
        async with at_once:
            return await rig.issue(name)

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        started = [tasks.create_task(issue(f"n{number}.example.test")) for number in range(10)]

    assert len({task.result().leaf.serial for task in started}) == 10


async def test_a_blocked_name_is_refused_by_its_type(rig: Rig) -> None:
    """With the name in the text and a hint what to do."""
    await rig.acme.register()
    csr = pki.make_csr(pki.make_key(), ["ok.example.test", f"www.{BLOCKED}"])

    with pytest.raises(AuthorityRefused) as caught:
        await rig.acme.new_order(csr, profile="default")

    assert caught.value.type == "urn:ietf:params:acme:error:rejectedIdentifier"
    assert f"www.{BLOCKED}" in caught.value.text
    assert caught.value.hint == "remove the name, or choose another authority for it"


async def test_an_unknown_profile_is_refused_before_anything_is_ordered(rig: Rig) -> None:
    """The names that it could have been are in the hint."""
    await rig.acme.register()

    with pytest.raises(AuthorityRefused) as caught:
        await rig.acme.new_order(pki.make_csr(pki.make_key(), ["a.example.test"]), profile="gold")

    assert caught.value.type.endswith(":invalidProfile")
    assert caught.value.hint == "choose a profile of: default, minute, shortlived"


async def test_a_bad_request_is_refused_as_such(rig: Rig) -> None:
    """Finalizing with other names than were ordered."""
    await rig.acme.register()
    order = await rig.acme.new_order(pki.make_csr(pki.make_key(), ["a.example.test"]), profile="default")
    await rig._prove(order.authorizations[0])

    with pytest.raises(AuthorityRefused, match="refused to finalize"):
        csr = pki.make_csr(pki.make_key(), ["b.example.test"])
        await rig.acme.finalize(order.finalize, csr, order_url=order.url)


async def test_an_authority_that_restarted_is_used_again(rig: Rig) -> None:
    """Connections, nonces and the account died with it; registering again is all it takes."""
    await rig.acme.register()
    await asyncio.to_thread(rig.pebble.stop)
    await asyncio.to_thread(rig.pebble.start)

    with pytest.raises(AuthorityRefused) as caught:
        await rig.acme.new_order(pki.make_csr(pki.make_key(), ["a.example.test"]), profile="default")
    await rig.acme.register()
    async with asyncio.timeout(20):
        await rig.issue("a.example.test")

    assert caught.value.type.endswith(":accountDoesNotExist")


async def test_a_window_is_suggested_moves_and_is_used_up_by_one_replacement(rig: Rig) -> None:
    """ARI from the certificate alone; a second order for the same predecessor is told so (RFC 9773)."""
    await rig.acme.register()
    pair = await rig.issue("a.example.test")
    cert_id = pki.renewal_id(pair.cert_pem)
    assert cert_id is not None

    suggested = await rig.acme.renewal_info(cert_id)
    start, end = now() - timedelta(hours=2), now() - timedelta(hours=1)
    moved = {
        "suggestedWindow": {"start": start.isoformat(), "end": end.isoformat()},
        "explanationURL": "https://ca.example.test/why",
    }
    answer = {"certificate": pair.cert_pem.decode(), "ariResponse": json.dumps(moved)}
    await rig.management("/set-renewal-info/", answer)
    now_due = await rig.acme.renewal_info(cert_id)
    await rig.issue("a.example.test", replaces=cert_id)
    with pytest.raises(AuthorityRefused) as caught:
        await rig.issue("a.example.test", replaces=cert_id)

    assert suggested is not None
    assert pair.leaf.not_before < suggested.start < suggested.end < pair.leaf.not_after
    assert suggested.retry_after is not None
    assert now_due is not None
    assert (now_due.start, now_due.end) == (start, end)
    assert now_due.explanation_url == "https://ca.example.test/why"
    assert (caught.value.type.rpartition(":")[2], caught.value.status) == ("alreadyReplaced", 409)


async def test_a_certificate_is_revoked_by_its_account_or_by_its_own_key(rig: Rig) -> None:
    """Each once in effect, however often it is asked for."""
    await rig.acme.register()
    ours, lost = await rig.issue("a.example.test"), await rig.issue("b.example.test")

    for _ in range(2):
        await rig.acme.revoke(ours.leaf.der, 4)
    async with rig.other(make_account_key()) as nobody:
        with pytest.raises(AuthorityRefused):
            await nobody.revoke(lost.leaf.der, 1, key_pem=pki.make_key())
        await nobody.revoke(lost.leaf.der, 1, key_pem=lost.key_pem)

    reasons = {}
    for pair in (ours, lost):
        status = json.loads(await rig.management(f"/cert-status-by-serial/{pair.leaf.serial}"))
        assert status["Status"] == "Revoked"
        reasons[pair.leaf.names[0]] = status["Reason"]
    assert reasons == {"a.example.test": 4, "b.example.test": 1}


@pytest.mark.parametrize("kind", ["ecdsa-p256", "ecdsa-p384", "rsa-2048"])
async def test_an_account_goes_on_with_another_key_and_the_former_one_has_none(rig: Rig, kind: str) -> None:
    """An order of before is looked at, proved and finalized by the new key."""
    uri = await rig.acme.register()
    new = pki.make_key(kind)

    await rig.acme.change_key(new)
    async with asyncio.timeout(20):
        await rig.issue("a.example.test")
    async with rig.other(KEY) as former, rig.other(new) as current:
        found = [await former.find_account(), await current.find_account()]
    taken = make_account_key()
    async with rig.other(taken) as somebody:
        await somebody.register()
    with pytest.raises(AuthorityRefused, match=f"the new key is that of .*, not of {uri}"):
        await rig.acme.change_key(taken)

    assert found == [None, uri]


@pytest.mark.parametrize("rig", [{"eab_keys": {"kid-1": EAB_KEY}}], indirect=True)
async def test_only_customers_get_an_account_where_the_authority_wants_so(rig: Rig) -> None:
    """Told before anything is sent; a wrong MAC key is refused, the right one binds."""
    right, wrong = rig.folder / "right.key", rig.folder / "wrong.key"
    for path, text in ((right, EAB_KEY), (wrong, EAB_KEY.swapcase())):
        path.touch(mode=0o600)
        path.write_text(text)

    with pytest.raises(AuthorityRefused, match="external account binding"):
        await rig.acme.register()
    async with rig.other(eab_kid="kid-1", eab_key_file=str(wrong)) as stranger:
        with pytest.raises(AuthorityRefused, match="unauthorized"):
            await stranger.register()
    async with rig.other(eab_kid="kid-1", eab_key_file=str(right)) as customer:
        uris = [await customer.register(), await customer.register()]

    assert await rig.acme.find_account() == uris[0] == uris[1]


@pytest.mark.parametrize("rig", [{"alternate_roots": 2}], indirect=True)
async def test_each_of_the_chains_offered_can_be_chosen_by_its_root(rig: Rig) -> None:
    """Pebble signs by one intermediate that three roots have signed; a root that it has not leaves the first."""
    await rig.acme.register()
    roots = [(await asyncio.to_thread(rig.pebble.root_pem, number)).encode() for number in range(3)]
    names = [pki.top_names(root) for root in roots]

    for root, (name,) in zip(roots, names, strict=True):
        pair = await rig.issue("a.example.test", issuer=name)
        pki.verify_chain(pair.fullchain_pem, names=["a.example.test"], now=now(), roots_pem=root)
    default = await rig.issue("a.example.test", issuer="Nobody")

    assert len(set(names)) == 3
    pki.verify_chain(default.fullchain_pem, names=["a.example.test"], now=now(), roots_pem=roots[0])
    assert rig.pebble.roots_file.read_bytes() == b"".join(roots)


async def test_an_authorization_that_nobody_wants_any_more_is_given_up(rig: Rig) -> None:
    """It can never become valid, and its order neither."""
    await rig.acme.register()
    order = await rig.acme.new_order(pki.make_csr(pki.make_key(), ["a.example.test"]), profile="default")

    await rig.acme.deactivate(order.authorizations[0])

    seen = await rig.acme.authorization(order.authorizations[0])
    assert seen.status is AuthorizationStatus.DEACTIVATED
    assert (await rig.acme.order(order.url)).status is OrderStatus.INVALID


async def test_an_account_takes_the_contacts_of_the_config(rig: Rig) -> None:
    """And says which one it does not take."""
    uri = await rig.acme.register()

    async with rig.other(KEY, uri, contact=("mailto:other@example.org",)) as later:
        await later.update_contacts()
    async with rig.other(KEY, uri, contact=("tel:+123",)) as wrong:
        with pytest.raises(AuthorityRefused) as caught:
            await wrong.update_contacts()

    assert caught.value.type.endswith(":unsupportedContact")


@pytest.mark.parametrize("rig", [{"nonce_reject": 0}], indirect=True)
async def test_a_certificate_takes_about_seven_requests(rig: Rig) -> None:
    """newOrder, authorization, answer, authorization, finalize, order, certificate: a poll follows the hit."""
    await rig.acme.register()
    await rig.issue("warm.example.test")
    log = rig.pebble.log_path
    before, cpu, many = posts_and_heads(log), time.process_time(), 30
    for number in range(many):
        await rig.issue(f"n{number}.example.test")
    cpu_ms = 1000 * (time.process_time() - cpu) / many
    requests = (posts_and_heads(log) - before) / many
    print(f"{requests:.2f} requests and {cpu_ms:.1f} ms of CPU a certificate, responder and keys included")

    assert requests <= 10  # seven, and on a busy machine a poll more


def posts_and_heads(log: Path) -> int:
    """How many requests Pebble says it had."""
    return sum(log.read_text().count(f" {method} /") for method in ("POST", "HEAD", "GET"))
