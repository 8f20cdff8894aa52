"""`certfan share verify` and `rebuild`: the share against store, state folder and signatures; made anew from them.

Every call on the share is a short one of the share worker, so that publishing goes on in between.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator, Mapping
from datetime import datetime
from functools import partial

from certfan.core.model import Consumer, Desired
from certfan.core.plan import wanted_at
from certfan.core.share_audit import (
    Difference,
    Expected,
    Owner,
    differences,
    expected,
    file_differences,
    whole_generations,
)
from certfan.core.steps import Observed, Where
from certfan.daemon.journal import Journal
from certfan.daemon.publishing.bundles import Bundles
from certfan.daemon.share.share import Share, group_number
from certfan.daemon.state import StateFolder
from certfan.daemon.store import Store, StoreFacts
from certfan.errors import CertfanError, ChainInvalid, PairMismatch, ShareError, ShareUnavailable
from certfan.protocol import manifest
from certfan.share_worker.tree import Folder

Progress = Callable[[int, int, str], Awaitable[None]]  # so many done, of so many, at what now

_SOON = "the daemon removes it once live/ leads to the newest: certfan status"


class ShareAudit:
    """Compares, and rebuilds. `observed` is what the plan looks at, `look_again` has the share looked at soon."""

    def __init__(
        self,
        *,
        store: Store,
        state: StateFolder,
        share: Share,
        bundles: Bundles,
        journal: Journal,
        ca_pem: Callable[[], bytes],
        fleet: str,
        desired: Callable[[], Desired],
        observed: Callable[[StoreFacts], Observed],
        look_again: Callable[[], None],
        clock: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._state = state
        self._share = share
        self._bundles = bundles
        self._journal = journal
        self._ca_pem = ca_pem
        self._fleet = fleet
        self._desired = desired
        self._observed = observed
        self._look_again = look_again
        self._clock = clock

    async def verify(self, progress: Progress, *, uid: int) -> tuple[int, tuple[Difference, ...]]:
        """Walk the tree; return how many generations were read, and every difference, none when all is well.

        Changes nothing. Cancelled, nothing is left behind.

        Raises:
            ShareError: the share cannot be read.
        """
        trees = await self._share.survey()
        wanted = await self._expected()
        owners = {name: _owner(one) for name, one in self._desired().consumers.items()}
        found = list(differences(trees, owners, wanted))
        places = whole_generations(trees, wanted)
        for done, (consumer, certificate, folder) in enumerate(places):
            await progress(done, len(places), f"{consumer}: {certificate}@{folder[0]}")
            if consumer in owners:
                found += await self._bundle(consumer, certificate, Folder(*folder), owners[consumer])
        await self._journal.note(
            "share.verified", "share", uid=uid, generations=len(places), differences=len(found)
        )
        return len(places), tuple(found)

    async def rebuild(self, progress: Progress, *, uid: int) -> tuple[int, tuple[Difference, ...]]:
        """Publish again what should be there, the oldest first; return how many, and what could not be. Repeatable.

        What is there whole is left as it is, its signature apart. Cancelled midway, the rest is missing still.

        Raises:
            ShareUnavailable: the share cannot be used.
        """
        wanted = await self._expected()
        places = sorted(
            (consumer, certificate, number)
            for (certificate, consumer), one in wanted.items()
            for number in one.kept.values()
        )
        await self._journal.warn("share.rebuilding", "share", uid=uid, generations=len(places))
        found: list[Difference] = []
        for done, (consumer, certificate, number) in enumerate(places):
            await progress(done, len(places), f"{consumer}: {certificate}@{number}")
            found += await self._publish(consumer, certificate, number)
        self._look_again()
        await self._journal.note(
            "share.rebuilt", "share", uid=uid, generations=len(places), failed=len(found)
        )
        return len(places), tuple(found)

    async def sign_anew(self) -> int:
        """Have everything on the share signed by the signer of today; return how many bundles that are. Repeatable.

        Raises:
            ShareUnavailable: the share cannot be used.
        """
        count, _ = await self.rebuild(_untold, uid=os.geteuid())
        return count

    async def _expected(self) -> Mapping[Where, Expected]:
        facts, desired = await self._store.facts(), self._desired()
        published = [(p.certificate, p.consumer, p.generation) for p in await self._store.published()]
        usable = wanted_at(desired, self._observed(facts), self._clock())
        asked = partial(self._bundles.asked, facts=facts)
        return expected(desired, facts.generations, published, usable, asked)

    async def _bundle(
        self, consumer: str, certificate: str, folder: Folder, owner: Owner
    ) -> list[Difference]:
        place = f"{consumer}/generations/{certificate}/{folder}"
        known = await self._store.facts()
        counts = folder.bundle == self._bundles.asked(certificate, consumer, folder.number, facts=known)
        if not counts and (certificate, consumer) in self._desired().pairs:
            return [Difference(place, "is no bundle of use to the consumer, and is not removed yet", _SOON)]
        try:
            facts, files = await self._share.inspect(consumer, certificate, folder)
            packed = await self._packed(consumer, certificate, folder.number) if counts else {}
        except ShareUnavailable:
            raise
        except CertfanError as why:
            return [Difference(place, why.text, why.hint)]
        names = packed or files
        return [*file_differences(place, facts, names, owner), *self._contents(place, files, packed)]

    def _contents(
        self, place: str, files: Mapping[str, bytes], packed: Mapping[str, bytes]
    ) -> Iterator[Difference]:
        hint = "run: certfan renew NAME, which makes a new generation; then look who changed it"
        consumer, _, certificate, number = place.split("/")
        for name, data in sorted(packed.items()):
            # A signature may be that of an earlier signer; whether it is good is the next question.
            if name != manifest.SIGNATURE and name in files and files[name] != data:
                yield Difference(
                    f"{place}/{name}",
                    "holds other bytes than this daemon's",
                    hint.replace("NAME", certificate),
                )
        if set(files) < set(packed):
            return  # told already, file by file
        try:
            manifest.open_bundle(
                {name: files[name] for name in packed or files},
                ca_pem=self._ca_pem(),
                fleet=self._fleet,
                consumer=consumer,
                certificate=certificate,
                generation=int(number.partition(".")[0]),
                now=self._clock(),
            )
        except CertfanError as why:
            yield Difference(
                f"{place}/{manifest.SIGNATURE}", why.text, why.hint or "run: certfan share rebuild"
            )

    async def _packed(self, consumer: str, certificate: str, number: int) -> Mapping[str, bytes]:
        """Return what this daemon would publish; nothing when it has not got the pair any more."""
        if number not in self._state.generation_numbers(certificate):
            return {}
        sealing_key = (await self._store.facts()).sealing_keys.get(consumer)
        try:
            return self._bundles.pack(consumer, certificate, number, sealing_key=sealing_key)
        except (PairMismatch, ChainInvalid):
            return {}

    async def _publish(self, consumer: str, certificate: str, number: int) -> list[Difference]:
        place = f"{consumer}/generations/{certificate}/{number}"
        try:
            bundle = await self._packed(consumer, certificate, number)
            if not bundle:
                return [Difference(place, "its pair is not in the state folder any more")]
            await self._share.publish(self._desired().consumers[consumer], certificate, number, bundle)
        except ShareUnavailable as why:
            if why.subject == str(self._share.root):
                raise
            return [Difference(place, why.text, why.hint)]
        except (ShareError, CertfanError) as why:
            return [Difference(place, why.text, why.hint)]
        await self._store.record_published(certificate, consumer, number, self._clock())
        return []


async def _untold(_done: int, _of: int, _at: str) -> None:
    pass


def _owner(consumer: Consumer) -> Owner:
    return Owner(os.geteuid(), group_number(consumer), consumer.mode)
