"""Makes an older pair the next generation: the copy is made like any generation, key first, chain, then the record.

What must never come in: which generation it is (core.rollback).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from certfan import pki
from certfan.core.keys import unwanted
from certfan.core.model import Desired, Generation
from certfan.core.rollback import why_not_back_to
from certfan.daemon.journal import Journal
from certfan.daemon.publishing.laying import lay
from certfan.daemon.state import StateFolder
from certfan.daemon.store import Store


class RollBacks:
    """Carries roll-backs out; each part of one may be repeated."""

    def __init__(
        self, *, store: Store, state: StateFolder, journal: Journal, clock: Callable[[], datetime]
    ) -> None:
        self._store = store
        self._state = state
        self._journal = journal
        self._clock = clock

    async def back_to(self, desired: Desired, name: str, number: int, *, floor: int) -> Generation | None:
        """Record the pair of generation `number` as the next one, numbered above `floor` and all we know.

        None when that cannot be any more; the wish is then given up, and the journal says why. Repeatable at any
        point: cut off, it leaves at most a folder that the next call completes.

        Raises:
            PairMismatch, ChainInvalid: the state folder does not hold the pair whole.
        """
        facts = await self._store.facts()
        known = {g.number: g for g in facts.generations.get(name, ())}
        certificate, old, now = desired.certificates.get(name), known.get(number), self._clock()
        why: str | None = "it is not there any more"
        if certificate is not None and old is not None:
            revoked = unwanted(facts.generations[name], {*facts.revoked, *facts.revocations})
            why = why_not_back_to(certificate, old, revoked=revoked, now=now)
        if why is not None or old is None:
            await self._store.drop_rollback(name)
            await self._journal.warn("rollback.dropped", f"{name}@{number}", detail=why)
            return None
        copy = replace(old, number=self._copy(old, floor), issued_at=now, copy_of=number)
        await self._store.record_copy(copy)
        await self._journal.note(
            "generation.rolled_back",
            str(copy),
            to=str(old),
            serial=old.serial,
            not_after=old.not_after.isoformat(),
        )
        return copy

    def _copy(self, old: Generation, floor: int) -> int:
        """Lay key and chain again under the next number, and return that."""
        files = self._state.read_generation(old.certificate, old.number)
        if old.holder:
            pki.load_chain(files.get("fullchain.pem", b""))
        else:
            pki.load_pair(files.get("privkey.pem", b""), files.get("fullchain.pem", b""))
        return lay(self._state, old.certificate, files, floor)
