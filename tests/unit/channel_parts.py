"""A real channel on loopback for tests: real CA folder, real store, real TLS; only the lists are plain dicts."""

from __future__ import annotations

import asyncio
import contextlib
import io
import ssl
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp

from certfan import files, pki
from certfan.agent.link import Link
from certfan.daemon.ca import CaFolder, open_ca
from certfan.daemon.channel import Channel
from certfan.daemon.channel.board import Identity
from certfan.daemon.desk.enroller import Enroller
from certfan.daemon.listeners import Listener
from certfan.daemon.store import IdentityFact, Store
from certfan.errors import CertfanError
from certfan.protocol.identity import client_context
from certfan.protocol.messages import AssignmentMessage, Assignments, EnrolReply, Report

NOW = datetime.now(UTC).replace(microsecond=0)
FLEET = "home"
CA = pki.InternalCA.create(FLEET, NOW)  # made once; making keys is most of a test's time


@dataclass
class Yard:
    """The daemon's side, as a composition root would wire it; a Board."""

    ca: CaFolder
    store: Store
    now: datetime = NOW
    lists: dict[str, Assignments] = field(default_factory=dict)
    bundles: dict[tuple[str, str, int], dict[str, bytes]] = field(default_factory=dict)
    reports: list[tuple[str, Report]] = field(default_factory=list)
    acknowledgements: list[tuple[str, str]] = field(default_factory=list)
    refusals: list[CertfanError] = field(default_factory=list)
    reads: int = 0
    read: asyncio.Event = field(default_factory=asyncio.Event)
    channel: Channel = field(init=False)
    enroller: Enroller = field(init=False)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.channel.ports[0]}"

    async def identity(self, serial: str) -> Identity | None:
        return await self.store.standing(serial) or await self.store.identity(serial)

    async def adopt(self, cert_der: bytes) -> IdentityFact | None:
        return await self.enroller.adopt(cert_der)

    async def used(self, consumer: str, serial: str) -> bool:
        return bool(await self.store.use_identity(serial, self.now))

    async def renew(self, consumer: str, serial: str, csr: bytes, *, trust: int = 0) -> bytes:
        return await self.enroller.renew(consumer, serial, csr, trust=trust)

    async def assignments(self, consumers: Collection[str]) -> dict[str, Assignments]:
        self.reads += 1
        self.read.set()
        return {name: self.lists.get(name, nothing_for(name)) for name in consumers}

    async def acknowledged(self, revisions: Mapping[str, str]) -> None:
        self.acknowledgements.extend(revisions.items())

    async def report(self, consumer: str, report: Report) -> None:
        self.reports.append((consumer, report))

    async def bundle(self, consumer: str, certificate: str, generation: int) -> dict[str, bytes]:
        return self.bundles[consumer, certificate, generation]

    async def refused(self, error: CertfanError) -> None:
        self.refusals.append(error)

    async def redeem(self, token: str, csr: bytes, sealing_key: bytes | None) -> EnrolReply:
        return await self.enroller.redeem(token, csr, sealing_key=sealing_key)

    def assign(self, consumer: str, revision: str, *certificates: str) -> None:
        offered = tuple(
            AssignmentMessage(certificate=name, generation=1, identifiers=(name,), fingerprint="ab" * 32)
            for name in certificates
        )
        self.lists[consumer] = Assignments(revision=revision, consumer=consumer, assignments=offered)

    async def identify(self, consumer: str, folder: Path, *, known: bool = True) -> Path:
        """Give a consumer an identity without the wire; unknown ones the store has never heard of."""
        key_pem = pki.make_key()
        cert_pem, leaf = self.ca.ca.issue_consumer(pki.make_csr(key_pem, ()), consumer, self.now)
        if known:
            await self.remember(consumer, cert_pem, leaf)
        return write_pair(folder, key_pem, cert_pem)

    async def remember(self, consumer: str, cert_pem: bytes, leaf: pki.Leaf) -> None:
        fact = IdentityFact(
            leaf.serial,
            consumer,
            spki=leaf.fingerprint,
            certificate_pem=cert_pem,
            not_before=leaf.not_before,
            not_after=leaf.not_after,
        )
        token = leaf.fingerprint
        await self.store.add_consumer(consumer, self.now)
        await self.store.open_enrolment(consumer, token, self.now + timedelta(minutes=1), self.now)
        await self.store.redeem(token, leaf.fingerprint, self.now, fact)

    def link(self, identity: Path) -> Link:
        return Link(self.address, identity, fleet=FLEET, ca_pem=self.ca.ca.cert_pem)


def nothing_for(consumer: str) -> Assignments:
    return Assignments(revision="e.0", consumer=consumer, assignments=())


def write_pair(folder: Path, key_pem: bytes, cert_pem: bytes) -> Path:
    files.private_folder(folder)
    files.write_private(folder / "key.pem", key_pem)
    files.write_private(folder / "cert.pem", cert_pem)
    return folder


def make_ca_folder(folder: Path) -> CaFolder:
    files.private_folder(folder)
    files.write_private(folder / "ca.key.pem", CA.key_pem)
    files.write_private(folder / "ca.pem", CA.cert_pem)
    return open_ca(folder, FLEET, NOW)


@contextlib.asynccontextmanager
async def running_yard(folder: Path) -> AsyncIterator[Yard]:
    files.private_folder(folder)
    store = await Store.open(folder / "certfan.db", lambda: NOW)
    yard = Yard(make_ca_folder(folder / "ca"), store)
    yard.channel = Channel(yard.ca, yard, listeners=(Listener("127.0.0.1", 0),))
    await yard.channel.start()
    yard.enroller = Enroller(yard.ca.ca, store, clock=lambda: yard.now, address=yard.address)
    try:
        yield yard
    finally:
        await yard.channel.stop()
        await store.close()


async def ask(
    yard: Yard,
    method: str,
    path: str,
    *,
    identity: Path | None = None,
    body: bytes | io.BytesIO | AsyncIterator[bytes] | None = None,
    context: ssl.SSLContext | None = None,
) -> tuple[int, bytes]:
    """Ask the channel anything, as somebody who does not use our link would."""
    if context is None:
        pair = {"cert": identity / "cert.pem", "key": identity / "key.pem"} if identity else {}
        context = client_context(yard.ca.ca.cert_pem, **pair)
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session,
        session.request(
            method, f"https://{yard.address}{path}", data=body, server_hostname=pki.daemon_name(FLEET)
        ) as response,
    ):
        return response.status, await response.read()
