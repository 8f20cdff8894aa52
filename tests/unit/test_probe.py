"""Probes against real loopback servers: the leaf that is served, and what hostile peers get."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from certfan import pki
from certfan.errors import ProbeError, ProbeRefused, ProbeUnreachable
from certfan.probe import PROTOCOLS, probe

NAME = "www.example.org"
QUICK = timedelta(seconds=5)
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

GREETING = {
    "smtp": b"220 mail ESMTP\r\n",
    "lmtp": b"220 mail LMTP\r\n",
    "imap": b"* OK [CAPABILITY IMAP4rev1 STARTTLS] ready\r\n",
    "pop3": b"+OK ready\r\n",
}
# What the client must say, and what it then hears; the last answer starts TLS.
SCRIPT = {
    "smtp": [
        (b"EHLO probe.invalid\r\n", b"250-mail\r\n250-starttls\r\n250 SIZE 1\r\n"),
        (b"STARTTLS\r\n", b"220 go\r\n"),
    ],
    "lmtp": [
        (b"LHLO probe.invalid\r\n", b"250-mail\r\n250 STARTTLS\r\n"),
        (b"STARTTLS\r\n", b"220 2.0.0 go\r\n"),
    ],
    "imap": [(b"a STARTTLS\r\n", b"* CAPABILITY IMAP4rev1\r\na OK go\r\n")],
    "pop3": [(b"STLS\r\n", b"+OK go\r\n")],
}


class Served:
    """A pair on disk and the server context that shows it."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        key, cert = pki.make_placeholder(names, datetime.now(UTC))
        (folder / f"{names[0]}.pem").write_bytes(key + cert)
        self.leaf = pki.read_leaf(cert)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(folder / f"{names[0]}.pem")
        self.asked: list[str | None] = []
        self.context.sni_callback = lambda _tls, name, _context: self.asked.append(name)


@pytest.fixture
def served(tmp_path: Path) -> Served:
    return Served(tmp_path, [NAME])


@contextlib.asynccontextmanager
async def listening(
    handler: Handler, *, tls: ssl.SSLContext | None = None, address: str = "127.0.0.1"
) -> AsyncIterator[int]:
    """Run a server on a free port; its handlers have ended when the block does."""
    running: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, ssl.SSLError):
            await handler(reader, writer)
        with contextlib.suppress(OSError, ssl.SSLError):
            writer.close()
            await writer.wait_closed()

    server = await asyncio.start_server(handle, address, 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()
        if running:
            _, late = await asyncio.wait(running, timeout=5)
            for task in late:
                task.cancel()


async def until_closed(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await reader.read()


def scripted(protocol: str, context: ssl.SSLContext, *, extra: bytes = b"") -> Handler:
    """Return a server that speaks a protocol up to TLS; `extra` goes out behind the last plain answer."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GREETING[protocol])
        for place, (expected, answer) in enumerate(SCRIPT[protocol], start=1):
            assert await reader.readline() == expected
            writer.write(answer + (extra if place == len(SCRIPT[protocol]) else b""))
        await writer.start_tls(context)
        await reader.read()

    return handle


def saying(*answers: bytes) -> Handler:
    """Return a server that says each answer at once and after every line it hears, then waits."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            writer.write(answer)
            await writer.drain()
            if not await reader.readline():
                return
        await reader.read()

    return handle


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_implicit_tls_shows_the_leaf_for_the_name_asked(served: Served, address: str) -> None:
    """The served leaf comes back whatever its trust, over IPv4 and IPv6, and SNI carries the name."""
    async with listening(until_closed, tls=served.context, address=address) as port:
        seen = await probe("tls", address, port, NAME, timeout=QUICK)

    assert seen == served.leaf
    assert served.asked == [NAME]


async def test_an_ip_address_as_name_sends_no_sni(served: Served) -> None:
    """RFC 6066 knows no address in SNI."""
    async with listening(until_closed, tls=served.context) as port:
        seen = await probe("tls", "127.0.0.1", port, "192.0.2.1", timeout=QUICK)

    assert seen == served.leaf
    assert served.asked == [None]


@pytest.mark.parametrize("protocol", sorted(SCRIPT))
async def test_starttls_shows_the_leaf(served: Served, protocol: str) -> None:
    """Each dialect comes to its handshake."""
    async with listening(scripted(protocol, served.context)) as port:
        seen = await probe(protocol, "127.0.0.1", port, NAME, timeout=QUICK)

    assert seen.fingerprint == served.leaf.fingerprint


@pytest.mark.parametrize("protocol", sorted(SCRIPT))
async def test_data_before_the_handshake_is_refused(served: Served, protocol: str) -> None:
    """What is injected behind the answer to STARTTLS never counts as the server's."""
    async with listening(scripted(protocol, served.context, extra=b"250 injected\r\n")) as port:
        with pytest.raises(ProbeRefused, match="before the handshake"):
            await probe(protocol, "127.0.0.1", port, NAME, timeout=QUICK)


async def test_a_replaced_pair_is_seen_at_the_next_probe(served: Served, tmp_path: Path) -> None:
    """Every probe is a new connection, so it sees what new clients see."""
    other = Served(tmp_path, ["other.example.org"])
    async with listening(until_closed, tls=served.context) as port:
        first = await probe("tls", "127.0.0.1", port, NAME, timeout=QUICK)
        served.context.load_cert_chain(tmp_path / "other.example.org.pem")
        second = await probe("tls", "127.0.0.1", port, NAME, timeout=QUICK)

    assert [first, second] == [served.leaf, other.leaf]


@pytest.mark.parametrize(
    ("protocol", "answers", "what"),
    [
        ("smtp", [b"554 go away\r\n"], "554 go away"),
        ("smtp", [b"220 mail\r\n", b"250-mail\r\n250 SIZE 1\r\n"], "offers no STARTTLS"),
        ("smtp", [b"220 mail\r\n", b"250 STARTTLS\r\n"], "offers no STARTTLS"),
        ("smtp", [b"220 mail\r\n", b"250-mail\r\n250 STARTTLS\r\n", b"454 TLS not available\r\n"], "454 TLS"),
        ("lmtp", [b"220 mail\r\n", b"500 what\r\n"], "500 what"),
        ("imap", [b"* PREAUTH hello\r\n"], "PREAUTH"),
        ("imap", [b"* OK\r\n", b"a BAD unknown\r\n"], "BAD unknown"),
        ("pop3", [b"-ERR busy\r\n"], "ERR busy"),
        ("tls", [b"HTTP/1.1 400 Bad Request\r\n\r\n"], "no TLS handshake"),
        ("smtp", [b"2" * 20_000], "line without end"),
        ("imap", [b"* OK\r\n", b"* spam\r\n" * 100_000], "more than"),
        ("smtp", [b"220-x\r\n" * 100_000], "more than"),
    ],
)
async def test_a_refusal_says_what_the_peer_said(protocol: str, answers: list[bytes], what: str) -> None:
    """Peers that offer no TLS, or talk without end, are refused with the cause."""
    async with listening(saying(*answers)) as port:
        with pytest.raises(ProbeRefused, match=what):
            await probe(protocol, "127.0.0.1", port, NAME, timeout=QUICK)


async def test_a_peers_words_are_made_printable() -> None:
    """Terminal escapes of a peer do not reach a log."""
    async with listening(saying(b"554 \x1b[2J\xff\r\n")) as port:
        with pytest.raises(ProbeRefused) as caught:
            await probe("smtp", "127.0.0.1", port, NAME, timeout=QUICK)

    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("protocol", sorted(PROTOCOLS))
async def test_a_peer_that_hangs_up_refuses(protocol: str) -> None:
    """A closed connection is an answer, though no leaf."""

    async def hang_up(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        return

    async with listening(hang_up) as port:
        with pytest.raises(ProbeRefused):
            await probe(protocol, "127.0.0.1", port, NAME, timeout=QUICK)


@pytest.mark.parametrize("protocol", sorted(PROTOCOLS))
async def test_a_silent_peer_is_given_up(protocol: str) -> None:
    """Nobody keeps a probe longer than its patience."""
    async with listening(until_closed) as port:
        with pytest.raises(ProbeUnreachable, match=r"within 0\.1 s"):
            await probe(protocol, "127.0.0.1", port, NAME, timeout=timedelta(seconds=0.1))


async def test_a_peer_that_drips_is_given_up() -> None:
    """The timeout is for the whole probe, not for each byte."""

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        gone = asyncio.ensure_future(reader.read())
        while not gone.done():
            writer.write(b"2")
            await writer.drain()
            await asyncio.wait([gone], timeout=0.02)

    async with listening(drip) as port:
        with pytest.raises(ProbeUnreachable):
            await probe("smtp", "127.0.0.1", port, NAME, timeout=timedelta(seconds=0.2))


def closed_port() -> Iterator[int]:
    import socket

    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # bound, never listening
        yield reserved.getsockname()[1]


async def test_nothing_listening_is_unreachable() -> None:
    """A refused connection names the endpoint and the cause."""
    for port in closed_port():
        with pytest.raises(ProbeUnreachable, match="cannot be reached"):
            await probe("tls", "127.0.0.1", port, NAME, timeout=QUICK)


@pytest.mark.parametrize("name", ["", ".example.org", "a" * 300, "b\0d.example.org"])
async def test_a_name_that_cannot_be_asked_for_is_an_error_of_the_tree(served: Served, name: str) -> None:
    """No odd name makes another exception."""
    async with listening(until_closed, tls=served.context) as port:
        with pytest.raises(ProbeError):
            await probe("tls", "127.0.0.1", port, name, timeout=QUICK)


@pytest.mark.parametrize(("protocol", "address"), [("gopher", "127.0.0.1"), ("tls", "localhost")])
async def test_unknown_protocols_and_names_as_addresses_are_errors_of_the_tree(
    protocol: str, address: str
) -> None:
    """A probe resolves nothing."""
    with pytest.raises(ProbeError):
        await probe(protocol, address, 1, NAME, timeout=QUICK)
