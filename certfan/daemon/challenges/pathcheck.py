"""Walks the path of an http-01 challenge as a CA would, before a CA does: through the real vhost to our own responder.

What the hops mean is judged in core. What must never come in: tokens of orders, and more of a foreign answer than
a `Hop` has room for.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import secrets
import socket
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass, replace

import aiohttp
from aiohttp import abc, hdrs
from yarl import URL

from certfan import __version__
from certfan.core.model import Identifier, Problem
from certfan.core.path import (
    FOLLOWED,
    MOST_BYTES,
    Failure,
    Hop,
    Target,
    choose,
    verdict,
    why_not_dial,
    why_not_follow,
)
from certfan.daemon.challenges.names import Names, Resolve, ask_system
from certfan.daemon.listeners import Listener

MOST_CHECKS = 16  # at once
MOST_ADDRESSES = 16  # of one name
_PATIENCE = 10.0  # seconds for all hops of one address
_FOLDER = "/.well-known/acme-challenge/"
_HEADERS = {
    hdrs.USER_AGENT: f"certfan/{__version__} self-check",
    hdrs.ACCEPT: "*/*",  # a missing one looks like a bot to mod_security
    hdrs.ACCEPT_ENCODING: "identity",
}


class PathChecker:
    """Checks the paths of names, at most sixteen at once.

    `probes` is what the responder answers beside its tokens, by path; it holds a probe only while its check runs.
    `own` is where the daemon listens: no redirect leads us there.

    Known limit: a probe has a `~`, which no token has, so a web server that lets only the characters of tokens
    through answers ours with 404.
    """

    def __init__(
        self,
        probes: MutableMapping[str, str],
        *,
        own: Sequence[Listener] = (),
        resolve: Resolve = ask_system,
        http_port: int = 80,
        https_port: int = 443,
        patience: float = _PATIENCE,
    ) -> None:
        self._probes = probes
        self._own = frozenset((one.host, one.port) for one in own if not one.path)
        self._resolve = resolve
        self._ports = {"http": http_port, "https": https_port}
        self._patience = patience
        self._at_once = asyncio.Semaphore(MOST_CHECKS)

    async def check(self, identifier: Identifier) -> Problem | None:
        """Return what is wrong with the path of a configured name, None when our answer came through everywhere.

        Cancelled, it leaves no probe behind.
        """
        async with self._at_once:
            with self._probe() as probe:
                return verdict(identifier, await self._walks(identifier, probe))

    @contextlib.contextmanager
    def _probe(self) -> Iterator[_Probe]:
        token = f"certfan~{secrets.token_urlsafe(16)}"
        # A secret of its own, or a page that shows what it was asked for would pass.
        probe = _Probe(token, f"{token}.{secrets.token_urlsafe(24)}")
        self._probes[_FOLDER + token] = probe.answer
        try:
            yield probe
        finally:
            del self._probes[_FOLDER + token]

    async def _walks(self, identifier: Identifier, probe: _Probe) -> list[list[Hop]]:
        host = identifier.value
        url = URL.build(scheme="http", host=host, port=self._ports["http"], path=_FOLDER + probe.token)
        names = Names(self._resolve)
        try:
            async with asyncio.timeout(self._patience):
                addresses = await names.look_up(host)
        except TimeoutError:
            addresses = Failure.DNS_TIMEOUT
        if isinstance(addresses, Failure):
            return [[Hop(probe.hide(url), failure=addresses)]]
        walks = [_Walk(probe, names, self._ports, self._own) for _ in addresses[:MOST_ADDRESSES]]
        async with asyncio.TaskGroup() as group:
            for walk, address in zip(walks, addresses, strict=False):
                way = walk.go(url, address, self._patience)
                group.create_task(way, name=f"self-check of {host} at {address}")
        return [walk.hops for walk in walks]


@dataclass(frozen=True, slots=True)
class _Probe:
    """A token that no CA can send, since it is not of the base64url alphabet, and what the responder says to it."""

    token: str
    answer: str

    def hide(self, url: URL) -> str:
        """The URL for texts, which should be the same at every check."""
        return str(url).replace(self.token, "<probe>")


class _Walk(abc.AbstractResolver):
    """From one address of a name, hop by hop; for aiohttp it is a resolver that knows the present hop's address only."""

    def __init__(
        self, probe: _Probe, names: Names, ports: dict[str, int], own: frozenset[tuple[str, int]]
    ) -> None:
        self.hops: list[Hop] = []
        self._probe = probe
        self._names = names
        self._ports = ports
        self._own = own
        self._address = ""

    async def go(self, url: URL, address: str, patience: float) -> None:
        """Follow every redirect that a CA would; afterwards `hops` says how it went, however it went."""
        connector = aiohttp.TCPConnector(
            resolver=self, use_dns_cache=False, force_close=True, happy_eyeballs_delay=None, ssl=False
        )
        session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=_HEADERS,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=patience / 2),
            auto_decompress=False,
            trust_env=False,
            read_bufsize=1024,
        )
        async with session:
            # The last hop says from its beginning how it ends when time is up.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await self._follow(session, url, address)

    async def _follow(self, session: aiohttp.ClientSession, url: URL, first: str) -> None:
        at: URL | Failure = url
        self._address = first
        while isinstance(at, URL):
            self.hops.append(Hop(self._probe.hide(at), self._address, failure=Failure.SILENT))
            self.hops[-1], location = await self._ask(session, at)
            if location is None:
                return
            at = await self._next(at, location)
        self.hops[-1] = replace(self.hops[-1], failure=at)

    async def _next(self, url: URL, location: str) -> URL | Failure:
        """Return where a redirect leads and set the address to dial, or why the walk ends with the last hop."""
        try:
            after = url.join(URL(location)).with_fragment(None)
            target = self._target(after)
        except ValueError:
            return Failure.BAD_LOCATION
        self.hops[-1] = replace(self.hops[-1], location=target.url)
        if failure := why_not_follow(target, self.hops, self._ports.values()):
            return failure
        self.hops.append(Hop(target.url, failure=Failure.DNS_TIMEOUT))
        found = await self._names.look_up(target.host)
        if isinstance(found, Failure):
            return found
        self._address = choose(found, self.hops[0].address)
        is_local = _source(self._address) == self._address
        if failure := why_not_dial(self._address, after.port or 0, self._own, is_local=is_local):
            self.hops[-1] = Hop(target.url, self._address)
            return failure
        self.hops.pop()  # it was there in case that time was up meanwhile
        return after

    def _target(self, url: URL) -> Target:
        return Target(
            self._probe.hide(url.with_user(None)) if url.user is not None else self._probe.hide(url),
            scheme=url.scheme,
            host=(url.raw_host or "").lower(),
            port=url.port,
            has_credentials=url.user is not None or url.password is not None,
        )

    async def _ask(self, session: aiohttp.ClientSession, url: URL) -> tuple[Hop, str | None]:
        """Make one request; return what it got, and the location of a redirect that is followed."""
        hop = Hop(self._probe.hide(url), self._address)
        if not _source(self._address):
            return replace(hop, failure=Failure.NO_ROUTE), None
        try:
            async with session.get(url, allow_redirects=False) as response:
                hop = replace(hop, status=response.status)
                if response.status in FOLLOWED:
                    location = response.headers.get(hdrs.LOCATION)
                    return replace(hop, failure=None if location else Failure.BAD_LOCATION), location or None
                if response.status == 200:
                    body = await _beginning(response)
                    return replace(hop, length=len(body), equals_ours=self._is_ours(body)), None
                return hop, None
        except aiohttp.ConnectionTimeoutError:
            return replace(hop, failure=Failure.NOT_CONNECTED), None
        except aiohttp.ClientConnectorError as error:
            return replace(hop, failure=_why_not_connected(error)), None
        except aiohttp.ClientError:
            return replace(hop, failure=Failure.NOT_HTTP), None

    def _is_ours(self, body: bytes) -> bool:
        # RFC 8555 section 8.3: white space at the end of the body is ignored.
        return len(body) <= MOST_BYTES and body.rstrip() == self._probe.answer.encode()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[abc.ResolveResult]:
        """Give aiohttp the one address that was judged, whatever the name says by now."""
        version = socket.AF_INET6 if ":" in self._address else socket.AF_INET
        return [
            abc.ResolveResult(
                hostname=host,
                host=self._address,
                port=port,
                family=version,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
        ]

    async def close(self) -> None:
        """Nothing is held."""


async def _beginning(response: aiohttp.ClientResponse) -> bytes:
    try:
        return await response.content.readexactly(MOST_BYTES + 1)
    except asyncio.IncompleteReadError as error:
        return error.partial


def _why_not_connected(error: aiohttp.ClientConnectorError) -> Failure:
    if isinstance(error, aiohttp.ClientConnectorSSLError):
        return Failure.NOT_HTTP
    match error.os_error.errno:
        case errno.ECONNREFUSED:
            return Failure.REFUSED
        case errno.ETIMEDOUT:
            return Failure.NOT_CONNECTED
        case errno.ECONNRESET:
            return Failure.NOT_HTTP
    return Failure.UNREACHABLE


def _source(address: str) -> str:
    """The address of ours that a packet to there would have, "" without a route; it is `address` when that is ours."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))  # sends nothing
        except OSError:
            return ""
        return str(probe.getsockname()[0])
