"""TLS to a server behind a relay that hands over its bytes as it likes: what is proven, and what is told of an end."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import trustme

from certfan.daemon.authority import connections
from certfan.daemon.authority.connections import Connections, NotConnected
from tests.unit.test_authority_connections import OK, REQUEST

AUTHORITY = trustme.CA()


class Relay:
    """Between us and a server that answers every request alike."""

    def __init__(self) -> None:
        self.theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        AUTHORITY.issue_cert("localhost").configure_cert(self.theirs)
        self.at_once = 2**16  # bytes
        self.instead = b""  # of what the server would say once it was asked
        self.heard = b""  # by the server
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Be the server."""
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0])
                self.heard = head + await reader.readexactly(length)
                writer.write(OK)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Be the way to it."""
        theirs, ours = await asyncio.open_connection("127.0.0.1", self.port)

        async def pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            while data := await source.read(self.at_once):
                target.write(self.instead if self.heard and self.instead else data)
                await target.drain()
            target.close()

        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(pass_on(reader, ours))
                tasks.create_task(pass_on(theirs, writer))
        except* ConnectionError:
            pass
        finally:
            ours.close()
            writer.close()


@pytest.fixture
async def relay() -> AsyncIterator[Relay]:
    relay = Relay()
    server = await asyncio.start_server(relay.serve, "127.0.0.1", 0, ssl=relay.theirs)
    relay.port = server.sockets[0].getsockname()[1]
    yield relay
    server.close()


async def ask(relay: Relay, request: bytes = REQUEST, *, host: str = "localhost", times: int = 1) -> bytes:
    return await ask_of(relay.relay, request, host, times)


async def ask_of(
    speak: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    request: bytes = REQUEST,
    host: str = "localhost",
    times: int = 1,
) -> bytes:
    """Ask whoever speaks at the other end, so many times over one connection."""
    ours = ssl.create_default_context()
    AUTHORITY.configure_trust(ours)
    listening = await asyncio.start_server(speak, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    kept = Connections(ours, 1)
    try:
        async with asyncio.timeout(5):
            found = [await kept.ask((host, port), request, expects_body=True) for _ in range(times)]
    finally:
        kept.close()
        listening.close()
    return b" ".join(one.body for one in found)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("at_once", [1, 7, 2**16])
async def test_what_comes_may_come_in_any_pieces(relay: Relay, version: ssl.TLSVersion, at_once: int) -> None:
    """Handshake, tickets and records, in either version of the protocol."""
    relay.theirs.minimum_version = relay.theirs.maximum_version = version
    relay.at_once = at_once

    assert await ask(relay, times=2) == b"ok ok"


async def test_a_request_of_several_records_is_sent_whole(relay: Relay) -> None:
    """A record holds 16 KiB."""
    request = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50000\r\n\r\n" + b"x" * 50_000

    assert await ask(relay, request) == b"ok"
    assert relay.heard == request


async def test_a_certificate_for_another_name_is_not_trusted(relay: Relay) -> None:
    """Nothing is sent to whoever cannot prove that it is who was asked for."""
    with pytest.raises(NotConnected) as caught:
        await ask(relay, host="127.0.0.1")

    assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)
    assert relay.heard == b""


async def test_a_record_that_was_tampered_with_ends_the_connection(relay: Relay) -> None:
    """It is told as what it is, not as an answer that broke off."""
    relay.instead = b"\x17\x03\x03\x00\x20" + bytes(32)

    with pytest.raises(ssl.SSLError, match=r"(?i)decryption failed"):
        await ask(relay)


@pytest.mark.parametrize("words", [b"220 mail.example ESMTP\r\n", b""])
async def test_who_speaks_no_tls_was_never_connected(words: bytes) -> None:
    """Whether it says something else, or hangs up."""

    async def speak(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(words)
        writer.close()

    with pytest.raises(NotConnected) as caught:
        await ask_of(speak)
    assert isinstance(caught.value.__cause__, ssl.SSLError if words else ConnectionError)


async def test_who_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the time for a connection, and its end is left to nobody."""
    monkeypatch.setattr(connections, "CONNECT_TIMEOUT", 0.1)
    ended = asyncio.Event()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        ended.set()
        writer.close()

    with pytest.raises(NotConnected) as caught:
        await ask_of(wait)
    assert isinstance(caught.value.__cause__, TimeoutError)
    async with asyncio.timeout(5):
        await ended.wait()
