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

from aiohttp import hdrs, web

from certfan import log
from certfan.daemon.listeners import Listener, serve

PATIENCE = 10.0  # seconds from accept, or from the last answer, to the last byte of the next one
MOST_CONNECTIONS = 512
MAX_LINE = 2048  # bytes of the request line, and of one header
MAX_HEADERS = 64
_STOP_PATIENCE = 1.0  # seconds for answers under way when we stop

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
        self._server: _Server | None = None
        self._runner: web.ServerRunner | None = None
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
        # The address is said by `fetched`; aiohttp's own access log would say it twice.
        self._server = _Server(self._answer)
        runner = web.ServerRunner(self._server, shutdown_timeout=_STOP_PATIENCE)
        await runner.setup()
        try:
            self._bound = await serve(runner, tuple(listeners))
            for sock in sockets:
                sock.setblocking(False)
                await web.SockSite(runner, sock).start()
        except BaseException:
            await runner.cleanup()
            self._bound = []
            raise
        self._bound += sockets
        self._runner = runner
        _log.info("http01.listening", listeners=[str(one) for one in listeners], inherited=len(sockets))

    async def stop(self) -> None:
        """Stop listening and end connections, within about a second; repeatable."""
        runner, self._runner, self._bound = self._runner, None, []
        if runner and self._server:
            await runner.cleanup()
            self._server.end_all()

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

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.method not in {"GET", "HEAD"}:
            return _refusal(405, "Allow: GET, HEAD\r\n")
        found = _PATH.fullmatch(request.raw_path)
        text = self._tokens(found[1]) if found else self._probes.get(request.raw_path)
        # A body that nobody reads would be taken for the next request.
        keep = request.keep_alive and not request.can_read_body
        head, body = (_NOT_FOUND, b"404\n") if text is None else _ok(text)
        if request.method == "HEAD":
            body = b""

        def answered() -> None:
            if keep and self._server:
                self._server.keep(request.protocol)
            if found and text is not None and request.method == "GET":
                self._fetched(found[1], lambda: _place(request))

        return _Answer(head, body, keep=keep, answered=answered)


class _Answer(web.StreamResponse):
    """Head and body in one write. That aiohttp puts the same headers together for each is half of its time."""

    def __init__(
        self, head: bytes, body: bytes, *, keep: bool = False, answered: Callable[[], None] | None = None
    ) -> None:
        super().__init__()
        self._bytes = b"%bConnection: %b\r\nDate: %b\r\n\r\n%b" % (
            head, b"keep-alive" if keep else b"close", _date(int(time.time())), body,
        )  # fmt: skip
        self._kept = keep
        self._answered = answered

    @property
    def keep_alive(self) -> bool:
        """Whether the connection stays open, as the answer says."""
        return self._kept

    async def prepare(self, request: web.BaseRequest) -> None:
        """Write all of it; aiohttp calls this once, and ends the connection quietly when nobody is there any more."""
        await request.writer.write(self._bytes)
        await request.writer.drain()  # who asks and never reads gets no second answer into memory

    async def write_eof(self, data: bytes = b"") -> None:
        """Tell that the last byte went out."""
        if self._answered:
            self._answered()


class _Server(web.Server):
    """Gives each request of a connection ten seconds: aiohttp itself waits for ever for the last of its headers.

    Those that had an answer may ask again, until their place is needed: the one that was answered longest ago goes.
    So nobody can hold a place for longer than ten seconds, however much it asks.
    """

    def __init__(self, handler: Callable[[web.BaseRequest], object]) -> None:
        super().__init__(handler)  # type: ignore[arg-type]
        self._open: dict[web.RequestHandler, tuple[asyncio.Transport, asyncio.TimerHandle]] = {}
        self._kept: dict[web.RequestHandler, float] = {}  # when each was answered last, longest ago first

    def __call__(self) -> web.RequestHandler:
        return _Connection(
            self,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]  # its own class takes None
            max_line_size=MAX_LINE,
            max_field_size=MAX_LINE,
            max_headers=MAX_HEADERS,
            lingering_time=0,
            tcp_keepalive=False,  # nothing lives long enough for it
            keepalive_timeout=PATIENCE,
        )

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        loop = asyncio.get_running_loop()
        if len(self._open) >= MOST_CONNECTIONS and not self._make_room():
            loop.call_soon(transport.abort)  # not at once: aiohttp's task of this connection must begin first
            return
        self._open[handler] = transport, loop.call_later(PATIENCE, self._look, handler)

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        self._forget(handler)

    def keep(self, handler: web.RequestHandler) -> None:
        """Let a connection that was just answered ask once more."""
        self._kept.pop(handler, None)
        if handler in self._open:
            self._kept[handler] = asyncio.get_running_loop().time()

    def end_all(self) -> None:
        """End every connection, also those whose clients do not read what we have for them."""
        for handler in list(self._open):
            self._end(handler)

    def _make_room(self) -> bool:
        idlest = next(iter(self._kept), None)
        if idlest is not None:
            self._end(idlest)
        return idlest is not None

    def _look(self, handler: web.RequestHandler) -> None:
        """End a connection whose time is up; one timer a connection, not one a request."""
        loop = asyncio.get_running_loop()
        due = self._kept.get(handler, float("-inf")) + PATIENCE
        if due <= loop.time():
            self._end(handler)
        else:
            self._open[handler] = self._open[handler][0], loop.call_at(due, self._look, handler)

    def _end(self, handler: web.RequestHandler) -> None:
        # Not `handler.transport`: aiohttp forgets it once it has begun to close, which a full buffer may hold up.
        self._open[handler][0].abort()
        self._forget(handler)

    def _forget(self, handler: web.RequestHandler) -> None:
        self._kept.pop(handler, None)
        if place := self._open.pop(handler, None):
            place[1].cancel()


class _Connection(web.RequestHandler):
    """Answers what is no HTTP in our own words: no software's name, no echo, no traceback in the journal."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if status >= 500:
            _log.error("http01.failed", exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("an answer was begun already")
        return _refusal(status)


def _refusal(status: int, more: str = "") -> _Answer:
    return _Answer(_head(status, _TEXT, 4, more), b"%d\n" % status)


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


def _place(request: web.BaseRequest) -> str:
    """Say through which vhost, and from which machine, a request came."""
    forwarded = request.headers.get("X-Forwarded-Host", "").split(",")[0].strip()
    found = _HOST.fullmatch((forwarded or request.headers.get(hdrs.HOST, ""))[:300].lower())
    peer = request.transport.get_extra_info("peername") if request.transport else None
    address = peer[0] if isinstance(peer, tuple) else "a local socket"
    return f"{found[1] if found else 'an unnamed host'} from {address}"
