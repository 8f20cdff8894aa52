"""HTTPS to one authority: its origins only, no redirects, no proxies of the environment, everything capped.

One TLS context and one pool of kept-alive connections an authority. What must never come in: what a body means.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from urllib.parse import SplitResult, urlsplit

from aiohttp.http import HttpProcessingError

from certfan import __version__
from certfan.core.model import Authority
from certfan.core.room import MOST_STANDING
from certfan.daemon.authority.answer import Answer
from certfan.daemon.authority.connections import (
    CONNECT_TIMEOUT,
    MAX_BODY,
    Connections,
    NotConnected,
    Response,
    Server,
    TooLong,
)
from certfan.errors import AuthorityMalformed, AuthorityUnreachable, ConfigInvalid

# Identity coding: nothing that could swell.
_ALWAYS = f"User-Agent: certfan/{__version__}\r\nAccept-Encoding: identity\r\n"
_URL = re.compile(r"[!-~]{1,2000}")
_PARTS = re.compile(r"https://([^/?#]*)([^#]*)", re.IGNORECASE)
_ERRNO = re.compile(r"\[Errno (\d+)\]")


@dataclass(slots=True)
class Transport:
    """Sends one request after another, or many at once; a cancelled one closes its connection and harms no other."""

    spec: Authority
    clock: Callable[[], datetime]
    dated: Callable[[datetime], object] = lambda _date: None  # told the Date of every answer, aware UTC
    server_date: datetime | None = None
    _connections: Connections | None = None

    async def send(self, method: str, url: str, *, data: bytes | None, headers: Mapping[str, str]) -> Answer:
        """Return the answer, whatever its status; `headers` say what no server told us.

        A request that meets a kept-alive connection just closed by the other side is sent once more.

        Raises:
            AuthorityUnreachable: no answer came.
            AuthorityMalformed: the URL is not the authority's, or the answer is too long, a redirect or no HTTP.
        """
        server, request = _written(method, self.check(url, "the URL of a request"), data, headers)
        was_sent = method == "POST"
        try:
            response = await self._open().ask(server, request, expects_body=method != "HEAD")
        except NotConnected as error:
            raise self.unreachable(error.__cause__) from error
        except EOFError as error:
            raise self.unreachable("the answer broke off", was_sent=was_sent) from error
        except OSError as error:
            raise self.unreachable(error, was_sent=was_sent) from error
        except TooLong as error:
            raise self.malformed(f"the answer of {url} is longer than {MAX_BODY} bytes") from error
        except HttpProcessingError as error:
            raise self.malformed(f"{_place(url)} does not speak HTTP: {error.message}") from error
        return self._checked(response, url)

    def _checked(self, response: Response, url: str) -> Answer:
        answer = Answer(response.status, response.headers, response.body, url, self.clock())
        if (date := answer.date) is not None:
            self.server_date = date
            self.dated(date)
        if 300 <= answer.status_code < 400:
            where = answer.headers.get("Location", "nowhere")
            raise self.malformed(f"{url} redirects to {where!r:.200}, which is not followed")
        return answer

    def check(self, url: object, what: str) -> str:
        """Return `url` if it is https and of the directory's origin, or of one that the spec allows beside it.

        Raises:
            AuthorityMalformed: it is not; nothing was sent there.
        """
        if not isinstance(url, str) or not _URL.fullmatch(url):
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
        self, cause: str | BaseException | None, *, was_sent: bool = False
    ) -> AuthorityUnreachable:
        """Return the error for an answer that never came."""
        hint = f"check network, DNS and firewall of this machine; run: curl -v {self.spec.directory}"
        if isinstance(cause, ssl.SSLCertVerificationError):
            hint = f"set ca_file of authority {self.spec.name} to the CA of its HTTPS certificate"
        where = _place(self.spec.directory)
        text = f"authority {self.spec.name}: no answer from {where}: {_cause(cause)}"
        return AuthorityUnreachable(text, was_sent=was_sent, subject=self.spec.name, hint=hint)

    def _open(self) -> Connections:
        if self._connections is None:
            most = (2 + MOST_STANDING) * self.spec.orders_at_once
            self._connections = Connections(self._tls(), most)
        return self._connections

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
        connections, self._connections = self._connections, None
        if connections:
            connections.close()


def _written(method: str, url: str, data: bytes | None, headers: Mapping[str, str]) -> tuple[Server, bytes]:
    """Return where a URL that was checked is to be asked, and the bytes of the request."""
    parts = _PARTS.match(url)
    assert parts is not None
    place, target = parts.groups()
    if not target.startswith("/"):
        target = f"/{target}"
    said = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    if data is not None:
        said += f"Content-Length: {len(data)}\r\n"
    head = f"{method} {target} HTTP/1.1\r\nHost: {place}\r\n{_ALWAYS}{said}\r\n"
    return _server(place), head.encode() + (data or b"")


@lru_cache
def _server(place: str) -> Server:
    found = urlsplit(f"https://{place}")
    return found.hostname or "", found.port or 443


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


def _cause(cause: str | BaseException | None) -> str:
    match cause:
        case str():
            return cause
        case ssl.SSLCertVerificationError():
            return f"its certificate is not trusted: {cause}"
        case ssl.SSLError(reason=str(reason)):
            return reason.replace("_", " ").lower()
        case TimeoutError():
            return f"no connection within {CONNECT_TIMEOUT:.0f} s"
        case OSError(errno=int(number)) if number > 0:
            return os.strerror(number).lower()  # its own text is asyncio's "Connect call failed"
        case ConnectionError():
            return "the connection was closed"
        case OSError() if several := _ERRNO.search(
            str(cause)
        ):  # of several addresses: the first speaks for them
            return os.strerror(int(several[1])).lower()
        case OSError():
            return str(cause.strerror or cause).lower()
        case _:
            return str(cause) or type(cause).__name__
