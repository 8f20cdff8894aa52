"""One plain TCP connection that becomes TLS, over a socket whose every byte we count.

TLS runs over memory buffers instead of asyncio's streams: so we know that nothing was received before the
handshake (STARTTLS injection, the class of CVE-2021-38371), and no transport outlives a cancelled probe.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from certfan.errors import ProbeRefused, ProbeUnreachable

MAX_LINE = 8 * 1024
MAX_BYTES = 512 * 1024  # chains of real servers stay below 20 KiB


class Wire:
    """What a protocol needs to come to its handshake: lines out, lines in, then TLS once."""

    def __init__(self, connection: socket.socket, *, where: str) -> None:
        self._connection = connection
        self._where = where
        self._buffer = b""
        self._received = 0

    async def send(self, line: str) -> None:
        """Send one line; CRLF is added."""
        await asyncio.get_running_loop().sock_sendall(self._connection, line.encode() + b"\r\n")

    async def line(self) -> str:
        """Return the next line without its end; what is not ASCII is shown escaped.

        Raises:
            ProbeRefused: the peer closed, or says more than any server would.
        """
        while b"\n" not in self._buffer:
            if len(self._buffer) > MAX_LINE:
                raise self.refused("sent a line without end")
            received = await self._receive()
            if not received:
                raise self.refused("closed before TLS")
            self._buffer += received
        line, _, self._buffer = self._buffer.partition(b"\n")
        if len(line) > MAX_LINE:
            raise self.refused("sent a line without end")
        return line.rstrip(b"\r").decode("ascii", "backslashreplace")

    def refused(self, what: str) -> ProbeRefused:
        """Return the error that says what the peer did instead; its own words are cut and made printable."""
        said = "".join(c if c.isprintable() else "?" for c in what)[:200]
        return ProbeRefused(f"{self._where} {said}", subject=self._where)

    async def handshake(self, server_name: str) -> bytes:
        """Do the TLS handshake and return the leaf's DER.

        Raises:
            ProbeRefused: data came before the handshake, the name cannot be asked for, or no leaf was served.
            ssl.SSLError: TLS failed.
        """
        if self._buffer:
            raise self.refused("sent data before the handshake, as STARTTLS injection does")
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        try:
            session = _context().wrap_bio(incoming, outgoing, server_hostname=server_name)
        except (ValueError, TypeError) as error:  # TypeError: a null byte
            raise self.refused(f"cannot be asked for {server_name!r}: {error}") from error
        while not _done(session):
            await self._flush(outgoing)
            if received := await self._receive():
                incoming.write(received)
            else:
                incoming.write_eof()
        await self._flush(outgoing)
        leaf = session.getpeercert(binary_form=True)
        await self._part(session, outgoing)
        if leaf is None:
            raise self.refused("served no certificate")
        return leaf

    async def _part(self, session: ssl.SSLObject, outgoing: ssl.MemoryBIO) -> None:
        # A close_notify spares the service a line about a broken connection in its log; nobody waits for its answer.
        with suppress(ssl.SSLError, OSError):
            try:
                session.unwrap()
            finally:
                await self._flush(outgoing)

    async def _flush(self, outgoing: ssl.MemoryBIO) -> None:
        if data := outgoing.read():
            await asyncio.get_running_loop().sock_sendall(self._connection, data)

    async def _receive(self) -> bytes:
        received = await asyncio.get_running_loop().sock_recv(self._connection, 16 * 1024)
        self._received += len(received)
        if self._received > MAX_BYTES:
            raise self.refused(f"sent more than {MAX_BYTES} bytes")
        return received


@asynccontextmanager
async def connect(address: str, port: int, *, where: str) -> AsyncIterator[Wire]:
    """Open a new connection to a literal IP address; it is closed on the way out, whatever happens.

    Raises:
        ProbeUnreachable: nothing listens there, no route, or the address is none.
    """
    try:
        version = ipaddress.ip_address(address).version
    except ValueError as error:
        raise ProbeUnreachable(f"{where}: {address} is no IP address", subject=where) from error
    with socket.socket(socket.AF_INET6 if version == 6 else socket.AF_INET, socket.SOCK_STREAM) as connection:
        connection.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(connection, (address, port))
        except OSError as error:
            raise ProbeUnreachable(
                f"{where} cannot be reached: {error.strerror or error}", subject=where
            ) from error
        yield Wire(connection, where=where)


def _done(session: ssl.SSLObject) -> bool:
    try:
        session.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    # A weak key is still the leaf that is served.
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    return context
