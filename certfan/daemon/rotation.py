"""`certfan ca rotate`: the internal CA is followed by another one, while no agent needs a hand and none is ever cut off.

1. Both are believed: the new one is made, agents have both pinned, and get an identity of the new one.
2. When every consumer has, the new one takes the old one's place: it signs bundles, the channel shows its certificate.
3. What the share carries is signed anew; then agents pin the new one alone, and when every consumer has, the old one is gone.

Which of it is so stands in the CA's folder and in the store; a crash anywhere is completed by the next look.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from certfan import log, pki
from certfan.core.rotation import InternalCa, Phase
from certfan.daemon import ca as ca_files
from certfan.daemon.ca import CaFolder
from certfan.daemon.journal import Journal
from certfan.daemon.store import Store
from certfan.errors import CertfanError

EVERY = timedelta(seconds=10)  # while a rotation is under way


class Rotation:
    """Looks after the internal CA. `take_over` has every part use what the folder holds now."""

    def __init__(
        self,
        *,
        folder: Path,
        ca: Callable[[], CaFolder],
        take_over: Callable[[], Awaitable[None]],
        store: Store,
        journal: Journal,
        pinned: Callable[[], Mapping[str, int]],
        sign_share_anew: Callable[[], Awaitable[int]],
        clock: Callable[[], datetime],
    ) -> None:
        self._folder = folder
        self._ca = ca
        self._take_over = take_over
        self._store = store
        self._journal = journal
        self._pinned = pinned
        self._sign_share_anew = sign_share_anew
        self._clock = clock
        self._bell = asyncio.Event()
        self._signed_anew = False
        self._problem = ""
        self._log = log.get("rotation")

    async def begin(self, *, uid: int) -> InternalCa:
        """Make another CA. Repeatable: one that is under way goes on.

        Raises:
            ActionRefused: the last rotation has not ended.
        """
        if self._ca().next is None:
            ca_files.begin_rotation(self._folder, self._ca(), self._clock())
            await self._journal.warn("ca.rotating", "ca", uid=uid, rotation=self._ca().rotations + 1)
            await self._take_over()
        self._bell.set()
        return await self.view()

    async def view(self) -> InternalCa:
        """Return how it stands."""
        ca, phase = self._ca(), self._phase()
        leaf = pki.read_leaf(ca.ca.cert_pem)
        found = InternalCa(
            ca.ca.fleet,
            phase,
            ca.rotations,
            leaf.fingerprint,
            leaf.not_after,
            tuple(sorted(await self._waits_for())),
            self._problem,
        )
        if phase is Phase.SETTLED:
            return found
        going = pki.read_leaf(ca.previous_pem or ca.ca.cert_pem)
        coming = pki.read_leaf(ca.next.cert_pem) if ca.next is not None else leaf
        return replace(found, since=pki.issued_at(coming), old_until=going.not_after)

    def _phase(self) -> Phase:
        if self._ca().next is not None:
            return Phase.OVERLAP
        return Phase.DROPPING if self._ca().previous_pem else Phase.SETTLED

    async def run(self) -> None:
        """Follow a rotation for ever; what fails is told once and tried again."""
        while True:
            try:
                await self.look()
                self._problem = ""
            except CertfanError as error:
                if self._problem != error.text:
                    await self._journal.warn(
                        "ca.rotation_waits", "ca", code=error.code, detail=error.text, hint=error.hint
                    )
                self._problem = error.text
            self._bell.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if self._phase() is Phase.SETTLED else EVERY.total_seconds()):
                    await self._bell.wait()

    async def look(self) -> None:
        """Go on as far as it goes now.

        Raises:
            ShareError: the share cannot be signed anew yet.
        """
        if self._phase() is Phase.OVERLAP and not await self._waits_for():
            ca_files.promote(self._folder)
            await self._take_over()
            await self._journal.warn("ca.promoted", "ca", rotation=self._ca().rotations)
        if self._phase() is Phase.DROPPING:
            if not self._signed_anew:
                count = await self._sign_share_anew()
                self._signed_anew = True
                await self._take_over()
                await self._journal.note("share.signed_anew", "share", generations=count)
            if not await self._waits_for():
                ca_files.drop(self._folder)
                await self._take_over()
                self._signed_anew = False
                await self._journal.warn("ca.dropped", "ca", rotation=self._ca().rotations)

    def trust_number(self) -> int:
        """Return the number of what agents are to believe; none (0) while the share still needs the CA that goes."""
        waits = self._phase() is Phase.DROPPING and not self._signed_anew
        return 0 if waits else self._ca().trust_number

    def statement(self) -> bytes:
        """Return what agents are to believe."""
        return self._ca().statement()

    async def _waits_for(self) -> set[str]:
        """Return the consumers that have not followed yet: only those that have an identity can."""
        phase, ca = self._phase(), self._ca()
        if phase is Phase.SETTLED:
            return set()
        waits = set()
        for name in await self._store.consumers():
            live = [i for i in await self._store.identities(name) if i.ended_at is None and i.used_at]
            if not live:
                continue
            if phase is Phase.OVERLAP:
                assert ca.next is not None
                behind = any(not pki.is_of(i.certificate_pem, ca.next.cert_pem) for i in live)
            else:
                behind = self._pinned().get(name, 0) < ca.trust_number
            if behind:
                waits.add(name)
        return waits
