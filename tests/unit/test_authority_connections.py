"""Kept connections to a server that writes what it likes: what is one answer, and when a connection is used again."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime

import pytest
import trustme
from aiohttp.http import HttpProcessingError

from certfan.core.model import Authority
from certfan.daemon.authority import connections
from certfan.daemon.authority.connections import MAX_BODY, Connections, NotConnected, Response, TooLong
from certfan.daemon.authority.transport import Transport, _cause
from certfan.errors import AuthorityMalformed
from tests.unit.odd_authority import OddAuthority

REQUEST = b"POST / HTTP/1.1\r\nHost: ca.example\r\nContent-Length: 0\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
END = b""  # of the stream


class Server:
    """Answers request by request with a list of pieces, each in a packet of its own; the last list over and over."""

    def __init__(self) -> None:
        self.answers: list[list[bytes]] = [[OK]]
        self.connections = 0
        self.one_ended = asyncio.Event()
        self._writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.append(writer)
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                pieces = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                for piece in pieces:
                    if piece == END:
                        return
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0.01)  # so that it is read by itself
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.one_ended.set()
            writer.close()

    def say(self, text: bytes) -> None:
        """Write to everybody who is connected, asked or not."""
        for writer in self._writers:
            writer.write(text)


Ask = Callable[..., Awaitable[Response]]


@pytest.fixture
async def server() -> Server:
    return Server()


@pytest.fixture
async def ask(server: Server) -> AsyncIterator[Ask]:
    """Ask the server; two connections may be in use at once."""
    authority = trustme.CA()
    theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(theirs)
    ours = ssl.create_default_context()
    authority.configure_trust(ours)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=theirs)
    port = listening.sockets[0].getsockname()[1]
    kept = Connections(ours, 2)

    async def ask(expects_body: bool = True) -> Response:
        async with asyncio.timeout(5):
            return await kept.ask(("127.0.0.1", port), REQUEST, expects_body=expects_body)

    yield ask
    kept.close()
    listening.close()


@pytest.mark.parametrize(
    ("pieces", "body"),
    [
        ([OK], b"ok"),
        ([OK[:20], OK[20:-1], OK[-1:]], b"ok"),
        ([b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n", OK], b"ok"),
        ([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n", b"1\r\nk\r\n0\r\n\r\n"], b"ok"),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"], b""),
    ],
)
async def test_an_answer_may_come_in_any_pieces_and_its_connection_is_used_again(
    server: Server, ask: Ask, pieces: list[bytes], body: bytes
) -> None:
    """What only says that one will come is no answer."""
    server.answers = [pieces]

    assert [(200, body)] * 3 == [((one := await ask()).status, one.body) for _ in range(3)]
    assert server.connections == 1


async def test_the_answer_to_head_has_no_body_whatever_length_it_names(server: Server, ask: Ask) -> None:
    """The length is that of a body which GET would have had."""
    server.answers = [[b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\nReplay-Nonce: AAAA\r\n\r\n"], [OK]]

    assert (await ask(expects_body=False)).headers["replay-nonce"] == "AAAA"
    assert (await ask()).body == b"ok"
    assert server.connections == 1


@pytest.mark.parametrize(
    "pieces",
    [
        [b"HTTP/1.1 200 OK\r\n\r\no", b"k", END],
        [b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok"],
        [b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"],
        [OK + OK],
    ],
)
async def test_a_connection_that_is_to_end_or_said_too_much_is_not_used_again(
    server: Server, ask: Ask, pieces: list[bytes]
) -> None:
    """A body without a length ends with its connection; a second answer was asked for by nobody."""
    server.answers = [pieces]

    assert [b"ok", b"ok"] == [(await ask()).body for _ in range(2)]
    assert server.connections == 2


async def test_what_comes_unasked_is_the_answer_to_nothing(server: Server, ask: Ask) -> None:
    """Its connection is ended, so that the next request does not take it for its own."""
    await ask()
    server.say(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfake")
    async with asyncio.timeout(5):
        await server.one_ended.wait()

    assert (await ask()).body == b"ok"
    assert server.connections == 2


@pytest.mark.parametrize(
    "pieces",
    [
        [OK[:-1], END],
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n", END],
    ],
)
async def test_an_answer_that_breaks_off_is_not_a_shorter_one(
    server: Server, ask: Ask, pieces: list[bytes]
) -> None:
    """Nor is it asked for again: it was heard."""
    server.answers = [[OK], pieces]
    await ask()

    with pytest.raises(EOFError):
        await ask()
    assert server.connections == 1


async def test_a_connection_that_ends_without_a_word_is_replaced_once(server: Server, ask: Ask) -> None:
    """Only one that was kept; a new one that does so is an answer that never came."""
    server.answers = [[OK], [END], [OK], [END], [END], [OK]]
    await ask()

    assert (await ask()).body == b"ok"
    with pytest.raises(ConnectionError):
        await ask()
    assert (await ask()).body == b"ok"
    assert server.connections == 4


async def test_what_is_not_http_is_named(server: Server, ask: Ask) -> None:
    """And its connection is ended."""
    server.answers = [[b"220 mail.example ESMTP\r\n"], [OK]]

    with pytest.raises(HttpProcessingError):
        await ask()
    assert (await ask()).body == b"ok"
    assert server.connections == 2


@pytest.mark.parametrize(
    "head", [b"Content-Length: %d\r\n\r\n" % (MAX_BODY + 1), b"\r\n", b"Transfer-Encoding: chunked\r\n\r\n"]
)
async def test_a_body_of_more_than_a_mebibyte_is_cut_off_where_it_is(
    server: Server, ask: Ask, head: bytes
) -> None:
    """However its length is said, or if it is not; one byte less is taken."""
    if b"chunked" in head:
        body = b"%x\r\n%b\r\n" % (MAX_BODY + 1, bytes(MAX_BODY + 1))
    else:
        body = bytes(MAX_BODY + 1)
    server.answers = [
        [b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % MAX_BODY + bytes(MAX_BODY)],
        [b"HTTP/1.1 200 OK\r\n" + head, body, b"more"],
    ]

    assert len((await ask()).body) == MAX_BODY
    with pytest.raises(TooLong):
        await ask()


async def test_no_more_connections_are_in_use_than_may_be(server: Server, ask: Ask) -> None:
    """Others wait for theirs, and get it."""
    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(ask()) for _ in range(10)]

    assert [b"ok"] * 10 == [one.result().body for one in asked]
    assert server.connections == 2


async def test_a_connection_that_idles_is_ended(
    server: Server, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a middlebox forgets it."""
    monkeypatch.setattr(connections, "KEEP_ALIVE", 0.05)
    await ask()

    async with asyncio.timeout(5):
        await server.one_ended.wait()
    assert (await ask()).body == b"ok"
    assert server.connections == 2


async def test_what_was_never_sent_is_told_from_what_was() -> None:
    """A name that nobody has, and one that nobody can have; of several addresses the first says why."""
    kept = Connections(ssl.create_default_context(), 2)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    for host, why in (("localhost", "connection refused"), ("a" * 64 + ".invalid", "label")):
        with pytest.raises(NotConnected) as caught:
            await kept.ask((host, port), REQUEST, expects_body=True)
        assert why in _cause(caught.value.__cause__)
    kept.close()

    several = OSError("Multiple exceptions: [Errno 113] Connect call failed ('::1', 1), [Errno 111] ...")
    assert _cause(several) == "no route to host"


async def test_a_url_that_would_break_a_request_line_is_never_asked() -> None:
    """A space would end the target early."""
    transport = Transport(Authority("lab", "https://ca.example/dir"), lambda: datetime.now(UTC))

    with pytest.raises(AuthorityMalformed, match="is no URL"):
        await transport.send("GET", "https://ca.example/a HTTP/1.1 b", data=None, headers={})


@pytest.mark.parametrize(
    ("end", "target"),
    [
        ("/order/1?a=b#c", "/order/1?a=b"),
        ("/a%20b;c", "/a%20b;c"),
        ("?a=b", "/?a=b"),
        ("", "/"),
        ("#c/d", "/"),
    ],
)
async def test_a_url_is_asked_for_as_it_is_but_for_its_fragment(
    ca: OddAuthority, end: str, target: str
) -> None:
    """It is what was signed; and a path is never empty (RFC 9112 section 3.2.1)."""
    transport = Transport(
        Authority("lab", f"{ca.url}/dir", ca_file=str(ca.ca_file)), lambda: datetime.now(UTC)
    )

    await transport.send("GET", ca.url + end, data=None, headers={})
    await transport.close()

    assert (target, f"127.0.0.1:{ca.port}") == (ca.raw[-1].raw_path, ca.raw[-1].host)
