"""Three CAs behind one face, and what orders from them by hand: a responder, an account, a few loops."""

import asyncio
import json
import os
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from certfan import pki
from certfan.core.issuance import AuthorizationStatus, ChallengeSeen, ChallengeStatus, OrderSeen, OrderStatus
from certfan.core.model import Authority
from certfan.daemon.authority import AcmeAuthority, make_account_key
from certfan.daemon.challenges.http01 import Responder
from certfan.daemon.listeners import Listener
from certfan.errors import AuthorityUnreachable
from tests.lab import machine
from tests.lab.caddy import Caddy
from tests.lab.faulty import FaultyAuthority
from tests.lab.faulty.records import Issued, Window
from tests.lab.faulty.signing import decoded
from tests.lab.pebble import LoopbackDns, Pebble, free_port

KEY = make_account_key()
POLL = 0.02  # seconds; finalize may be answered `processing` first
STALLED = 10.0  # seconds for one certificate that else takes a tenth of one
NAMES = tuple(f"{letter}.example.test" for letter in "abc")
EXTERNAL = ("kid-1", "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQp12")  # base64url


def now() -> datetime:
    return datetime.now(UTC)


class Server(ABC):
    """One CA of the lab. `profile` is what orders name, `fetches` how often it fetches a token."""

    directory_url: str
    ca_file: Path
    listeners: Sequence[Listener]
    profile: str | None = "default"
    fetches = 3

    @abstractmethod
    async def start(self) -> None: ...

    @abstractmethod
    async def stop(self) -> None: ...

    @abstractmethod
    async def roots_pem(self) -> bytes: ...

    async def set_window(self, pair: pki.Pair, window: Window) -> None:
        raise NotImplementedError

    async def revoked(self, pair: pki.Pair) -> int | None:
        """The reason, None when it is not."""
        raise NotImplementedError


class PebbleServer(Server):
    """Pebble, with its DNS server. `sleeps` lets it take up to a second before it tries a challenge."""

    def __init__(
        self, folder: Path, nonce_reject: int = 0, external: bool = False, *, sleeps: bool = False
    ) -> None:
        port = free_port()
        self.listeners = (Listener("127.0.0.1", port), Listener("::1", port))
        self.dns = LoopbackDns(folder)
        self.pebble = Pebble(
            folder, self.dns.server, http_port=port, nonce_reject=nonce_reject, retry_after=0,
            eab_keys=dict([EXTERNAL]) if external else {}, alternate_roots=1,
            env={
                "PEBBLE_AUTHZREUSE": "100",
                "PEBBLE_VA_NOSLEEP": str(int(not sleeps)),
                "PEBBLE_VA_SLEEPTIME": "2",
            },
        )  # fmt: skip
        self.directory_url, self.ca_file = self.pebble.directory_url, self.pebble.ca_file

    async def start(self) -> None:
        await asyncio.to_thread(self.dns.start)
        await asyncio.to_thread(self.pebble.start)

    async def stop(self) -> None:
        await asyncio.to_thread(self.pebble.stop)
        await asyncio.to_thread(self.dns.stop)

    async def restart(self) -> None:
        """Begin anew: every account and order is gone."""
        await asyncio.to_thread(self.pebble.stop)
        await asyncio.to_thread(self.pebble.start)

    async def roots_pem(self) -> bytes:
        return self.pebble.roots_file.read_bytes()

    async def set_window(self, pair: pki.Pair, window: Window) -> None:
        dates = {"start": window.start.isoformat(), "end": window.end.isoformat()}
        said = {"suggestedWindow": dates, "explanationURL": window.explanation_url}
        body = {"certificate": pair.cert_pem.decode(), "ariResponse": json.dumps(said)}
        await self._ask("/set-renewal-info/", body)

    async def revoked(self, pair: pki.Pair) -> int | None:
        said = json.loads(await self._ask(f"/cert-status-by-serial/{pair.leaf.serial}"))
        return int(said.get("Reason", 0)) if said["Status"] == "Revoked" else None

    async def _ask(self, path: str, body: dict[str, Any] | None = None) -> str:
        return await asyncio.to_thread(self.pebble.management, path, body)


class FaultyServer(Server):
    """The faulty authority, behaving."""

    def __init__(self, folder: Path, nonce_reject: int = 0, external: bool = False) -> None:
        port = free_port()
        self.listeners = (Listener("127.0.0.1", port), Listener("::1", port))
        self.authority = FaultyAuthority(folder / "faulty", http_at=("127.0.0.1", port))
        self.authority.behaviour.nonce_reject = nonce_reject
        self.authority.behaviour.reuse_authorizations = True
        if external:
            self.authority.behaviour.external_accounts = {EXTERNAL[0]: decoded(EXTERNAL[1])}
        self.directory_url, self.ca_file = self.authority.directory_url, self.authority.ca_file

    async def start(self) -> None:
        await self.authority.start()

    async def stop(self) -> None:
        await self.authority.stop()

    async def roots_pem(self) -> bytes:
        return self.authority.roots_file.read_bytes()

    async def set_window(self, pair: pki.Pair, window: Window) -> None:
        self._issued(pair).window = window

    async def revoked(self, pair: pki.Pair) -> int | None:
        return self._issued(pair).revoked

    def _issued(self, pair: pki.Pair) -> Issued:
        found = self.authority.records.by_serial(pair.leaf.serial)
        assert found is not None
        return found


class CaddyServer(Server):
    """Caddy's acme_server, which knows only NAMES."""

    profile = None
    fetches = 1

    def __init__(self, folder: Path, nonce_reject: int = 0, external: bool = False) -> None:
        assert not nonce_reject and not external, "it can do neither"
        self.caddy = Caddy(folder, NAMES)
        self.listeners = (Listener(self.caddy.address, 80),)
        self.directory_url, self.ca_file = self.caddy.directory_url, self.caddy.ca_file

    async def start(self) -> None:
        await asyncio.to_thread(self.caddy.start)

    async def stop(self) -> None:
        await asyncio.to_thread(self.caddy.stop)

    async def roots_pem(self) -> bytes:
        return self.caddy.root_pem().encode()


SERVERS: dict[str, Callable[[Path, int, bool], Server]] = {
    "pebble": PebbleServer,
    "faulty": FaultyServer,
    "caddy": CaddyServer,
}


def lacking(server: str) -> str:
    """Say why a CA cannot run here; empty when it can."""
    match server:
        case "pebble" if machine.pebble_program() is None or not LoopbackDns.available():
            return "pebble is not installed"
        case "caddy" if machine.pebble_program("caddy") is None:
            return "caddy is not installed"
        case "caddy" if os.geteuid() != 0:
            return "root: port 80 and a mount namespace need it"
    return ""


class Rig:
    """One CA, one responder where it validates, one account."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.spec = Authority(
            "lab", server.directory_url, contact=("mailto:admin@example.org",), ca_file=str(server.ca_file),
            profile=server.profile,
        )  # fmt: skip
        self.tokens: dict[str, str] = {}
        self.waiting: dict[str, asyncio.Semaphore] = {}
        self.places: set[str] = set()
        self.responder = Responder(self.tokens.get, self._fetched)
        self.acme = self.client()

    def client(self, key: bytes = KEY, uri: str | None = None, **fields: Any) -> AcmeAuthority:
        """Make a client of the same CA; `fields` are those of its spec."""
        spec = replace(self.spec, **fields)
        return AcmeAuthority(spec, account_key_pem=key, account_uri=uri, clock=now)

    @asynccontextmanager
    async def other(
        self, key: bytes = KEY, uri: str | None = None, **fields: Any
    ) -> AsyncIterator[AcmeAuthority]:
        """Have a client of its own for a while."""
        client = self.client(key, uri, **fields)
        try:
            yield client
        finally:
            await client.close()

    @asynccontextmanager
    async def up(self) -> AsyncIterator[None]:
        """Run the CA and the responder."""
        await self.server.start()
        try:
            await self.responder.start(self.server.listeners)
            yield
        finally:
            await self.acme.close()
            await self.responder.stop()
            await self.server.stop()

    def _fetched(self, token: str, place: Callable[[], str]) -> None:
        self.places.add(place())
        if waiting := self.waiting.get(token):
            waiting.release()

    async def issue(
        self, *names: str, key: bytes | None = None, profile: str | None = None, replaces: str | None = None
    ) -> pki.Pair:
        """Order, prove, finalize and download by hand."""
        key = key or pki.make_key()
        csr = pki.make_csr(key, names)
        order = await self.acme.new_order(csr, profile=profile, replaces=replaces)
        return await self.finish(order, key, csr)

    async def finish(
        self, order: OrderSeen, key: bytes, csr: bytes, *, issuer: str | None = None
    ) -> pki.Pair:
        """Prove, finalize and download what was ordered."""
        await self.ready(order)
        order = await self.acme.finalize(order.finalize, csr, order_url=order.url)
        while order.certificate is None:
            assert order.status is not OrderStatus.INVALID, order.problem
            await asyncio.sleep(POLL)
            order = await self.acme.order(order.url)
        return pki.load_pair(key, await self.acme.certificate(order.certificate, issuer=issuer))

    async def challenge(self, authorization_url: str) -> ChallengeSeen:
        """Look at the http-01 challenge of an authorization."""
        authorization = await self.acme.authorization(authorization_url)
        return next(one for one in authorization.challenges if one.kind == "http-01")

    async def ready(self, order: OrderSeen) -> None:
        """Prove every name of an order."""
        for url in order.authorizations:
            await self._prove(url)

    async def _prove(self, url: str) -> None:
        challenge = await self.challenge(url)
        if challenge.status is ChallengeStatus.VALID:
            return  # its authorization was proven for an earlier order
        self.tokens[challenge.token] = self.acme.key_authorization(challenge.token)
        hits = self.waiting[challenge.token] = asyncio.Semaphore(0)
        await self.acme.answer(challenge.url)
        for _ in range(self.server.fetches):
            await hits.acquire()
        while (authorization := await self.acme.authorization(url)).status is AuthorizationStatus.PENDING:
            await asyncio.sleep(POLL)
        del self.tokens[challenge.token]
        assert authorization.status is AuthorizationStatus.VALID, authorization

    async def issue_all(self, names: Sequence[str], at_once: int) -> tuple[list[pki.Pair], int]:
        """Issue one certificate a name; return them, and how often Pebble had to be started anew.

        Pebble may deadlock, and then answers no POST while its directory does (measured); no other CA may stall.
        """
        pairs: dict[str, pki.Pair] = {}
        restarts = 0
        while left := [name for name in names if name not in pairs]:
            try:
                async with asyncio.TaskGroup() as tasks:
                    for _ in range(at_once):
                        tasks.create_task(self._work_off(left, pairs))
            except* (TimeoutError, AuthorityUnreachable):
                assert isinstance(self.server, PebbleServer), "it stalled"
                assert restarts < 3, "it stalls again and again"
                restarts += 1
                await self.acme.look()
                await self.server.restart()
                await self.acme.register()
        return list(pairs.values()), restarts

    async def _work_off(self, left: list[str], pairs: dict[str, pki.Pair]) -> None:
        while left:
            name = left.pop()
            async with asyncio.timeout(STALLED):
                pairs[name] = await self.issue(name)
