"""HTTPS to one authority: its origins only, no redirects, no proxies of the environment, everything capped.

One TLS context and one pool of kept-alive connections an authority. What must never come in: what a body means.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from types import SimpleNamespace
from urllib.parse import SplitResult, urlsplit

import aiohttp
from multidict import CIMultiDict, CIMultiDictProxy

from certfan import __version__
from certfan.core.model import Authority
from certfan.core.room import MOST_STANDING
from certfan.daemon.authority.answer import Answer
from certfan.errors import AuthorityMalformed, AuthorityUnreachable, ConfigInvalid

MAX_BODY = 1024 * 1024
CONNECT_TIMEOUT = 10.0  # seconds for TCP and TLS; what a whole exchange may take is the caller's affair
# Below what servers and middleboxes allow, so that a request seldom meets a connection that is dying.
KEEP_ALIVE = 30.0
NEVER_CONNECTED = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
USER_AGENT = f"certfan/{__version__}"
_CONNECTION: ContextVar[SimpleNamespace] = ContextVar("_CONNECTION")  # of the request that a task makes


@dataclass(slots=True)
class Transport:
    """Sends one request after another, or many at once; a cancelled one closes its connection and harms no other."""

    spec: Authority
    clock: Callable[[], datetime]
    dated: Callable[[datetime], object] = lambda _date: None  # told the Date of every answer, aware UTC
    server_date: datetime | None = None
    _session: aiohttp.ClientSession | None = None

    async def send(self, method: str, url: str, *, data: bytes | None, headers: Mapping[str, str]) -> Answer:
        """Return the answer, whatever its status.

        A request that meets a kept-alive connection just closed by the other side is sent once more.

        Raises:
            AuthorityUnreachable: no answer came.
            AuthorityMalformed: the URL is not the authority's, or the answer is too long, a redirect or no HTTP.
        """
        self.check(url, "the URL of a request")
        try:
            answer = await self._send(method, url, data, headers)
        except aiohttp.ClientPayloadError as error:
            raise self.unreachable("the answer broke off", error, was_sent=method == "POST") from error
        except aiohttp.ClientResponseError as error:
            raise self.malformed(f"{_place(url)} does not speak HTTP: {error.message}") from error
        except (aiohttp.ClientError, OSError) as error:
            was_sent = method == "POST" and not isinstance(error, NEVER_CONNECTED)
            raise self.unreachable(_cause(error), error, was_sent=was_sent) from error
        if (date := answer.date) is not None:
            self.server_date = date
            self.dated(date)
        if 300 <= answer.status_code < 400:
            where = answer.headers.get("Location", "nowhere")
            raise self.malformed(f"{url} redirects to {where!r:.200}, which is not followed")
        return answer

    async def _send(self, method: str, url: str, data: bytes | None, headers: Mapping[str, str]) -> Answer:
        for attempt in (1, 2):
            connection = SimpleNamespace(reused=True)
            _CONNECTION.set(connection)
            try:
                response = await self._open().request(
                    method, url, data=data, headers=headers, allow_redirects=False
                )
                body = await self._body(response)
                return Answer(response.status, _joined(response.headers), body, url, self.clock())
            except (aiohttp.ServerDisconnectedError, ConnectionError):
                # An idle connection that died is no news about the authority. Had the request been heard, its nonce
                # is spent, and the second copy is refused as badNonce.
                if attempt == 2 or not connection.reused:
                    raise
        raise AssertionError("unreachable")

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        body = bytearray()
        try:
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > MAX_BODY:
                    raise self.malformed(f"the answer of {response.url} is longer than {MAX_BODY} bytes")
        except BaseException:
            response.close()  # read to its end, it gives its connection back by itself
            raise
        return bytes(body)

    def check(self, url: object, what: str) -> str:
        """Return `url` if it is https and of the directory's origin, or of one that the spec allows beside it.

        Raises:
            AuthorityMalformed: it is not; nothing was sent there.
        """
        if not isinstance(url, str) or len(url) > 2000 or not url.isascii() or not url.isprintable():
            raise self.malformed(f"{what} is no URL: {url!r:.200}")
        if url.startswith(_root(self.spec.directory)):  # nearly all are, and each order has twenty
            return url
        try:
            found = urlsplit(url)
            homes = _homes(self.spec.directory, *self.spec.origins)
            same = _origin(found) in homes and "@" not in found.netloc
        except ValueError as error:
            raise self.malformed(f"{what} is no URL: {url!r:.200}") from error
        if found.scheme != "https":
            raise self.malformed(f"{what} is not https: {url!r:.200}")
        if not same:
            raise self.malformed(
                f"{what} is of another origin than the directory: {url!r:.200}",
                hint=f"if that host is its own too, add https://HOST[:PORT] to origins of authority {self.spec.name}",
            )
        return url

    def malformed(
        self, reason: str, *, not_before: datetime | None = None, hint: str = "", status: int = 0
    ) -> AuthorityMalformed:
        """Return the error for something that is not ACME."""
        return AuthorityMalformed(
            f"authority {self.spec.name}: {reason}",
            status=status,
            subject=self.spec.name,
            hint=hint or f"check the directory of authority {self.spec.name}: {self.spec.directory}",
            not_before=not_before,
        )

    def unreachable(
        self, cause: str, error: BaseException | None = None, *, was_sent: bool = False
    ) -> AuthorityUnreachable:
        """Return the error for an answer that never came."""
        hint = f"check network, DNS and firewall of this machine; run: curl -v {self.spec.directory}"
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            hint = f"set ca_file of authority {self.spec.name} to the CA of its HTTPS certificate"
        where = _place(self.spec.directory)
        text = f"authority {self.spec.name}: no answer from {where}: {cause}"
        return AuthorityUnreachable(text, was_sent=was_sent, subject=self.spec.name, hint=hint)

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(
                ssl=self._tls(),
                limit=(2 + MOST_STANDING) * self.spec.orders_at_once,
                keepalive_timeout=KEEP_ALIVE,
                socket_factory=_new_socket,
            )
            # trust_env stays off: no proxies, no .netrc. Identity coding: nothing that could swell.
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT),
                auto_decompress=False,
            )
        return self._session

    def _tls(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=self.spec.ca_file)
        except (OSError, ssl.SSLError) as error:
            problem = f"authority.{self.spec.name}.ca_file: {self.spec.ca_file} cannot be read: {error}"
            raise ConfigInvalid((problem,), subject=self.spec.name) from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context

    async def close(self) -> None:
        """Close the connections; repeatable. A later request opens new ones."""
        session, self._session = self._session, None
        if session:
            await session.close()


def _new_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    # A trace of the session would tell as well, at a tenth of what a request costs.
    _CONNECTION.get().reused = False
    return socket.socket(*address[:3])


def _joined(headers: CIMultiDictProxy[str]) -> Mapping[str, str]:
    joined = CIMultiDict(headers)
    if "Link" in joined:
        # A plain look-up gives only the first one.
        joined["Link"] = ", ".join(headers.getall("Link"))
    return joined


def _origin(url: SplitResult) -> tuple[str, str, int]:
    return url.scheme, url.hostname or "", url.port or 443


@lru_cache
def _root(url: str) -> str:
    """Return what every URL beside this one begins with, up to the path's first slash; what none does, if unfit."""
    found = urlsplit(url)
    return f"https://{found.netloc}/" if found.scheme == "https" and "@" not in found.netloc else "\n"


@lru_cache
def _homes(*urls: str) -> frozenset[tuple[str, str, int]]:
    return frozenset(_origin(urlsplit(url)) for url in urls)


def _place(url: str) -> str:
    return urlsplit(url).netloc


def _cause(error: BaseException) -> str:
    match error:
        case aiohttp.ClientConnectorCertificateError():
            return f"its certificate is not trusted: {error.certificate_error}"
        case aiohttp.ServerDisconnectedError():
            return "the connection was closed"
        case TimeoutError():
            return f"no connection within {CONNECT_TIMEOUT:.0f} s"
        case OSError(errno=int(number)) if number > 0:
            return os.strerror(number).lower()  # its own text is asyncio's "Connect call failed"
        case OSError():
            return str(error.strerror or error).lower()
        case _:
            return str(error) or type(error).__name__
