"""The channel's listener: TLS, connections, and their end."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace

from aiohttp import web

from certfan import log
from certfan.daemon.ca import CaFolder
from certfan.daemon.channel.board import Board
from certfan.daemon.channel.routes import PATIENCE, Routes, Trust, peer_certificate
from certfan.daemon.channel.waiting import Waiting
from certfan.daemon.listeners import Listener, bind
from certfan.errors import NotAuthenticated
from certfan.protocol.identity import consumer_of, find_half_open, server_context

_HANDSHAKE = 10  # seconds
_LINGER = 10.0  # seconds
_IDLE = 330  # seconds; longer than a blocking query and than the agents keep an idle connection
_log = log.get("channel")


class Channel:
    """Serves agents on exactly the given addresses.

    Known limits: a peer without a certificate that completes the handshake and then says nothing keeps its
    connection while its kernel answers keep-alives. The address is internal, and such a peer gets nothing else.
    A waiting agent costs 327 KiB, unless the process shrinks its TLS buffers (`certfan.tls`).
    """

    def __init__(
        self, ca: CaFolder, board: Board, *, listeners: tuple[Listener, ...], patience: float = PATIENCE
    ) -> None:
        """Give every body, and every answer but a blocking query's, `patience` seconds."""
        self._listeners = listeners
        self._waiting = Waiting(board)
        self._context = server_context(ca.anchors, ca.server_cert, ca.server_key)
        self._routes = Routes(
            board,
            self._waiting,
            fleet=ca.ca.fleet,
            ca_pem=ca.ca.cert_pem,
            end=self.end_sessions,
            patience=patience,
        )
        self._patience = patience
        self._http: web.Server | None = None
        self._servers: list[asyncio.Server] = []
        self._reading: asyncio.Task[None] | None = None

    @property
    def ports(self) -> tuple[int, ...]:
        """The port of each listener, in their order; of use when one was asked for as 0."""
        return tuple(server.sockets[0].getsockname()[1] for server in self._servers)

    async def start(self) -> None:
        """Listen everywhere or nowhere.

        Raises:
            OSError: naming the listener that cannot be bound.
        """
        # A waiting query ends with its connection; nobody decompresses what a stranger sent.
        self._http = web.Server(
            self._routes.answer,
            handler_cancellation=True,
            auto_decompress=False,
            access_log=None,
            keepalive_timeout=_IDLE,
            # How long the rest of a refused body is still read, so that the refusal is heard.
            lingering_time=min(_LINGER, self._patience),
        )
        self._reading = asyncio.create_task(self._waiting.run(), name="channel lists")
        try:
            for listener in self._listeners:
                self._servers.append(await self._listen(listener, self._http))
        except BaseException:
            await self.stop()
            raise

    async def _listen(self, listener: Listener, http: web.Server) -> asyncio.Server:
        try:
            sock = bind(listener)
        except OSError as error:
            raise OSError(error.errno, f"cannot listen on {listener}: {error.strerror or error}") from error
        find_half_open(sock)
        return await asyncio.get_running_loop().create_server(
            http,
            sock=sock,
            ssl=self._context,
            backlog=1024,
            ssl_handshake_timeout=_HANDSHAKE,
            ssl_shutdown_timeout=_HANDSHAKE,
        )

    async def stop(self) -> None:
        """Close listeners and connections; what an agent was asking, it asks again. Repeatable."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        if self._http is not None:
            self._abort(None)
            await self._http.shutdown(1)
            self._http = None
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])

    async def failed(self) -> None:
        """Wait until nobody can be answered any more, for as long as the channel runs; raises what ended it."""
        assert self._reading is not None
        await self._reading

    def renew(self, ca: CaFolder) -> None:
        """Show the pair that lies in the CA's folder now to every new connection; raises OSError."""
        self._context.load_cert_chain(ca.server_cert, ca.server_key)

    @property
    def pinned(self) -> Mapping[str, int]:
        """Which statement of trust each consumer has, as it last said."""
        return self._routes.pinned

    def offer(self, trust: Trust) -> None:
        """Offer a statement of trust to every agent that has an older one."""
        self._routes.offer(trust)

    async def believe(self, ca: CaFolder) -> None:
        """Listen anew with what the CA's folder holds now; every agent comes back by itself.

        A context that is in use forgets no CA, so there is another one. Cancelled, nobody may listen any more.

        Raises:
            OSError: an address that was ours cannot be bound any more.
        """
        self._context = server_context(ca.anchors, ca.server_cert, ca.server_key)
        self._routes.believe(ca.ca.cert_pem)
        if self._http is None:
            return
        there = [replace(one, port=port) for one, port in zip(self._listeners, self.ports, strict=True)]
        for server in self._servers:
            server.close()
        self._abort(None)
        self._servers = [await self._listen(listener, self._http) for listener in there]

    def announce(self, consumer: str) -> None:
        """Wake a consumer's blocking queries: its assignments have, or may have, a new revision."""
        self._waiting.announce(consumer)

    def end_sessions(self, consumer: str, *, but: str = "") -> None:
        """Close a consumer's live connections at once, those aside that show the identity with the serial `but`.

        What they show must have ended in the store before.
        """
        if ended := self._abort(consumer, but):
            _log.info("session.ended", consumer=consumer, connections=ended)

    def _abort(self, consumer: str | None, but: str = "") -> int:
        # Ending is rare, connections are many: none pays for a list of its own.
        ended = 0
        for connection in self._http.connections if self._http else ():
            transport = connection.transport
            # One that is closing hears nothing more, and abort() after two close() fails (Python 3.11).
            if not transport or transport.is_closing():
                continue
            if consumer is None or _is_of(transport, consumer, but):
                transport.abort()
                ended += 1
        return ended


def _is_of(transport: asyncio.BaseTransport, consumer: str, but: str) -> bool:
    try:
        caller = consumer_of(peer_certificate(transport))
    except NotAuthenticated:
        return False
    return caller.consumer == consumer and caller.serial != but
