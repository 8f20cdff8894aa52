"""Our end of TLS over a TCP connection: OpenSSL between two buffers in memory, asyncio's transport around them.

asyncio's own layer costs more, as it serves streams of any length: after every write it looks whether more can be read,
and reads until nothing is left. What must never come in: HTTP.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import cast

_READ = 16 * 1024  # bytes at once; no record holds more


class Tls(asyncio.BufferedProtocol):
    """One connection to a host: `received` is told what came, `lost` that it ended, and the error if that was why."""

    def __init__(
        self,
        context: ssl.SSLContext,
        host: str,
        received: Callable[[bytes], None],
        lost: Callable[[BaseException | None], None],
    ) -> None:
        """Raise ValueError for a host that no certificate can name."""
        self._received, self._lost = received, lost
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self._came = memoryview(bytearray(_READ))
        self._transport: asyncio.Transport | None = None
        self._shaking: asyncio.Future[None] | None = None  # hands
        self._error: ssl.SSLError | None = None

    @property
    def is_open(self) -> bool:
        """Whether what is written may be heard."""
        return self._transport is not None and not self._transport.is_closing()

    async def shake_hands(self) -> None:
        """Have the host prove who it is; nothing is to be written before. Cancelled, it can only be ended.

        Raises:
            OSError: it did not (SSLError, so also SSLCertVerificationError), or the connection was lost.
        """
        self._shaking = asyncio.get_running_loop().create_future()
        if self._transport is None:
            raise ConnectionResetError
        self._go_on()
        await self._shaking

    def write(self, data: bytes) -> None:
        """Send something; raises ConnectionResetError once the connection was lost."""
        if self._transport is None:
            raise ConnectionResetError
        while data:
            data = data[self._tls.write(data) :]  # which may take less than all
        self._flush()

    def end(self) -> None:
        """Cut it off; repeatable."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for `shake_hands`."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Tell whoever waits."""
        self._transport = None
        error = self._error or exc
        if self._shaking is not None and not self._shaking.done():
            self._shaking.set_exception(error or ConnectionResetError())
        self._lost(error)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where to put what comes."""
        return self._came

    def buffer_updated(self, nbytes: int) -> None:
        """Decrypt what came."""
        self._incoming.write(self._came[:nbytes])
        self._go_on()

    def _go_on(self) -> None:
        assert self._shaking is not None
        try:
            if not self._shaking.done():
                self._tls.do_handshake()
                self._shaking.set_result(None)
            while self._incoming.pending:
                self._read()
        except ssl.SSLWantReadError:
            pass  # the rest has not come yet
        except ssl.SSLError as error:
            self._error = error
        self._flush()
        if self._error is not None:
            self.end()

    def _read(self) -> None:
        if data := self._tls.read(_READ):
            self._received(data)
        elif self._transport is not None:
            self._transport.close()  # as they have done (close_notify)

    def _flush(self) -> None:
        if self._outgoing.pending and self._transport is not None:
            self._transport.write(self._outgoing.read())
