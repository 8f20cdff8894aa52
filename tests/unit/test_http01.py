"""The http-01 responder on real sockets: live tokens only, whoever asks and however."""

import asyncio
import contextlib
import os
import resource
import select
import socket
import stat
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Self
from unittest.mock import ANY

import pytest
from structlog.testing import capture_logs

from certfan.daemon.challenges import connections
from certfan.daemon.challenges.http01 import Responder
from certfan.daemon.listeners import Listener

TOKEN = "tokenTOKENtokenTOKEN_-"
PATH = f"/.well-known/acme-challenge/{TOKEN}"
ANSWER = f"{TOKEN}.thumbprint"
PROBE = "/.well-known/acme-challenge/certfan~probe"


class Rig:
    """A responder with one live token, and what it told."""

    def __init__(self) -> None:
        self.live = {TOKEN: ANSWER}
        self.told: list[tuple[str, str]] = []
        self.asked: list[str] = []
        self.probes: dict[str, str] = {}
        self.responder = Responder(
            self._look, lambda token, place: self.told.append((token, place())), probes=self.probes
        )

    def _look(self, token: str) -> str | None:
        self.asked.append(token)
        return self.live.get(token)

    @property
    def port(self) -> int:
        return self.responder.addresses[0][1]  # type: ignore[index]

    async def ask(self, request: str | bytes) -> tuple[int, dict[str, str], bytes]:
        """Send bytes as they are; return status, headers (lower case) and everything after them."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        return await exchange(reader, writer, request)

    async def get(self, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
        lines = [
            f"{name.replace('_', '-')}: {value}"
            for name, value in {"Host": "a.example", "Connection": "close", **headers}.items()
        ]
        return await self.ask("\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]))


async def exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: str | bytes
) -> tuple[int, dict[str, str], bytes]:
    async with asyncio.timeout(5):
        writer.write(request.encode() if isinstance(request, str) else request)
        received = await reader.read()
        writer.close()
        await writer.wait_closed()
    head, _, body = received.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    return int(status.split()[1]), dict(line.lower().split(": ", 1) for line in lines), body


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    await rig.responder.start([Listener("127.0.0.1", 0)])
    yield rig
    await rig.responder.stop()


async def test_a_live_token_gets_its_key_authorization_and_nothing_more(rig: Rig) -> None:
    """Plain bytes, never cached, without the name of any software."""
    status, headers, body = await rig.get(PATH)

    assert (status, body) == (200, ANSWER.encode())
    assert headers["content-type"] == "application/octet-stream"
    assert headers["cache-control"] == "no-store"
    assert headers["server"] == "certfan"


async def test_head_gets_the_headers_alone_and_counts_for_nothing(rig: Rig) -> None:
    """No body, so no validator has seen it."""
    status, headers, body = await rig.get(PATH, "HEAD")

    assert (status, body) == (200, b"")
    assert headers["content-length"] == str(len(ANSWER))
    assert rig.told == []


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"])
async def test_other_methods_are_not_allowed(rig: Rig, method: str) -> None:
    """For a live token too."""
    status, headers, _ = await rig.get(PATH, method)

    assert (status, headers["allow"]) == (405, "get, head")
    assert (rig.asked, rig.told) == ([], [])


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/.well-known/acme-challenge/",
        "/.well-known/acme-challenge/unknown",
        f"{PATH}/",
        f"{PATH}?x=1",
        f"/{PATH}",
        f"/.well-known/acme-challenge/../acme-challenge/{TOKEN}",
        f"/.well-known/acme-challenge/%74{TOKEN[1:]}",
        f"/.WELL-KNOWN/acme-challenge/{TOKEN}",
        f"/.well-known/acme-challenge/{'x' * 129}",
        f"http://a.example{PATH}",
    ],
)
async def test_everything_else_is_not_found(rig: Rig, path: str) -> None:
    """Exactly the path of the RFC, exactly a token; nothing is decoded or normalised."""
    status, headers, body = await rig.get(path)

    assert (status, body) == (404, b"404\n")
    assert headers["server"] == "certfan"
    assert rig.told == []


async def test_a_probe_is_answered_while_it_lives_and_told_to_nobody(rig: Rig) -> None:
    """No order waits for it, and no token is ever looked up for its sake."""
    before = (await rig.get(PROBE))[0]
    rig.probes[PROBE] = "mine"

    assert (before, await rig.get(PROBE)) == (404, (200, ANY, b"mine"))
    assert (rig.asked, rig.told) == ([], [])


async def test_no_token_is_ever_answered_from_the_probes(rig: Rig) -> None:
    """Not even if one of its very path stood there."""
    rig.probes[PATH] = "mine"
    rig.live.clear()

    assert (await rig.get(PATH))[0] == 404


async def test_a_token_is_live_as_long_as_it_is_live(rig: Rig) -> None:
    """Nothing is remembered between requests."""
    first = (await rig.get(PATH))[0]
    rig.live.clear()

    assert [first, (await rig.get(PATH))[0]] == [200, 404]


@pytest.mark.parametrize(
    ("headers", "place"),
    [
        ({}, "a.example from 127.0.0.1"),
        ({"Host": "WWW.Example.org:80"}, "www.example.org from 127.0.0.1"),
        ({"Host": "[2001:db8::1]:80"}, "[2001:db8::1] from 127.0.0.1"),
        ({"Host": "cert.int:8055", "X_Forwarded_Host": "a.example, proxy"}, "a.example from 127.0.0.1"),
        ({"Host": "<script>"}, "an unnamed host from 127.0.0.1"),
        ({"X_Forwarded_Host": "a\\b"}, "an unnamed host from 127.0.0.1"),
        ({"Host": "x" * 254}, "an unnamed host from 127.0.0.1"),
    ],
)
async def test_an_answer_is_told_with_the_vhost_that_it_went_through(
    rig: Rig, headers: dict[str, str], place: str
) -> None:
    """Sanitised: it ends up in a timeline."""
    await rig.get(PATH, **headers)

    assert rig.told == [(TOKEN, place)]


async def test_the_answer_is_out_before_it_is_told() -> None:
    """Polling sooner than the validator has read would be a wasted request."""
    arrived: list[bool] = []
    told = asyncio.Event()
    rig = Rig()

    def fetched(_token: str, _place: object) -> None:
        arrived.append(receiver.recv(65536).endswith(ANSWER.encode()))
        told.set()

    rig.responder = Responder(rig.live.get, fetched)
    await rig.responder.start([Listener("127.0.0.1", 0)])
    with socket.create_connection(("127.0.0.1", rig.port)) as receiver:
        receiver.settimeout(1)
        receiver.sendall(f"GET {PATH} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        async with asyncio.timeout(5):
            await told.wait()
    await rig.responder.stop()

    assert arrived == [True]


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET\r\n\r\n",
        b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\x1b[2J\r\n\r\n",
        b"GET " + b"/x" * 4000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 8000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
)
async def test_what_is_no_sane_http_gets_a_short_refusal(
    rig: Rig, request_bytes: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    """No echo, no traceback, no software's name, and the next client is served."""
    status, headers, body = await rig.ask(request_bytes)

    assert (status, body) == (400, b"400\n")
    assert headers["server"] == "certfan"
    assert (await rig.get(PATH))[0] == 200
    assert "Traceback" not in "".join(capfd.readouterr())


class Kept:
    """One connection that asks again and again."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        with contextlib.suppress(ConnectionResetError):
            await self._writer.wait_closed()

    async def send(self, request: str) -> None:
        self._writer.write(request.encode())
        await self._writer.drain()

    async def answer(self) -> tuple[int, bytes, bytes]:
        """Return status, the `Connection` header and the body of the next answer."""
        async with asyncio.timeout(5):
            head = await self._reader.readuntil(b"\r\n\r\n")
            fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
            body = await self._reader.readexactly(int(fields[b"content-length"]))
        return int(head.split()[1]), fields[b"connection"], body

    async def rest(self) -> bytes:
        """Return what comes until the other side closes."""
        async with asyncio.timeout(5):
            return await self._reader.read()


def request(path: str = PATH, *lines: str, version: str = "1.1") -> str:
    return "\r\n".join([f"GET {path} HTTP/{version}", "Host: a.example", *lines, "", ""])


async def test_a_connection_may_ask_again_and_is_told_each_time(rig: Rig) -> None:
    """Validators close, proxies do not: a kept connection saves them the next handshake."""
    async with Kept(rig.port) as kept:
        answers = []
        for path in (PATH, "/unknown", PATH):
            await kept.send(request(path))
            answers.append(await kept.answer())
        await kept.send(request(PATH, "Connection: close"))
        last = await kept.answer()

        ok, missing = (200, b"keep-alive", ANSWER.encode()), (404, b"keep-alive", b"404\n")
        assert answers == [ok, missing, ok]
        assert (last, await kept.rest()) == ((200, b"close", ANSWER.encode()), b"")
        assert rig.told == [(TOKEN, "a.example from 127.0.0.1")] * 3


@pytest.mark.parametrize(("lines", "stays"), [((), b"close"), (("Connection: keep-alive",), b"keep-alive")])
async def test_http_1_0_is_kept_only_when_it_asks_for_that(
    rig: Rig, lines: tuple[str, ...], stays: bytes
) -> None:
    """Old proxies wait for the end of the connection."""
    async with Kept(rig.port) as kept:
        await kept.send(request(PATH, *lines, version="1.0"))

        assert await kept.answer() == (200, stays, ANSWER.encode())
        if stays == b"keep-alive":
            await kept.send("nonsense\r\n\r\n")
            assert (await kept.answer())[0] == 400
        assert await kept.rest() == b""


async def test_requests_sent_in_one_breath_are_answered_in_their_order(rig: Rig) -> None:
    """Each exactly once."""
    async with Kept(rig.port) as kept:
        await kept.send(request() + request("/unknown") + request(PATH, "Connection: close"))

        assert [(await kept.answer())[0] for _ in range(3)] == [200, 404, 200]
        assert await kept.rest() == b""


async def test_a_long_breath_is_answered_to_a_slow_reader_to_its_end(rig: Rig) -> None:
    """What finds no room waits for it; nothing is lost, doubled or mixed up."""
    rig.responder._bound[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # accepted ones inherit it
    asked = [PATH if n % 3 else f"/unknown-{n}" for n in range(500)]
    async with Kept(rig.port) as kept:
        async with asyncio.TaskGroup() as group:
            group.create_task(kept.send("".join(map(request, asked)) + request(PATH, "Connection: close")))
            answers = [await kept.answer() for _ in range(501)]

        assert [status for status, _, _ in answers] == [200 if path == PATH else 404 for path in asked] + [
            200
        ]
        assert (await kept.rest(), len(rig.told)) == (b"", asked.count(PATH) + 1)


async def test_an_answer_without_room_goes_out_in_parts(rig: Rig) -> None:
    """Whoever reads late reads all of it."""
    rig.probes[PROBE] = "".join(f"{n:09}." for n in range(1_000_000))
    async with Kept(rig.port) as kept:
        await kept.send(request(PROBE))

        assert await kept.answer() == (200, b"keep-alive", rig.probes[PROBE].encode())


async def test_a_request_may_come_a_byte_at_a_time(rig: Rig) -> None:
    """A network may cut it anywhere."""
    async with Kept(rig.port) as kept:
        for byte in request():
            await kept.send(byte)
            await asyncio.sleep(0)

        assert await kept.answer() == (200, b"keep-alive", ANSWER.encode())


@pytest.mark.parametrize(
    "lines", [("Connection: Upgrade", "Upgrade: websocket"), ("Connection: Upgrade", "Upgrade: h2c")]
)
async def test_nobody_is_followed_into_another_protocol(rig: Rig, lines: tuple[str, ...]) -> None:
    """The answer is HTTP/1.1's, and what comes after it is read by nobody."""
    async with Kept(rig.port) as kept:
        await kept.send(request(PATH, *lines) + request())

        assert await kept.answer() == (200, b"close", ANSWER.encode())
        assert (await kept.rest(), len(rig.told)) == (b"", 1)


@pytest.mark.parametrize("framing", ["Content-Length: {0}", "Transfer-Encoding: chunked"])
async def test_a_body_is_never_taken_for_the_next_request(rig: Rig, framing: str) -> None:
    """A proxy that forwards one must not have its answers mixed up."""
    async with Kept(rig.port) as kept:
        smuggled = request()
        if "chunked" in framing:
            smuggled = f"{len(smuggled):x}\r\n{smuggled}\r\n0\r\n\r\n"
        await kept.send(request("/unknown", framing.format(len(smuggled))) + smuggled)

        assert await kept.answer() == (404, b"close", b"404\n")
        assert (await kept.rest(), rig.told) == (b"", [])


async def test_a_kept_connection_that_trickles_its_next_request_is_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An answer gives time for one more request, bytes give none."""
    monkeypatch.setattr(connections, "PATIENCE", 0.5)
    rig = Rig()
    await rig.responder.start([Listener("127.0.0.1", 0)])
    async with Kept(rig.port) as kept:
        await kept.send(request())
        first = await kept.answer()
        await kept.send("GET / HT")

        assert (first[0], await kept.rest()) == (200, b"")
        await rig.responder.stop()


async def test_an_answer_gives_a_connection_its_whole_time_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a busy proxy is not cut off in the middle of a request."""
    monkeypatch.setattr(connections, "PATIENCE", 0.5)
    rig = Rig()
    await rig.responder.start([Listener("127.0.0.1", 0)])
    async with Kept(rig.port) as kept:
        began = time.monotonic()
        answers = set()
        while time.monotonic() - began < 1.2:
            await kept.send(request())
            answers.add(await kept.answer())
        await rig.responder.stop()

        assert answers == {(200, b"keep-alive", ANSWER.encode())}


async def test_a_newcomer_gets_the_place_of_whoever_was_answered_longest_ago(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Kept connections are a favour: asking now and then holds no place against anybody."""
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 2)
    rig = Rig()
    await rig.responder.start([Listener("127.0.0.1", 0)])
    async with Kept(rig.port) as idle, Kept(rig.port) as busy:
        for kept in (busy, idle, busy):
            await kept.send(request())
            await kept.answer()

        async with Kept(rig.port) as newcomer:
            await newcomer.send(request())
            answers = [await newcomer.answer()]
            gone = await idle.rest()
            await busy.send(request())
            answers.append(await busy.answer())

        assert (gone, [status for status, _, _ in answers]) == (b"", [200, 200])
        await rig.responder.stop()


async def test_a_client_that_asks_and_never_reads_is_not_answered_into_memory(rig: Rig) -> None:
    """At some point nothing more is read from it."""
    loop = asyncio.get_running_loop()
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.setblocking(False)
        await loop.sock_connect(deaf, ("127.0.0.1", rig.port))
        burst = request(PATH, f"X: {'x' * 1500}").encode() * 100
        with pytest.raises(TimeoutError):
            for _ in range(500):  # 80 MB
                async with asyncio.timeout(1):
                    await loop.sock_sendall(deaf, burst)


async def test_a_client_that_never_reads_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its place comes free as that of any other."""
    monkeypatch.setattr(connections, "PATIENCE", 0.3)
    rig = Rig()
    await rig.responder.start([Listener("127.0.0.1", 0)])
    rig.responder._bound[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    loop = asyncio.get_running_loop()
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.setblocking(False)
        await loop.sock_connect(deaf, ("127.0.0.1", rig.port))
        with pytest.raises(ConnectionError):  # a reset, for what it sent and nobody read
            async with asyncio.timeout(10):
                while True:
                    await loop.sock_sendall(deaf, request().encode() * 100)
    await rig.responder.stop()


async def test_without_descriptors_newcomers_wait_until_there_are_some(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever else in this process holds them, nobody is refused and the loop does not spin."""
    monkeypatch.setattr(connections, "ACCEPT_AGAIN", 0.05)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.create_connection(("127.0.0.1", rig.port)) as client:
        lowest_free = os.dup(client.fileno())
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
        began = time.monotonic()
        try:
            with capture_logs() as logs:
                async with asyncio.timeout(5):
                    while len(logs) < 2:
                        await asyncio.sleep(0)
            took = time.monotonic() - began
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        status, _, _ = await exchange(
            *await asyncio.open_connection(sock=client), request(PATH, "Connection: close")
        )

    assert [entry["event"] for entry in logs] == ["http01.exhausted"] * 2
    assert (status, took >= 0.05) == (200, True)


async def test_a_client_that_sends_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor may one trickle headers for ever."""
    monkeypatch.setattr(connections, "PATIENCE", 0.1)
    rig = Rig()
    await rig.responder.start([Listener("127.0.0.1", 0)])
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    writer.write(b"GET / HT")

    async with asyncio.timeout(5):
        received = await reader.read()
    writer.close()
    await rig.responder.stop()

    assert received == b""


async def test_a_client_that_says_nothing_yet_takes_no_place(rig: Rig) -> None:
    """It is accepted when its request has come."""
    (listening,) = rig.responder._bound
    seen = []
    with socket.create_connection(("127.0.0.1", rig.port)) as client:
        for said in (b"", b"GET"):
            client.sendall(said)
            seen.append(select.select([listening], [], [], 0)[0])

    assert [[], [listening]] == seen


async def test_one_connection_too_many_is_dropped_and_its_place_comes_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A flood of idle connections cannot take all descriptors."""
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 1)
    rig = Rig()
    await rig.responder.start([Listener("127.0.0.1", 0)])
    first = await asyncio.open_connection("127.0.0.1", rig.port)
    second = await asyncio.open_connection("127.0.0.1", rig.port)
    for _, writer in (first, second):
        writer.write(b"GET")

    async with asyncio.timeout(5):
        received = await second[0].read()
    status, _, _ = await exchange(*first, f" {PATH} HTTP/1.0\r\nHost: a\r\n\r\n")
    again, _, _ = await rig.get(PATH)
    second[1].close()
    await rig.responder.stop()

    assert (received, status, again) == (b"", 200, 200)


async def test_a_unix_socket_is_for_owner_and_group(tmp_path: Path) -> None:
    """Created 0660; a proxy in the group reaches it."""
    path = tmp_path / "http01.sock"
    rig = Rig()
    await rig.responder.start([Listener(path=str(path))])

    mode = stat.S_IMODE(path.stat().st_mode)
    reader, writer = await asyncio.open_unix_connection(path)
    status, _, body = await exchange(reader, writer, f"GET {PATH} HTTP/1.0\r\nHost: a.example\r\n\r\n")
    await rig.responder.stop()

    assert (mode, status, body) == (0o660, 200, ANSWER.encode())
    assert rig.told == [(TOKEN, "a.example from a local socket")]


async def test_a_dead_socket_is_replaced_but_never_a_file_or_a_living_one(tmp_path: Path) -> None:
    """What a crash left behind must not stop the next start."""
    dead, file = tmp_path / "dead.sock", tmp_path / "file"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(dead))
    file.write_text("precious")
    first, second = Rig(), Rig()
    await first.responder.start([Listener(path=str(dead))])

    with pytest.raises(OSError, match=f"cannot listen on unix:{file}: .*is no socket"):
        await second.responder.start([Listener(path=str(file))])
    with pytest.raises(OSError, match="in use by another process"):
        await second.responder.start([Listener(path=str(dead))])
    await first.responder.stop()

    assert file.read_text() == "precious"


async def test_a_listener_that_cannot_be_bound_is_named_and_none_is_left_open(rig: Rig) -> None:
    """All or nothing, and it can be tried again."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy = Listener("127.0.0.1", taken.getsockname()[1])
        free = Listener("127.0.0.1", unused_port())
        other = Rig()
        with pytest.raises(OSError, match=f"cannot listen on {busy}: Address already in use"):
            await other.responder.start([free, busy])
        assert other.responder.addresses == []

    await other.responder.start([free, busy])
    assert len(other.responder.addresses) == 2
    await other.responder.stop()


async def test_sockets_of_systemd_are_served_beside_the_configured_ones() -> None:
    """Port 80 without the right to bind it."""
    handed = socket.create_server(("127.0.0.1", 0))
    rig = Rig()
    await rig.responder.start([Listener("127.0.0.1", 0)], sockets=[handed])

    ports = [address[1] for address in rig.responder.addresses]  # type: ignore[index]
    statuses = []
    for port in ports:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        statuses.append((await exchange(reader, writer, f"GET {PATH} HTTP/1.0\r\nHost: a\r\n\r\n"))[0])
    await rig.responder.stop()

    assert statuses == [200, 200]
    assert handed.fileno() == -1


@pytest.mark.skipif(not os.path.exists("/proc/net/if_inet6"), reason="this machine has no IPv6")
async def test_an_ipv6_listener_takes_ipv6_only() -> None:
    """It must not quietly open the port for IPv4 too."""
    rig = Rig()
    await rig.responder.start([Listener("::1", 0), Listener("::", 0)])

    flags = [sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) for sock in rig.responder._bound]
    reader, writer = await asyncio.open_connection("::1", rig.port)
    status, _, _ = await exchange(reader, writer, f"GET {PATH} HTTP/1.0\r\nHost: a\r\n\r\n")
    await rig.responder.stop()

    assert (flags, status) == ([1, 1], 200)


async def test_after_stopping_nobody_listens_and_it_can_start_again() -> None:
    """Stopping twice is harmless."""
    rig = Rig()
    await rig.responder.start([Listener("127.0.0.1", 0)])
    port = rig.port
    await rig.responder.stop()
    await rig.responder.stop()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
    await rig.responder.start([Listener("127.0.0.1", port)])

    assert (await rig.get(PATH))[0] == 200
    await rig.responder.stop()


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]
