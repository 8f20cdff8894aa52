"""The daemon's end of `make bench-fanout`, in a process of its own: its real channel, noticeboard, journal and store.

Commands come as lines on stdin, each is answered by one JSON line on stdout. CPU is that of this whole process.
"""

import asyncio
import json
import os
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from certfan import log, tls
from certfan.core.model import NOTHING_DESIRED, Generation, Identifier, KeyType
from certfan.daemon.ca import open_ca
from certfan.daemon.channel import Channel
from certfan.daemon.desk.board import Noticeboard
from certfan.daemon.desk.enroller import Enroller
from certfan.daemon.journal import Journal
from certfan.daemon.listeners import Listener
from certfan.daemon.main import calm_collector
from certfan.daemon.publishing.bundles import Bundles
from certfan.daemon.state import StateFolder
from certfan.daemon.store import Store
from certfan.daemon.wiring import now

FLEET, CERTIFICATE = "bench", "www.example.org"
PATIENCE = 60  # seconds for the last acknowledgement


def consumer(number: int) -> str:
    """Return the name of a simulated consumer."""
    return f"agent{number}"


def generation(number: int) -> Generation:
    """Return a generation such as an authority would have issued."""
    return Generation(
        CERTIFICATE, number, fingerprint=f"{number:064x}", serial=f"{number:x}",
        identifiers=frozenset(map(Identifier, (CERTIFICATE, "example.org"))), key_type=KeyType.ECDSA_P256,
        authority="bench", not_before=now(), not_after=now(), issued_at=now(),
    )  # fmt: skip


class Counting(Noticeboard):
    """The noticeboard, and an event when as many consumers have acknowledged as were told."""

    def expect(self, count: int) -> asyncio.Event:
        """Count from now on."""
        self._missing, self._all = count, asyncio.Event()
        return self._all

    async def acknowledged(self, revisions: Mapping[str, str]) -> None:
        """Note it as ever, and count."""
        await super().acknowledged(revisions)
        self._missing -= len(revisions)
        if self._missing == 0:
            self._all.set()


class Bench:
    """The parts, wired as the composition root wires them, and the commands."""

    def __init__(self, store: Store, state: StateFolder) -> None:
        self._store = store
        self._number = 0
        ca = open_ca(state.ca, FLEET, now())
        journal = Journal(store, now)
        self._enroller = Enroller(ca.ca, store, clock=now, address="127.0.0.1:0")
        self._board = Counting(
            store=store, bundles=Bundles(state, lambda: ca, FLEET, lambda: NOTHING_DESIRED),
            enroller=self._enroller, journal=journal, desired=lambda: NOTHING_DESIRED, ring=lambda: None, clock=now,
        )  # fmt: skip
        self._board.expect(0)
        self.channel = Channel(ca, self._board, listeners=(Listener("127.0.0.1", 0),))

    async def obey(self, command: str, *words: str) -> Mapping[str, float | str]:
        """Do one thing and say what came of it."""
        match command, *words:
            case ["publish", count]:
                return await self._publish(int(count))
            case ["enrol", name]:
                self._enroller._address = f"127.0.0.1:{self.channel.ports[0]}"
                return {"line": await self._enroller.add(name)}
            case _:
                return {"port": self.channel.ports[0], "pid": os.getpid()}

    async def _publish(self, count: int) -> Mapping[str, float]:
        """Offer the next generation to the first `count` consumers, in one call, then announce it to all of them."""
        self._number += 1
        everybody = [consumer(number) for number in range(count)]
        began = time.monotonic()
        await self._store.offer([(CERTIFICATE, name, self._number) for name in everybody], now())
        offered, cpu = time.monotonic(), time.process_time()
        everyone = self._board.expect(count)
        for name in everybody:
            self.channel.announce(name)
        async with asyncio.timeout(PATIENCE):
            await everyone.wait()
        return {
            "offers_s": offered - began,
            "last_ack_s": time.monotonic() - offered,
            "cpu_us": (time.process_time() - cpu) / count * 1e6,
        }


async def serve(folder: Path) -> None:
    """Run until stdin ends."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    with StateFolder(folder) as state:
        store = await Store.open(state.database, now)
        await store.begin_run("bench", os.getpid(), now())
        bench = Bench(store, state)
        await bench.channel.start()
        calm_collector()
        while line := await reader.readline():
            print(json.dumps(await bench.obey(*line.decode().split())), flush=True)
        await bench.channel.stop()
        await store.close()


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    log.set_up()
    tls.shrink_buffers()
    asyncio.run(serve(Path(sys.argv[1])))
