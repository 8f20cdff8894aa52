"""A consumer whose cable is pulled: the daemon's channel finds the connection dead within 30 s, without sending."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
import secrets
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from certfan import pki
from certfan.daemon.channel import Channel
from certfan.daemon.listeners import Listener
from certfan.protocol.identity import client_context, find_half_open
from tests.lab import machine
from tests.unit.channel_parts import CA, FLEET, running_yard
from tests.unit.daemon_parts import until

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root"),
]
HERE, THERE = "10.63.0.1", "10.63.0.2"
CLONE_NEWNET = 0x40000000
LIBC = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def inside(netns: str) -> Iterator[None]:
    """Let this thread make its sockets in a namespace; a socket stays where it was made."""
    with Path("/proc/thread-self/ns/net").open() as home, Path(f"/run/netns/{netns}").open() as away:
        assert LIBC.setns(away.fileno(), CLONE_NEWNET) == 0
        try:
            yield
        finally:
            assert LIBC.setns(home.fileno(), CLONE_NEWNET) == 0


@pytest.fixture
def wire() -> Iterator[tuple[str, str]]:
    """Two namespaces and one wire between them."""
    names = tuple(f"cf{secrets.token_hex(2)}-{end}" for end in ("here", "there"))
    here, there = names
    try:
        for name in names:
            machine.run(["ip", "netns", "add", name])
        machine.run(
            ["ip", "-n", here, "link", "add", "v0", "type", "veth", "peer", "name", "v1", "netns", there]
        )
        for name, link, address in ((here, "v0", HERE), (there, "v1", THERE)):
            machine.run(["ip", "-n", name, "addr", "add", f"{address}/24", "dev", link])
            machine.run(["ip", "-n", name, "link", "set", link, "up"])
        yield here, there
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)


def dial(netns: str, address: str, port: int, identity: Path | None = None) -> ssl.SSLSocket:
    pair = {"cert": identity / "cert.pem", "key": identity / "key.pem"} if identity else {}
    with inside(netns):
        sock = socket.socket()
    find_half_open(sock)
    sock.settimeout(10)
    sock.connect((address, port))
    return client_context(CA.cert_pem, **pair).wrap_socket(sock, server_hostname=pki.daemon_name(FLEET))


def to_the_end(sock: ssl.SSLSocket) -> None:
    """Return when the kernel says that nothing will come any more; a timeout of ours is none of its words."""
    try:
        assert sock.recv(1) == b""
    except TimeoutError as error:
        assert error.errno == errno.ETIMEDOUT, "we gave up before the kernel did"
    except OSError:
        pass


async def test_a_half_open_connection_is_found_within_30_s(tmp_path: Path, wire: tuple[str, str]) -> None:
    """Both ends: the daemon's, with a query that waits for 300 s, and the agent's, which waits for its answer."""
    here, there = wire
    async with running_yard(tmp_path / "daemon") as yard:
        identity = await yard.identify("web1", tmp_path / "web1")
        with inside(here):
            channel = Channel(yard.ca, yard, listeners=(Listener(HERE, 0),))
            await channel.start()
        agent = await asyncio.to_thread(dial, there, HERE, channel.ports[0], identity)
        agent.settimeout(40)
        query = b"GET /v1/assignments?after=e.0&wait=300 HTTP/1.1\r\nHost: x\r\n\r\n"
        await asyncio.to_thread(agent.sendall, query)
        await until(lambda: yard.reads and channel._waiting._rung)
        machine.run(["ip", "-n", there, "link", "set", "v1", "down"])
        began = time.monotonic()
        reading = asyncio.create_task(asyncio.to_thread(to_the_end, agent))
        async with asyncio.timeout(35):
            while channel._http is not None and channel._http.connections:
                await asyncio.sleep(0.1)
        found_here = time.monotonic() - began
        await reading
        found_there = time.monotonic() - began
        agent.close()
        await channel.stop()

    assert 5 < found_here < 30
    assert found_there < 30
