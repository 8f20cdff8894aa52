"""The agent's talk with its daemon: listens for assignments, tells what became of them, fetches what the share lacks.

A daemon that is away is no failure of the agent: it goes on with what it knows, and comes back with jitter.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta

from certfan import __version__, log, systemd
from certfan.agent.config_schema import Delivery
from certfan.agent.link import Link
from certfan.agent.shelf import Shelf
from certfan.core.agent_steps import Asked, Assignment
from certfan.core.model import Deployment, Endpoint, Proof
from certfan.errors import BundleInvalid, ChannelError, ShareError
from certfan.protocol.messages import Assignments, Report

WAIT = 60  # seconds that a blocking query may last
SHORTEST_PAUSE = timedelta(seconds=0.5)
FIRST_PAUSE = timedelta(
    seconds=4
)  # at most: a fleet that lost its daemon at one instant comes back over these
LONGEST_PAUSE = timedelta(seconds=30)
SHARE_PATIENCE = timedelta(seconds=60)  # a bundle that has not appeared by then comes over the channel


class Supply:
    """Where bundles come from: the share, the channel, or the first and then the second."""

    def __init__(self, delivery: Delivery, shelf: Shelf | None, link: Link) -> None:
        self._delivery = delivery
        self._shelf = shelf
        self._link = link

    async def fetch(
        self, certificate: str, generation: int, *, bundle: str, waited: timedelta
    ) -> dict[str, bytes]:
        """Return the files of a bundle that was assigned `waited` ago, unverified.

        The channel carries the present bundle of a generation, whichever was assigned.

        Raises:
            ShareError, ChannelError: it is not to be had now.
        """
        if self._delivery is Delivery.CHANNEL or self._shelf is None:
            return await self._link.bundle(certificate, generation)
        try:
            return await self._shelf.read(certificate, generation, bundle)
        except (ShareError, BundleInvalid):
            if self._delivery is Delivery.SHARE_ONLY or waited < SHARE_PATIENCE:
                raise
            return await self._link.bundle(certificate, generation)

    async def send_csr(self, certificate: str, generation: int, csr_pem: str) -> None:
        """Hand in a CSR; raises ChannelError."""
        await self._link.csr(certificate, generation, csr_pem)


async def _nothing() -> None:
    pass


class Liaison:
    """Two loops over one link; both end only when cancelled."""

    def __init__(
        self,
        link: Link,
        *,
        clock: Callable[[], datetime],
        heartbeat: timedelta,
        sealing_key: str = "",
        install: str = "",
        reset: bool | None = None,  # the boot before this one had no end
        jitter: Callable[[], float] = random.random,
        look_after_identity: Callable[[], Awaitable[None]] = _nothing,
    ) -> None:
        self._link = link
        self._look_after_identity = look_after_identity
        self._clock = clock
        self._heartbeat = heartbeat
        self._sealing_key = sealing_key
        self._install = install
        self._reset = reset
        self._jitter = jitter
        self._changed = asyncio.Event()
        self._boot_id = systemd.boot_id()
        self._sequence = 0
        self._log = log.get("liaison")

    def changed(self) -> None:
        """There is something new to tell."""
        self._changed.set()

    async def listen(self, assigned: Callable[[Mapping[str, Assignment]], None]) -> None:
        """Keep the list of assignments up to date."""
        revision, failures = "", 0
        while True:
            try:
                found = await self._link.assignments(after=revision, wait=WAIT if revision else 0)
            except ChannelError as error:
                failures += 1
                # Asked without a revision after a reconnect: what was said before may be another daemon's.
                revision = ""
                await self._pause(failures, error)
                continue
            failures = 0
            if found.revision != revision:
                self._log.info("assignments.heard", revision=found.revision, count=len(found.assignments))
                assigned(_assignments(found))
            revision = found.revision
            # Here, where no query of ours is under way, because a new identity means a new session.
            await self._look_after_identity()

    async def tell(
        self, said: Callable[[], tuple[tuple[Deployment, ...], Mapping[tuple[str, Endpoint], Proof]]]
    ) -> None:
        """Report whatever changed, and that nothing did at every heartbeat."""
        failures = 0
        while True:
            self._changed.clear()
            try:
                await self._link.report(self._report(*said()))
            except ChannelError as error:
                failures += 1
                await self._pause(failures, error)
                continue
            failures = 0
            try:
                async with asyncio.timeout(self._heartbeat.total_seconds()):
                    await self._changed.wait()
            except TimeoutError:
                pass

    def _report(
        self, deployments: tuple[Deployment, ...], proofs: Mapping[tuple[str, Endpoint], Proof]
    ) -> Report:
        # Of one boot, across restarts of this process, a later report must have the higher number.
        self._sequence = max(self._sequence + 1, time.monotonic_ns() // 1_000_000)
        now = self._clock()
        return Report.of(
            deployments,
            ((certificate, proof) for (certificate, _), proof in proofs.items()),
            boot_id=self._boot_id,
            sequence=self._sequence,
            sent_at=now,
            booted_at=now - systemd.booted_for(),
            reset=self._reset,
            version=__version__,
            sealing_key=self._sealing_key,
            install=self._install,
        )

    async def _pause(self, failures: int, error: ChannelError) -> None:
        pause = pause_after(failures, self._jitter())
        self._log.warning(
            "daemon.away", code=error.code, detail=error.text, hint=error.hint, again_in=pause.total_seconds()
        )
        await asyncio.sleep(pause.total_seconds())


def pause_after(failures: int, jitter: float) -> timedelta:
    """Return how long to stay away after so many failures in a row: longer and longer, never all agents alike.

    `jitter` is drawn evenly from [0, 1), and so the pauses spread evenly over their whole range.
    """
    longest = min(FIRST_PAUSE * (1 << min(failures - 1, 10)), LONGEST_PAUSE)
    return SHORTEST_PAUSE + (longest - SHORTEST_PAUSE) * jitter


def _assignments(found: Assignments) -> dict[str, Assignment]:
    return {
        one.certificate: Assignment(
            one.certificate,
            one.generation,
            fingerprint=one.fingerprint,
            identifiers=one.identifiers,
            bundle=one.bundle,
            request=Asked(**dict(one.request)) if one.request else None,
        )
        for one in found.assignments
    }
