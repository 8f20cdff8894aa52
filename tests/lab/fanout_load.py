"""The other end of `make bench-fanout`: thousands of simulated agents, or as many MQTT clients, in one process.

Both speak over the same asyncio TLS, so what the generator costs is the same on both sides. Commands come as lines
on stdin, each is answered by one JSON line on stdout.
"""

import asyncio
import json
import random
import resource
import ssl
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from certfan import pki, tls
from certfan.protocol.identity import client_context
from tests.lab.fanout_daemon import FLEET

SETTING_UP = 32  # connections under way at once, but in a storm
PATIENCE = 60  # seconds for anything that all do
PAUSE = (0.5, 4)  # seconds before a peer tries again, about those of an agent
TOPIC = b"assignments"


class Everyone:
    """Rings when as many have done the thing as are expected to."""

    def __init__(self) -> None:
        self.expect(0)

    def expect(self, count: int) -> None:
        """Count from now on."""
        self._missing, self._all = count, asyncio.Event()

    def one(self) -> None:
        """One has."""
        self._missing -= 1
        if self._missing == 0:
            self._all.set()

    async def wait(self) -> None:
        """Return when all have; raises TimeoutError."""
        async with asyncio.timeout(PATIENCE):
            await self._all.wait()


class Agent(asyncio.Protocol):
    """Asks for its list, then for the next one, for ever: the least of HTTP/1.1 that does it."""

    def __init__(self, everyone: Everyone) -> None:
        self._everyone = everyone
        self._got = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._ask("wait=0")

    def data_received(self, data: bytes) -> None:
        self._got += data
        head, blank, body = self._got.partition(b"\r\n\r\n")
        if not blank or len(body) < int(head.partition(b"Content-Length: ")[2].partition(b"\r")[0]):
            return
        assert head.startswith(b"HTTP/1.1 200"), head
        self._got = b""
        revision = body.partition(b'"revision":"')[2].partition(b'"')[0].decode()
        self._ask(f"after={revision}&wait=300")
        self._everyone.one()

    def _ask(self, query: str) -> None:
        self._transport.write(f"GET /v1/assignments?{query} HTTP/1.1\r\nHost: daemon\r\n\r\n".encode())


class Subscriber(asyncio.Protocol):
    """The least of MQTT 3.1.1: subscribes to one topic with QoS 1 and acknowledges what comes."""

    def __init__(self, everyone: Everyone, name: str) -> None:
        self._everyone, self._name = everyone, name.encode()
        self._got = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        clean_session, keep_alive = b"\x02", b"\x00\x00"
        self._say(0x10, _text(b"MQTT") + b"\x04" + clean_session + keep_alive + _text(self._name))

    def data_received(self, data: bytes) -> None:
        self._got += data
        while (packet := self._packet()) is not None:
            self._take(*packet)

    def publish(self, payload: bytes) -> None:
        """Say something to all who subscribed, with QoS 1."""
        self._say(0x32, _text(TOPIC) + b"\x00\x07" + payload)

    def ping(self) -> None:
        """Ask for an answer; the broker gives it after all that was said before."""
        self._say(0xC0, b"")

    def _take(self, kind: int, body: bytes) -> None:
        match kind & 0xF0:
            case 0x20:  # CONNACK
                assert body == b"\x00\x00", body
                self._say(0x82, b"\x00\x01" + _text(TOPIC) + b"\x01")
            case 0x30:  # PUBLISH
                after_topic = 2 + len(TOPIC)
                self._say(0x40, body[after_topic : after_topic + 2])
                self._everyone.one()
            case 0x90 | 0xD0:  # SUBACK, PINGRESP
                self._everyone.one()

    def _packet(self) -> tuple[int, bytes] | None:
        length = shift = 0
        for at, byte in enumerate(self._got[1:5], 1):
            length |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                end = at + 1 + length
                if len(self._got) < end:
                    return None
                packet, self._got = self._got[:end], self._got[end:]
                return packet[0], packet[at + 1 :]
        return None

    def _say(self, kind: int, body: bytes) -> None:
        left, length = len(body), bytearray()
        while not length or left:
            length.append(left & 0x7F | (0x80 if left > 0x7F else 0))
            left >>= 7
        self._transport.write(bytes([kind]) + bytes(length) + body)


class Load:
    """All simulated peers. Each has an identity and a TLS context of its own."""

    def __init__(self, folder: Path) -> None:
        ca_pem = (folder / "ca.pem").read_bytes()
        certs = sorted(folder.glob("agent*.pem"), key=lambda path: int(path.stem.removeprefix("agent")))
        self._contexts = [client_context(ca_pem, cert=cert, key=folder / "key.pem") for cert in certs]
        self._everyone = Everyone()
        self._peers: list[Agent | Subscriber] = []

    async def obey(self, command: str, *words: str) -> Mapping[str, float]:
        """Do one thing and say how many seconds it took until all had done their part."""
        began, self._again = time.monotonic(), 0
        match command, *words:
            case ["connect", kind, port, count, how]:
                make = self._agent if kind == "agents" else self._subscriber
                await self._connect(make, int(port), int(count), at_once=how == "at-once")
            case ["publish", size]:
                await self._publish(bytes(int(size)))
            case ["drop"]:
                for peer in self._peers:
                    peer._transport.abort()
                self._peers.clear()
        return {"seconds": time.monotonic() - began, "again": self._again}

    def _agent(self, _at: int) -> Agent:
        return Agent(self._everyone)

    def _subscriber(self, at: int) -> Subscriber:
        return Subscriber(self._everyone, f"s{at}")

    async def _connect(
        self, make: Callable[[int], Agent | Subscriber], port: int, count: int, *, at_once: bool
    ) -> None:
        """Bring up connections until there are `count`; return when each of the new ones waits."""
        more = range(len(self._peers), count)
        self._everyone.expect(len(more))
        gate = asyncio.Semaphore(len(more) if at_once else SETTING_UP)
        async with asyncio.TaskGroup() as group:
            for at in more:
                group.create_task(self._dial(make, port, at, self._contexts[at], gate))
        await self._everyone.wait()

    async def _dial(
        self,
        make: Callable[[int], Agent | Subscriber],
        port: int,
        at: int,
        context: ssl.SSLContext,
        gate: asyncio.Semaphore,
    ) -> None:
        async with gate:
            while True:
                try:
                    _, peer = await asyncio.get_running_loop().create_connection(
                        lambda: make(at),
                        "127.0.0.1",
                        port,
                        ssl=context,
                        server_hostname=pki.daemon_name(FLEET),
                    )
                except OSError:  # not shaken hands in time
                    self._again += 1
                    await asyncio.sleep(random.uniform(*PAUSE))
                else:
                    self._peers.append(peer)
                    return

    async def _publish(self, payload: bytes) -> None:
        """Publish by the first, wait for all to acknowledge, and for the broker to have heard the last of them."""
        subscribers = [peer for peer in self._peers if isinstance(peer, Subscriber)]
        self._everyone.expect(len(subscribers))
        subscribers[0].publish(payload)
        await self._everyone.wait()
        self._everyone.expect(1)
        subscribers[-1].ping()
        await self._everyone.wait()


def _text(value: bytes) -> bytes:
    return len(value).to_bytes(2, "big") + value


async def serve(argv: Sequence[str]) -> None:
    """Run until stdin ends."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    load = Load(Path(argv[0]))
    while line := await reader.readline():
        print(json.dumps(await load.obey(*line.decode().split())), flush=True)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    tls.shrink_buffers()
    asyncio.run(serve(sys.argv[1:]))
