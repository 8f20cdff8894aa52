"""The daemon's side of the channel as the composition root wires it, on loopback, with a clock that tests set."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import aiohttp

from certfan import pki
from certfan.agent.enrolment import enrol
from certfan.agent.identity import Trust
from certfan.agent.link import Link
from certfan.core.model import Authority, Certificate, Consumer, Desired, Generation, Identifier, KeyType
from certfan.daemon.ca import CaFolder, open_ca
from certfan.daemon.channel import Channel
from certfan.daemon.desk.actions import AdminActions
from certfan.daemon.desk.board import Noticeboard
from certfan.daemon.desk.enroller import Enroller
from certfan.daemon.journal import Journal
from certfan.daemon.listeners import Listener
from certfan.daemon.observing import remembered
from certfan.daemon.publishing.bundles import Bundles
from certfan.daemon.state import StateFolder
from certfan.daemon.status import app
from certfan.daemon.status.things import StateOfThings
from certfan.daemon.store import Event, Store
from tests.unit.channel_parts import FLEET, NOW, make_ca_folder

CONSUMERS = tuple(f"web{n}" for n in range(1, 6))
HOUR = timedelta(hours=1)


def certificate_of(consumer: str) -> str:
    """The one certificate that is this consumer's alone."""
    return f"{consumer}.example"


def desired() -> Desired:
    certificates = {
        certificate_of(name): Certificate(
            certificate_of(name), (Identifier(certificate_of(name)),), consumers=(name,), authority="pebble"
        )
        for name in CONSUMERS
    }
    return Desired(
        {"pebble": Authority("pebble", "https://ca.int/dir")},
        certificates,
        {name: Consumer(name) for name in CONSUMERS},
    )


class Daemon:
    """Everything between the sockets and the disk; `restart` is what systemd would do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = NOW
        self.patience = 30.0
        self.desired = desired()
        self.port = 0
        self.ca: CaFolder
        self.store: Store
        self.board: Noticeboard
        self.channel: Channel

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def database(self) -> Path:
        return self.folder / "certfan.db"

    async def start(self) -> None:
        self._state = StateFolder(self.folder)
        if not (self._state.ca / "ca.pem").exists():
            make_ca_folder(self._state.ca)
        self.ca = open_ca(self._state.ca, FLEET, NOW)
        self.store = await Store.open(self.database, self.clock)
        await self.store.begin_run("boot", 1, self.now)
        self.journal = Journal(self.store, self.clock)
        self.enroller = Enroller(self.ca.ca, self.store, clock=self.clock, address="")
        self.board = Noticeboard(
            store=self.store,
            bundles=Bundles(self._state, lambda: self.ca, FLEET, lambda: self.desired),
            enroller=self.enroller,
            journal=self.journal,
            desired=lambda: self.desired,
            ring=lambda: None,
            clock=self.clock,
        )
        await self.listen()

    async def listen(self) -> None:
        """Listen as a new process would, at the port of the one before."""
        listener = Listener("127.0.0.1", self.port)
        self.channel = Channel(self.ca, self.board, listeners=(listener,), patience=self.patience)
        await self.channel.start()
        (self.port,) = self.channel.ports
        self.enroller._address = self.address

    async def stop(self) -> None:
        await self.channel.stop()
        await self.store.end_run(self.now)
        await self.store.close()
        self._state.close()

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    def clock(self) -> datetime:
        return self.now

    async def enrolled(self, consumer: str, folder: Path) -> Trust:
        """Make a consumer of whoever owns the folder, by a pasted line."""
        line = await self.enroller.add(consumer)
        return await enrol(line, folder / "identity", folder / "etc", self.now)

    def link(self, trust: Trust, folder: Path) -> Link:
        return Link.of(trust, folder / "identity")

    async def issue(self, consumer: str, number: int = 1) -> Generation:
        """Have a generation of the consumer's own certificate, complete and offered."""
        name = certificate_of(consumer)
        key_pem, cert_pem = pki.make_placeholder([name], self.now)
        self._state.generation_key(name, number, lambda: key_pem)
        self._state.save_chain(name, number, cert_pem)
        leaf = pki.read_leaf(cert_pem)
        generation = Generation(
            name,
            number,
            fingerprint=leaf.fingerprint,
            serial=leaf.serial,
            identifiers=frozenset({Identifier(name)}),
            key_type=KeyType.ECDSA_P256,
            authority="pebble",
            not_before=leaf.not_before,
            not_after=leaf.not_after,
            issued_at=self.now,
        )
        await self.store.begin_issuance(name, number, "pebble", tuple(generation.identifiers), self.now)
        await self.store.record_generation(generation)
        await self.store.offer([(name, consumer, number)], self.now)
        return generation

    async def happened(self, name: str) -> list[Event]:
        return [event for event in await self.store.events() if event.name == name]

    async def things(self) -> StateOfThings:
        facts = await self.store.facts()
        return StateOfThings(
            now=self.now,
            fleet=FLEET,
            desired=self.desired,
            facts=facts,
            observed=remembered(facts),
            consumer_problems=self.board.doubles.problems,
            since=self.board.doubles.since,
        )

    @contextlib.asynccontextmanager
    async def control(self) -> AsyncIterator[aiohttp.ClientSession]:
        """Serve the control socket, and yield a session on it."""

        async def events(after: int, limit: int, subject: str) -> Sequence[Event]:
            return await self.store.events(max(after, 0), limit, subject)

        async def read_config() -> Sequence[object]:
            return ()

        actions = AdminActions(
            store=self.store,
            journal=self.journal,
            enroller=self.enroller,
            desired=lambda: self.desired,
            on_the_share=lambda: (),
            end_sessions=self.channel.end_sessions,
            read_config=read_config,  # type: ignore[arg-type]
            ring=lambda: None,
            clock=self.clock,
        )
        path = str(self.folder / "control.sock")
        doors = app.Doors(things=self.things, events=events, story=self.store.story)
        runner = await app.start(app.make_app(doors, actions), (Listener(path=path),))
        connector = aiohttp.UnixConnector(path)
        async with aiohttp.ClientSession("http://localhost", connector=connector) as session:
            yield session
        await runner.cleanup()


@contextlib.asynccontextmanager
async def running_daemon(folder: Path) -> AsyncIterator[Daemon]:
    daemon = Daemon(folder)
    await daemon.start()
    try:
        yield daemon
    finally:
        await daemon.stop()


async def until(condition: Callable[[], object]) -> None:
    """Let the loop run until the condition holds."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0)
