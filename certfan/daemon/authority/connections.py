"""HTTP/1.1 over TLS connections that are kept: what is HTTP decides aiohttp's parser.

aiohttp's own client spent a quarter of an exchange on what ACME has no use for: redirects, cookies, proxies, traces,
bodies that stream. What must never come in: who may be asked, and what an answer means.
"""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from typing import NamedTuple

from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpProcessingError, HttpResponseParser, RawResponseMessage
from aiohttp.streams import StreamReader
from multidict import CIMultiDictProxy

from certfan.daemon.authority.tls import Tls

MAX_BODY = 1024 * 1024
CONNECT_TIMEOUT = 10.0  # seconds for TCP and TLS; what a whole exchange may take is the caller's affair
# Below what servers and middleboxes allow, so that a request seldom meets a connection that is dying.
KEEP_ALIVE = 30.0
_NEXT_ADDRESS = 0.25  # seconds that one address is tried alone (RFC 8305)

Server = tuple[str, int]  # host and port


class NotConnected(Exception):
    """There was no connection, for what is its cause; nothing was sent. Never leaves this folder."""


class TooLong(Exception):
    """The body of an answer is longer than `MAX_BODY`; never leaves this folder."""


class Response(NamedTuple):
    """A whole answer."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes


class Connections:
    """Connections of one TLS context, of which at most so many are in use at once; who asks for one more waits."""

    def __init__(self, tls: ssl.SSLContext, most: int) -> None:
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._places = asyncio.Semaphore(most)
        self._kept: dict[Server, list[_Connection]] = {}  # unused, the one that was used last at the end
        self._timer: asyncio.TimerHandle | None = None  # one for all of them
        self._is_closed = False

    async def ask(self, server: Server, request: bytes, *, expects_body: bool) -> Response:
        """Send a request and return the answer. Cancelled, its connection is cut off, and no other.

        One that meets a kept connection just closed by the other side is sent once more, over a new one.

        Raises:
            NotConnected: nothing was sent.
            OSError: the connection ended before there was an answer.
            EOFError: it ended within the answer.
            HttpProcessingError: what came is not HTTP.
            TooLong: the body is longer than any of ours.
        """
        async with self._places:
            if (kept := self._take(server)) is not None:
                # That is no news about the server. Had the request been heard, its nonce is spent, and the second copy
                # is refused as badNonce.
                with suppress(ConnectionError):
                    return await self._ask_over(kept, request, expects_body=expects_body)
            return await self._ask_over(await self._open(server), request, expects_body=expects_body)

    async def _ask_over(self, connection: _Connection, request: bytes, *, expects_body: bool) -> Response:
        try:
            response = await connection.ask(request, expects_body=expects_body)
        except BaseException:
            connection.end()
            raise
        if connection.is_open and not self._is_closed:
            self._keep(connection)
        else:
            connection.end()
        return response

    async def _open(self, server: Server) -> _Connection:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                connection = _Connection(self._loop, server, self._tls)
                await connection.begin()
        except (OSError, ValueError) as error:  # a name may be none that DNS or a certificate can hold
            raise NotConnected from error
        return connection

    def _take(self, server: Server) -> _Connection | None:
        kept = self._kept.get(server, [])
        while kept:
            connection = kept.pop()
            if connection.is_open and self._loop.time() - connection.used_at < KEEP_ALIVE:
                return connection
            connection.end()
        return None

    def _keep(self, connection: _Connection) -> None:
        connection.used_at = self._loop.time()
        self._kept.setdefault(connection.server, []).append(connection)
        if self._timer is None:
            self._timer = self._loop.call_later(KEEP_ALIVE, self._end_idle)

    def _end_idle(self) -> None:
        self._timer = None
        for server, kept in list(self._kept.items()):
            before = self._loop.time() - KEEP_ALIVE
            while kept and kept[0].used_at <= before:
                kept.pop(0).end()
            if not kept:
                del self._kept[server]
        if self._kept:
            self._timer = self._loop.call_later(KEEP_ALIVE, self._end_idle)

    def close(self) -> None:
        """End the connections that nobody uses, and the others after their answers; repeatable."""
        self._is_closed = True
        if self._timer:
            self._timer.cancel()
        for kept in self._kept.values():
            for connection in kept:
                connection.end()
        self._kept.clear()


class _Connection(BaseProtocol):
    """One connection; it carries one request at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, server: Server, tls: ssl.SSLContext) -> None:
        super().__init__(loop)
        self.server = server
        self._tls = Tls(tls, server[0], self._received, self._lost)
        self.used_at = loop.time()
        self.stays = True  # for another request, as far as is known
        self._whole: asyncio.Future[Response] | None = None  # of the request under way
        self._http: HttpResponseParser | None = None
        self._head: RawResponseMessage | None = None
        self._body: StreamReader | None = None

    @property
    def is_open(self) -> bool:
        """Whether it can be asked."""
        return self.stays and self._tls.is_open

    async def begin(self) -> None:
        """Connect to the server; cancelled or raised OSError or UnicodeError, nothing is left of it."""
        host, port = self.server
        await asyncio.get_running_loop().create_connection(
            lambda: self._tls, host, port, happy_eyeballs_delay=_NEXT_ADDRESS
        )
        try:
            await self._tls.shake_hands()
        except BaseException:
            self.end()
            raise

    async def ask(self, request: bytes, *, expects_body: bool) -> Response:
        """Send a request and return its answer; raises as `Connections.ask`."""
        loop = asyncio.get_running_loop()
        self._whole = loop.create_future()
        # Its streams hold at most twice the limit, or tell us to pause.
        self._http = HttpResponseParser(
            self, loop, MAX_BODY // 2, response_with_body=expects_body, read_until_eof=True, auto_decompress=False
        )  # fmt: skip
        try:
            self._tls.write(request)
            return await self._whole
        finally:
            self._whole = self._head = self._body = None

    def end(self) -> None:
        """Cut it off; repeatable."""
        self.stays = False
        self._tls.end()

    def pause_reading(self) -> None:
        """Give up: more than `MAX_BODY` has come of one body."""
        self._fail(TooLong())

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Do nothing: reading never pauses."""

    def _received(self, data: bytes) -> None:
        if self._whole is None or self._whole.done():
            self.end()  # nothing was asked
            return
        assert self._http is not None
        try:
            messages, is_upgraded, _ = self._http.feed_data(data)
        except HttpProcessingError as error:
            self._fail(error)
            return
        for message, body in messages:
            if message.code >= 200 and self._head is None:
                self._head, self._body = message, body
                self.stays = not message.should_close
            elif message.code >= 200 or is_upgraded:
                self.stays = False  # more than was asked for
        self._finish()

    def _lost(self, exc: BaseException | None) -> None:
        """Note the end of it, which may also be that of an answer."""
        if self._head is None or exc is not None:
            self._fail(EOFError() if self._head else exc or ConnectionResetError())
        elif self._whole is not None and not self._whole.done():
            assert self._http is not None
            with suppress(HttpProcessingError):
                self._http.feed_eof()
            self._finish()
            self._fail(EOFError())

    def _finish(self) -> None:
        if self._head is None or self._body is None or self._whole is None or self._whole.done():
            return
        if self._body.is_eof():
            answer = Response(self._head.code, self._head.headers, self._body.read_nowait())
            self._whole.set_result(answer)

    def _fail(self, error: BaseException) -> None:
        if self._whole is not None and not self._whole.done():
            self._whole.set_exception(error)
