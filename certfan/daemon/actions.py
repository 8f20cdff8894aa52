"""What an admin can ask for on the control socket; whoever asked is named in the journal."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import datetime

from certfan import toml
from certfan.core.model import Desired, Problem
from certfan.daemon.enroller import Enroller
from certfan.daemon.journal import Journal
from certfan.daemon.store import Store
from certfan.errors import UnknownName


class AdminActions:
    """The daemon's side of daemon.status.control.Actions."""

    def __init__(
        self,
        *,
        store: Store,
        journal: Journal,
        enroller: Enroller,
        desired: Callable[[], Desired],
        end_sessions: Callable[[str], None],
        read_config: Callable[[], Awaitable[Sequence[Problem]]],
        ring: Callable[[], None],
        clock: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._journal = journal
        self._enroller = enroller
        self._desired = desired
        self._end_sessions = end_sessions
        self._read_config = read_config
        self._ring = ring
        self._clock = clock

    async def renew(self, certificate: str, *, uid: int) -> None:
        """Ask for a new generation now; an order's back-off is lifted once."""
        _known(certificate, "certificate", self._desired().certificates)
        await self._store.ask_renewal(certificate, self._clock())
        await self._journal.note("renewal.asked", certificate, uid=uid)
        self._ring()

    async def add_consumer(self, name: str, *, uid: int) -> str:
        """Return an enrolment line for a consumer that the config knows."""
        _known(name, "consumer", self._desired().consumers)
        line = await self._enroller.add(name)
        await self._journal.note("consumer.added", name, uid=uid)
        return line

    async def revoke_consumer(self, name: str, *, uid: int) -> None:
        """End every identity of a consumer and close its live sessions."""
        _known(name, "consumer", {**self._desired().consumers, **await self._store.consumers()})
        await self._store.end_identities(name, self._clock())
        self._end_sessions(name)
        await self._journal.warn("consumer.revoked", name, uid=uid)

    async def reload(self, *, uid: int) -> Sequence[Problem]:
        """Read the config now; return what is wrong with it."""
        await self._journal.note("config.asked", "config", uid=uid)
        return await self._read_config()


def _known(name: str, kind: str, names: Collection[str]) -> None:
    if name not in names:
        guess = toml.did_you_mean(name, names)
        raise UnknownName(
            f"no {kind} {name!r} in the config{guess}", subject=name, hint="run: certfan status"
        )
