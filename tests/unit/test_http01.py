"""The http-01 responder on real sockets: live tokens only, whoever asks and however."""

import asyncio
import os
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from unittest.mock import ANY

import pytest

from certfan.daemon.challenges import http01
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
        self.responder = Responder(self._look, lambda *told: self.told.append(told), probes=self.probes)

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
            f"{name.replace('_', '-')}: {value}" for name, value in {"Host": "a.example", **headers}.items()
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

    def fetched(_token: str, _place: str) -> None:
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


async def test_a_client_that_sends_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor may one trickle headers for ever."""
    monkeypatch.setattr(http01, "PATIENCE", 0.1)
    rig = Rig()
    await rig.responder.start([Listener("127.0.0.1", 0)])
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    writer.write(b"GET / HT")

    async with asyncio.timeout(5):
        received = await reader.read()
    writer.close()
    await rig.responder.stop()

    assert received == b""


async def test_one_connection_too_many_is_dropped_and_its_place_comes_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A flood of idle connections cannot take all descriptors."""
    monkeypatch.setattr(http01, "MOST_CONNECTIONS", 1)
    rig = Rig()
    await rig.responder.start([Listener("127.0.0.1", 0)])
    first = await asyncio.open_connection("127.0.0.1", rig.port)
    second = await asyncio.open_connection("127.0.0.1", rig.port)

    async with asyncio.timeout(5):
        received = await second[0].read()
    status, _, _ = await exchange(*first, f"GET {PATH} HTTP/1.1\r\nHost: a\r\n\r\n")
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
    status, _, body = await exchange(reader, writer, f"GET {PATH} HTTP/1.1\r\nHost: a.example\r\n\r\n")
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
        statuses.append((await exchange(reader, writer, f"GET {PATH} HTTP/1.1\r\nHost: a\r\n\r\n"))[0])
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
    status, _, _ = await exchange(reader, writer, f"GET {PATH} HTTP/1.1\r\nHost: a\r\n\r\n")
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
