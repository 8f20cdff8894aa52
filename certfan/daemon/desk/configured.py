"""The config in force: taken from the watch, told to the store and the journal, handed to whoever asks."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import datetime

from certfan.core.looks import checked_identifiers
from certfan.core.model import Authority, Certificate, Desired, Problem
from certfan.daemon.config.loading import Config
from certfan.daemon.config.watch import ConfigWatch, Loaded
from certfan.daemon.journal import Journal
from certfan.daemon.store import Store


class Configured:
    """Holds the good config; a bad new one only adds problems.

    `take_over` gets the config before and the new one, and does what a value alone does not.
    """

    def __init__(
        self,
        started_with: Config,
        *,
        store: Store,
        journal: Journal,
        take_over: Callable[[Config, Config], Awaitable[None]],
        ring: Callable[[], None],
        clock: Callable[[], datetime],
    ) -> None:
        self.config = started_with
        self.problems: tuple[Problem, ...] = ()
        self._watch = ConfigWatch(started_with)
        self._store = store
        self._journal = journal
        self._take_over = take_over
        self._ring = ring
        self._clock = clock

    def desired(self) -> Desired:
        """Return what the config in force asks for."""
        return self.config.desired

    async def open(self) -> None:
        """Record the config that we start with."""
        await self._record()

    async def run(self) -> None:
        """Follow the files for ever."""
        async for loaded in self._watch.changes():
            await self._take(loaded)

    async def read_now(self) -> Sequence[Problem]:
        """Read the files at once; return what is wrong with them."""
        if loaded := await self._watch.look(force=True):
            await self._take(loaded)
        return self.problems

    async def _take(self, loaded: Loaded) -> None:
        self.problems = loaded.problems
        if loaded.config is not None:
            before, self.config = self.config, loaded.config
            await self._record()
            await self._take_over(before, loaded.config)
            await self._tell_difference(before.desired.certificates)
        for problem in loaded.problems:
            await self._journal.warn("config.problem", "config", detail=problem.detail, hint=problem.hint)
        if loaded.config is None:
            await self._store.record_config(
                self.config.digest, tuple(p.detail for p in self.problems), self._clock()
            )
        self._ring()

    async def _tell_difference(self, old: Mapping[str, Certificate]) -> None:
        new = self.config.desired.certificates
        await self._journal.note(
            "config.taken",
            "config",
            added=sorted(set(new) - set(old)),
            changed=sorted(name for name in set(new) & set(old) if new[name] != old[name]),
            removed=sorted(set(old) - set(new)),
        )

    async def _record(self) -> None:
        now, store, wanted = self._clock(), self._store, self.config.desired
        checked = {i for one in wanted.certificates.values() for i in checked_identifiers(one)}
        await asyncio.gather(  # in this order, and in one commit
            store.record_config(self.config.digest, tuple(p.detail for p in self.problems), now),
            store.note_definitions(_definitions(wanted), now),
            store.keep_wanted(wanted.certificates.keys(), wanted.consumers.keys()),
            store.keep_checks(checked),
        )


def _definitions(wanted: Desired) -> dict[str, str]:
    """Return a digest of all that a certificate is ordered by: what is mended at its authority may help it too."""
    return {
        name: hashlib.sha256(repr((one, *_authorities(one, wanted))).encode()).hexdigest()
        for name, one in wanted.certificates.items()
    }


def _authorities(certificate: Certificate, wanted: Desired) -> Iterator[Authority]:
    return (wanted.authorities[name] for name in (certificate.authority, *certificate.fallback))
