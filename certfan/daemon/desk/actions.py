"""What an admin can ask for on the control socket; whoever asked is named in the journal."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from datetime import datetime

from certfan import toml
from certfan.core.keys import unwanted
from certfan.core.model import Desired, Generation, Problem
from certfan.core.rollback import choose
from certfan.core.steps import Where
from certfan.daemon.desk.enroller import Enroller
from certfan.daemon.journal import Journal
from certfan.daemon.store import Store
from certfan.errors import ActionRefused, UnknownName


class AdminActions:
    """The daemon's side of daemon.status.control.Actions."""

    def __init__(
        self,
        *,
        store: Store,
        journal: Journal,
        enroller: Enroller,
        desired: Callable[[], Desired],
        on_the_share: Callable[[], Iterable[Where]],
        end_sessions: Callable[[str], None],
        read_config: Callable[[], Awaitable[Sequence[Problem]]],
        ring: Callable[[], None],
        clock: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._journal = journal
        self._enroller = enroller
        self._desired = desired
        self._on_the_share = on_the_share
        self._end_sessions = end_sessions
        self._read_config = read_config
        self._ring = ring
        self._clock = clock

    async def renew(self, certificate: str, *, uid: int) -> None:
        """Ask for a new generation now; an order's back-off is lifted once."""
        known(certificate, "certificate", self._desired().certificates)
        await self._store.ask_renewal(certificate, self._clock())
        await self._journal.note("renewal.asked", certificate, uid=uid)
        self._ring()

    async def add_consumer(self, name: str, *, uid: int) -> str:
        """Return an enrolment line for a consumer that the config knows."""
        known(name, "consumer", self._desired().consumers)
        line = await self._enroller.add(name)
        await self._journal.note("consumer.added", name, uid=uid)
        return line

    async def revoke_consumer(self, name: str, *, uid: int) -> None:
        """End every identity of a consumer and close its live sessions."""
        known(name, "consumer", {**self._desired().consumers, **await self._store.consumers()})
        await self._store.end_identities(name, self._clock())
        self._end_sessions(name)
        await self._journal.warn("consumer.revoked", name, uid=uid)

    async def rollback(self, certificate: str, to: int | None, *, uid: int) -> Generation:
        """Ask that an older pair becomes the next generation; return the one whose pair it is."""
        desired = self._desired().certificates
        known(certificate, "certificate", desired)
        facts, now = await self._store.facts(), self._clock()
        generations = facts.generations.get(certificate, ())
        revoked = unwanted(generations, {*facts.revoked, *facts.revocations})
        found = choose(desired[certificate], generations, to, revoked=revoked, now=now)
        if isinstance(found, str):
            raise ActionRefused(f"{certificate}: {found}", subject=certificate, hint="run: certfan status")
        await self._store.ask_rollback(certificate, found.number, now)
        await self._journal.note("rollback.asked", certificate, uid=uid, to=found.number)
        self._ring()
        return found

    async def forget(self, certificate: str, *, uid: int) -> None:
        """Ask that an orphaned certificate is removed everywhere."""
        if certificate in self._desired().certificates:
            raise ActionRefused(
                f"certificate {certificate} is still in the config",
                subject=certificate,
                hint="remove it from certfan.toml first",
            )
        facts = await self._store.facts()
        orphans = {where[0] for where in (*self._on_the_share(), *facts.offered)} | facts.generations.keys()
        known(certificate, "orphaned certificate", orphans, "left")
        await self._store.ask_forget(certificate, self._clock())
        await self._journal.warn("forget.asked", certificate, uid=uid)
        self._ring()

    async def forget_consumer(self, name: str, *, uid: int) -> None:
        """End an orphaned consumer's identities now; ask that its folder on the share is removed."""
        if name in self._desired().consumers:
            raise ActionRefused(
                f"consumer {name} is still in the config",
                subject=name,
                hint="remove it from certfan.toml first",
            )
        offered = (await self._store.facts()).offered
        left = {where[1] for where in (*self._on_the_share(), *offered)} | (
            await self._store.consumers()
        ).keys()
        known(name, "orphaned consumer", left - self._desired().consumers.keys(), "left")
        await self._store.end_identities(name, self._clock())
        self._end_sessions(name)
        await self._store.ask_forget_consumer(name, self._clock())
        await self._journal.warn("forget.asked", f"consumer {name}", uid=uid)
        self._ring()

    async def reload(self, *, uid: int) -> Sequence[Problem]:
        """Read the config now; return what is wrong with it."""
        await self._journal.note("config.asked", "config", uid=uid)
        return await self._read_config()


def known(name: str, kind: str, names: Collection[str], where: str = "in the config") -> None:
    """Raise UnknownName, with a guess, for a name that is none of these."""
    if name not in names:
        guess = toml.did_you_mean(name, names)
        raise UnknownName(f"no {kind} {name!r} {where}{guess}", subject=name, hint="run: certfan status")
