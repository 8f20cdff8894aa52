"""What was last seen outside: the share's contents, and whether authorities that were silent answer again.

Looks are tasks on the reconciler's loop, like steps. What must never come in: what to do about what was seen.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta

from certfan import log
from certfan.core.model import Attempt, Authority, Desired
from certfan.core.numbers import is_plausible
from certfan.core.plan import Key, Where
from certfan.core.policy import holds
from certfan.core.upkeep import silent_authorities
from certfan.daemon.issuing.accounts import Accounts
from certfan.daemon.journal import Journal
from certfan.daemon.share.share import Share
from certfan.daemon.timekeeper import Timekeeper
from certfan.errors import CertfanError, ShareError
from certfan.loop import Loop
from certfan.share_worker.tree import Folder

SHARE_UP = timedelta(seconds=30)
SHARE_DOWN = timedelta(seconds=3)
SHARE_SWEEP = timedelta(hours=1)
GLANCE = timedelta(seconds=2)  # with its patience: what happened to the share is told within 5 s
AUTHORITY_DOWN = timedelta(seconds=15)
AT_SHARE: Key = ("share",)


class Lookout:
    """Looks when it is time, and remembers what the last look showed."""

    def __init__(
        self,
        share: Share,
        accounts: Accounts,
        journal: Journal,
        clock: Callable[[], datetime],
        loop: Loop,
        timekeeper: Timekeeper,
    ) -> None:
        self._share = share
        self._accounts = accounts
        self._journal = journal
        self._clock = clock
        self._loop = loop
        self._timekeeper = timekeeper
        self._published: dict[Where, frozenset[Folder]] = {}
        self._live: dict[Where, Folder] = {}
        self._consumers: dict[str, set[str]] = {}  # by certificate, where anything of it may be
        self._seen = False
        self._share_at = self._sweep_at = clock()
        self._lost_at: datetime | None = None  # and the journal knows of it
        self._authority_at: dict[str, datetime] = {}  # those that are silent, and when to look again
        self._answered: dict[str, datetime] = {}
        self._log = log.get("lookout")

    @property
    def published(self) -> Mapping[Where, frozenset[Folder]]:
        """Every bundle that is complete on the share, whether it counts or not: see core.shown."""
        return dict(self._published)

    @property
    def live(self) -> Mapping[Where, Folder]:
        """Where the share's pointers were."""
        return dict(self._live)

    @property
    def share_lost_at(self) -> datetime | None:
        """Since when the share cannot be used, as far as this run knows."""
        return self._lost_at

    @property
    def share_up(self) -> bool:
        """Whether the share answered when it was last used."""
        return self._share.is_up

    @property
    def share_seen(self) -> bool:
        """Whether a look has shown what is on the share."""
        return self._seen

    @property
    def answered(self) -> Mapping[str, datetime]:
        """When authorities that had been silent answered again."""
        return dict(self._answered)

    def shows(self, certificate: str) -> bool:
        """Whether the share shows anything of a certificate."""
        return any(where in self._published or where in self._live for where in self._places(certificate))

    def highest(self, certificate: str, *, known: int) -> int:
        """Return the highest number that the share shows of a certificate, 0 for none.

        One that is out of reach of what we know is none.
        """
        places = self._places(certificate)
        seen = [folder for where in places for folder in self._published.get(where, ())]
        seen += [self._live[where] for where in places if where in self._live]
        return max((folder.number for folder in seen if is_plausible(folder.number, known)), default=0)

    def _places(self, certificate: str) -> list[Where]:
        return [(certificate, consumer) for consumer in self._consumers.get(certificate, ())]

    def put(self, where: Where, folder: Folder) -> None:
        """Take in what was just published."""
        self._published[where] = self._published.get(where, frozenset()) | {folder}
        self._live[where] = folder
        self._consumers.setdefault(where[0], set()).add(where[1])

    def taken(self, where: Where, generation: int, bundle: str | None) -> None:
        """Take in what was just removed: one bundle of a generation, None for all."""
        before = self._published.get(where, frozenset())
        self._published[where] = frozenset(one for one in before if not one.is_of(generation, bundle))

    def cleared(self, where: Where) -> None:
        """Take in that nothing of a certificate is left at a consumer."""
        self._published.pop(where, None)
        self._live.pop(where, None)

    def forgotten(self, consumer: str) -> None:
        """Take in that a consumer's folder is gone."""
        for where in [where for where in {**self._published, **self._live} if where[1] == consumer]:
            self.cleared(where)

    def share_moved(self) -> None:
        """Forget what the old share showed, and look at the new one at once."""
        self._published, self._live, self._consumers, self._seen = {}, {}, {}, False
        self._share_at = self._clock()
        self._loop.ring()

    def look_where_due(
        self, group: asyncio.TaskGroup, desired: Desired, attempts: Mapping[str, Attempt], now: datetime
    ) -> datetime:
        """Start the looks that are due; return when the next one is."""
        if not self.share_up:  # a publish may have found that out, long before the next look was due
            self._share_at = min(self._share_at, now + SHARE_DOWN)
        if not holds(self._share_at, now, SHARE_UP) and AT_SHARE not in self._loop.in_flight:
            self._loop.start(group, [AT_SHARE], self._see_share())
        silent = silent_authorities(desired, attempts, self._answered)
        self._authority_at = {name: self._authority_at.get(name, now + AUTHORITY_DOWN) for name in silent}
        for name, at in self._authority_at.items():
            key = ("look", name, "authority")
            if not holds(at, now, AUTHORITY_DOWN) and key not in self._loop.in_flight:
                self._loop.start(group, [key], self._see_authority(desired.authorities[name]))
        self._ask_the_time(group, desired)
        ahead = [at for at in (self._share_at, *self._authority_at.values()) if at > now]
        if (wait := self._timekeeper.ask_in) is not None:
            ahead.append(now + wait)
        return min(ahead, default=now + SHARE_UP)

    def _ask_the_time(self, group: asyncio.TaskGroup, desired: Desired) -> None:
        """Have every authority say its Date while our own clock is in doubt; one that agrees ends the doubt."""
        if not self._timekeeper.should_ask:
            return
        self._timekeeper.asked()
        for name, authority in desired.authorities.items():
            key = ("look", name, "clock")
            if key not in self._loop.in_flight:
                self._loop.start(group, [key], self._see_date(authority))

    async def _see_date(self, authority: Authority) -> None:
        with contextlib.suppress(CertfanError):  # whether it answers is said elsewhere
            await self._accounts.look(authority)

    async def keep_watch(self, desired: Callable[[], Desired]) -> None:
        """Glance at the share for ever, and have the plan made anew when it was lost or is back."""
        while True:
            was_up = self.share_up
            with contextlib.suppress(CertfanError):  # the share remembers it for the status
                await self._share.glance(desired().consumers.values())
            if self.share_up != was_up:
                self._share_at = self._clock()
                self._loop.ring()
            await asyncio.sleep(GLANCE.total_seconds())

    async def _see_share(self) -> None:
        try:
            seen = await self._share.look()
            if not holds(self._sweep_at, self._clock(), SHARE_SWEEP):
                await self._sweep()
        except ShareError as error:
            self._share_at = self._clock() + SHARE_DOWN
            if self._lost_at is None:
                self._lost_at = self._clock()
                await self._journal.warn(
                    "share.lost", error.subject, code=error.code, detail=error.text, hint=error.hint
                )
            return
        self._published, self._live, self._seen = dict(seen.published), dict(seen.live), True
        self._consumers = {}
        for certificate, consumer in (*seen.published, *seen.live):
            self._consumers.setdefault(certificate, set()).add(consumer)
        self._share_at = self._clock() + SHARE_UP
        if self._lost_at is not None:
            self._lost_at = None
            await self._journal.note("share.found", "share")

    async def _sweep(self) -> None:
        """Remove what interrupted publishing left behind."""
        if swept := await self._share.sweep():
            await self._journal.note("share.swept", "share", count=swept)
        self._sweep_at = self._clock() + SHARE_SWEEP

    async def _see_authority(self, authority: Authority) -> None:
        """Ask for its directory only: one request then ends the wait of every order there."""
        try:
            await self._accounts.look(authority)
        except CertfanError as error:
            self._log.info("authority.silent", subject=authority.name, code=error.code, detail=error.text)
        else:
            self._answered[authority.name] = self._clock()
            await self._journal.note("authority.found", authority.name)
        self._authority_at[authority.name] = self._clock() + AUTHORITY_DOWN
