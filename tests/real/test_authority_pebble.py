"""The authority's edge and the http-01 responder against Pebble on loopback, without root."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path

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
POLL = 0.02  # seconds; finalize is always answered `processing` first


class Rig:
    """One Pebble, one responder on the port where it validates, one account."""

    def __init__(self, folder: Path, nonce_reject: int) -> None:
        port = free_port()
        self.dns = LoopbackDns(folder)
        self.pebble = Pebble(
            folder, self.dns.server, http_port=port, nonce_reject=nonce_reject, retry_after=0
        )
        self.tokens: dict[str, str] = {}
        self.waiting: dict[str, asyncio.Semaphore] = {}
        self.places: set[str] = set()
        self.responder = Responder(self.tokens.get, self._fetched)
        self.listener = Listener("127.0.0.1", port)
        self.requests = 0
        self.acme = AcmeAuthority(self.spec(), account_key_pem=KEY, account_uri=None, clock=now)

    def spec(self) -> Authority:
        contact = ("mailto:admin@example.org",)
        return Authority(
            "pebble", self.pebble.directory_url, contact=contact, ca_file=str(self.pebble.ca_file)
        )

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

    async def issue(self, *names: str) -> pki.Pair:
        """Order, prove, finalize and download by hand."""
        key = pki.make_key()
        csr = pki.make_csr(key, names)
        order = await self.acme.new_order(csr, profile="default")
        for url in order.authorizations:
            await self._prove(url)
        order = await self.acme.finalize(order.finalize, csr, order_url=order.url)
        order = await self._until(order, lambda seen: seen.certificate is not None)
        assert order.certificate is not None
        return pki.load_pair(key, await self.acme.certificate(order.certificate))

    async def _prove(self, url: str) -> None:
        authorization = await self.acme.authorization(url)
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
    rig = Rig(tmp_path, getattr(request, "param", 5))
    await rig.start()
    yield rig
    await rig.stop()


async def test_the_account_of_a_key_is_the_same_at_every_registration_and_is_used_by_url(rig: Rig) -> None:
    """A lost answer costs nothing, and a later start looks nothing up."""
    first = await rig.acme.register()
    second = await rig.acme.register()
    later = AcmeAuthority(rig.spec(), account_key_pem=KEY, account_uri=first, clock=now)
    order = await later.new_order(pki.make_csr(pki.make_key(), ["later.example.test"]), profile="default")
    await later.close()

    assert first == second
    assert order.status is OrderStatus.PENDING


async def test_an_order_becomes_a_chain_that_ends_in_the_authoritys_root(rig: Rig) -> None:
    """Two names through the responder on Pebble's own validation port; the chain fits key, names and root."""
    await rig.acme.register()

    async with asyncio.timeout(20):
        pair = await rig.issue("a.example.test", "b.example.test")

    names = ["a.example.test", "b.example.test"]
    roots = (await asyncio.to_thread(rig.pebble.root_pem)).encode()
    leaf = pki.verify_chain(pair.fullchain_pem, names=names, now=now(), roots_pem=roots)
    assert leaf.names == tuple(names)
    assert rig.places == {"a.example.test from 127.0.0.1", "b.example.test from 127.0.0.1"}
    assert rig.acme.server_date is not None


@pytest.mark.parametrize("rig", [50], indirect=True)
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


@pytest.mark.parametrize("rig", [0], indirect=True)
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
