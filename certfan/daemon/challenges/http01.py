"""The http-01 responder (RFC 8555 section 8.3): live tokens, GET and HEAD, nothing else.

It stands behind proxies that anybody can reach, so it answers from memory, holds no connection longer than ten
seconds, and whatever it says of a request (`fetched`) was sanitised. What must never come in: files, the store, DNS.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from aiohttp import hdrs, web

from certfan import log
from certfan.daemon.listeners import Listener, serve

PATIENCE = 10.0  # seconds that a connection may live, from accept to the last byte
MOST_CONNECTIONS = 512
MAX_LINE = 2048  # bytes of the request line, and of one header
MAX_HEADERS = 64
_STOP_PATIENCE = 1.0  # seconds for answers under way when we stop

_PATH = re.compile(r"/\.well-known/acme-challenge/([A-Za-z0-9_-]{1,128})")
_HOST = re.compile(r"([a-z0-9._-]{1,253}|\[[0-9a-f:.]{2,45}\])(?::[0-9]{1,5})?")
_HEADERS = {hdrs.SERVER: "certfan", hdrs.CACHE_CONTROL: "no-store"}

_log = log.get("http01")


class Responder:
    """Answers validators on the listeners that it was started on.

    `tokens` gives the key authorization of a live token. `fetched` is told token and place of every answer that a
    GET got, after its last byte went out: `www.example.org from 192.168.1.5`. Both must be quick and not raise.
    `probes` is read at every request that is for no token: answers by whole path, our own self-checks' live ones.
    No path of a token is ever looked up in it, and no probe's path has the form of a token's.
    """

    def __init__(
        self,
        tokens: Callable[[str], str | None],
        fetched: Callable[[str, str], None],
        *,
        probes: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._tokens = tokens
        self._fetched = fetched
        self._probes = probes
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
        runner = web.ServerRunner(_Server(self._answer), shutdown_timeout=_STOP_PATIENCE)
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
        if runner:
            await runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.method not in {"GET", "HEAD"}:
            return _plain(405, {hdrs.ALLOW: "GET, HEAD"})
        found = _PATH.fullmatch(request.raw_path)
        text = self._tokens(found[1]) if found else self._probes.get(request.raw_path)
        if text is None:
            return _plain(404)
        response = web.Response(body=text.encode(), content_type="application/octet-stream", headers=_HEADERS)
        response.force_close()
        await response.prepare(request)
        await response.write_eof()
        if found and request.method == "GET":
            self._fetched(found[1], _place(request))
        return response


class _Server(web.Server):
    """Gives a connection ten seconds and one request: aiohttp itself waits for ever for the first header."""

    def __init__(self, handler: Callable[[web.BaseRequest], object]) -> None:
        super().__init__(handler)  # type: ignore[arg-type]
        self._deadlines: dict[web.RequestHandler, asyncio.TimerHandle] = {}

    def __call__(self) -> web.RequestHandler:
        return _Connection(
            self,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]  # its own class takes None
            max_line_size=MAX_LINE,
            max_field_size=MAX_LINE,
            max_headers=MAX_HEADERS,
            lingering_time=0,
            keepalive_timeout=PATIENCE,
        )

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        loop = asyncio.get_running_loop()
        if len(self._deadlines) >= MOST_CONNECTIONS:
            loop.call_soon(transport.abort)  # not at once: aiohttp's task of this connection must begin first
            return
        self._deadlines[handler] = loop.call_later(PATIENCE, transport.abort)

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        deadline = self._deadlines.pop(handler, None)
        if deadline:
            deadline.cancel()


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
        return _plain(status)


def _plain(status: int, headers: dict[str, str] | None = None) -> web.Response:
    response = web.Response(status=status, text=f"{status}\n", headers=_HEADERS | (headers or {}))
    response.force_close()
    return response


def _place(request: web.BaseRequest) -> str:
    """Say through which vhost, and from which machine, a request came."""
    forwarded = request.headers.get("X-Forwarded-Host", "").split(",")[0].strip()
    found = _HOST.fullmatch((forwarded or request.headers.get(hdrs.HOST, ""))[:300].lower())
    peer = request.transport.get_extra_info("peername") if request.transport else None
    address = peer[0] if isinstance(peer, tuple) else "a local socket"
    return f"{found[1] if found else 'an unnamed host'} from {address}"
