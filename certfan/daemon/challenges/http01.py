"""The http-01 responder (RFC 8555 section 8.3): live tokens, GET and HEAD, nothing else.

It stands behind proxies that anybody can reach, so it answers from memory, waits for no request longer than ten
seconds, and whatever it says of a request (`fetched`) was sanitised. A connection is kept for more requests, but it
never keeps a newcomer out. What must never come in: files, the store, DNS, a router, a parser of our own.
"""

from __future__ import annotations

import asyncio
import functools
import re
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from email.utils import formatdate
from http import HTTPStatus
from types import MappingProxyType

from aiohttp import hdrs

from certfan import log
from certfan.daemon.challenges.connections import Answer, Connections, Request
from certfan.daemon.listeners import Listener, bind_all

_PATH = re.compile(r"/\.well-known/acme-challenge/([A-Za-z0-9_-]{1,128})")
_HOST = re.compile(r"([a-z0-9._-]{1,253}|\[[0-9a-f:.]{2,45}\])(?::[0-9]{1,5})?")
_HEAD = (
    "HTTP/1.1 {status} {reason}\r\nServer: certfan\r\nCache-Control: no-store\r\nContent-Type: {kind}\r\n"
    "Content-Length: {length}\r\n{more}"
)
_OCTETS, _TEXT = "application/octet-stream", "text/plain; charset=utf-8"

_log = log.get("http01")


class Responder:
    """Answers validators on the listeners that it was started on.

    `tokens` gives the key authorization of a live token. `fetched` is told the token of every answer that a
    GET got, after its last byte went out, and what says through which place, when asked at once: `www.example.org from
    192.168.1.5`. Both must be quick and not raise.
    `probes` is read at every request that is for no token: answers by whole path, our own self-checks' live ones.
    No path of a token is ever looked up in it, and no probe's path has the form of a token's.
    """

    def __init__(
        self,
        tokens: Callable[[str], str | None],
        fetched: Callable[[str, Callable[[], str]], None],
        *,
        probes: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._tokens = tokens
        self._fetched = fetched
        self._probes = probes
        self._connections: Connections | None = None
        self._bound: list[socket.socket] = []

    @property
    def addresses(self) -> list[object]:
        """What is bound, as `socket.getsockname` says it."""
        return [sock.getsockname() for sock in self._bound]

    async def start(
        self, listeners: Sequence[Listener] = (), *, sockets: Sequence[socket.socket] = ()
    ) -> None:
        """Listen on every listener and on `sockets` (listening already, from systemd), or on none of them.

        Raises:
            OSError: naming the listener that cannot be bound, and the cause.
        """
        self._bound = [*bind_all(listeners), *sockets]
        self._connections = Connections(self._answer, _refusal)
        for sock in self._bound:
            self._connections.listen(sock)
        _log.info("http01.listening", listeners=[str(one) for one in listeners], inherited=len(sockets))

    async def stop(self) -> None:
        """Stop listening and end connections, at once; repeatable."""
        connections, self._connections, self._bound = self._connections, None, []
        if connections:
            connections.end_all()

    async def ask(self, address: object) -> None:
        """Ask ourselves on one of `addresses` for what is never there; return when our own answer came.

        Raises:
            OSError, EOFError: nobody answered, or somebody else did.
        """
        if isinstance(address, str):
            reader, writer = await asyncio.open_unix_connection(address)
        else:
            assert isinstance(address, tuple)
            host, port = address[:2]
            # A socket for all addresses is asked on the loopback (RFC 1122 would have it refused; Linux connects).
            reader, writer = await asyncio.open_connection(str(host), port)
        try:
            writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
        finally:
            writer.close()
        if not head.startswith(b"HTTP/1.1 404 ") or b"\r\nServer: certfan\r\n" not in head:
            raise ConnectionError(f"somebody else answered: {head[:40]!r}")

    def _answer(self, request: Request) -> Answer:
        message = request.message
        if message.method not in {"GET", "HEAD"}:
            return _refusal(405, "Allow: GET, HEAD\r\n")
        found = _PATH.fullmatch(message.path)
        text = self._tokens(found[1]) if found else self._probes.get(message.path)
        head, body = (_NOT_FOUND, b"404\n") if text is None else _ok(text)
        if message.method == "HEAD":
            return _whole(head, b"", request.keep)
        if found is None or text is None:
            return _whole(head, body, request.keep)
        token = found[1]
        return _whole(
            head, body, request.keep, lambda: self._fetched(token, functools.partial(_place, request))
        )


def _whole(head: bytes, body: bytes, keep: bool = False, sent: Callable[[], None] | None = None) -> Answer:
    return Answer(
        b"%bConnection: %b\r\nDate: %b\r\n\r\n%b"
        % (head, b"keep-alive" if keep else b"close", _date(int(time.time())), body),
        keep,
        sent,
    )


def _refusal(status: int, more: str = "") -> Answer:
    """Say no in our own words: no software's name, no echo."""
    return _whole(_head(status, _TEXT, 4, more), b"%d\n" % status)


def _head(status: int, kind: str, length: int, more: str = "") -> bytes:
    reason = HTTPStatus(status).phrase
    return _HEAD.format(status=status, reason=reason, kind=kind, length=length, more=more).encode()


_NOT_FOUND = _head(404, _TEXT, 4)


@functools.lru_cache(maxsize=16)
def _ok_head(length: int) -> bytes:
    return _head(200, _OCTETS, length)


def _ok(text: str) -> tuple[bytes, bytes]:
    body = text.encode()
    return _ok_head(len(body)), body


@functools.lru_cache(maxsize=1)
def _date(second: int) -> bytes:
    return formatdate(second, usegmt=True).encode()


def _place(request: Request) -> str:
    """Say through which vhost, and from which machine, a request came."""
    headers, address = request.message.headers, request.address
    forwarded = headers.get("X-Forwarded-Host", "").split(",")[0].strip()
    found = _HOST.fullmatch((forwarded or headers.get(hdrs.HOST, ""))[:300].lower())
    machine = address[0] if isinstance(address, tuple) else "a local socket"
    return f"{found[1] if found else 'an unnamed host'} from {machine}"
