"""Which of what a consumer says of its generations can be true: numbers that nobody can have given are left out."""

from __future__ import annotations

from collections.abc import Sequence

from certfan.core.model import Deployment
from certfan.core.numbers import is_plausible
from certfan.daemon.journal import Journal
from certfan.daemon.store import Store, StoreFacts

_MOST_TOLD = 1000


class Plausible:
    """Leaves out, and tells once each."""

    def __init__(self, store: Store, journal: Journal) -> None:
        self._store = store
        self._journal = journal
        self._told: set[tuple[str, str, int]] = set()

    async def among(self, said: Sequence[Deployment], facts: StoreFacts) -> list[Deployment]:
        """Return what may be so. The next number follows the highest that is reported, so one too many would be for ever."""
        found = []
        for one in said:
            if is_plausible(one.generation, _newest(one.certificate, facts)) or is_plausible(
                one.generation, await self._given(one.certificate, facts)
            ):
                found.append(one)
            else:
                await self._tell(one)
        return found

    async def _given(self, certificate: str, facts: StoreFacts) -> int:
        """Return the highest number that we gave a certificate, or have forgotten, whatever consumers and shares say."""
        given = [one.generation for one in facts.issuances if one.certificate == certificate]
        if (asked := facts.signing_requests.get(certificate)) is not None:
            given.append(asked.generation)
        return max([*given, await self._store.forgotten_number(certificate)])

    async def _tell(self, one: Deployment) -> None:
        which = (one.consumer, one.certificate, one.generation)
        if which in self._told or len(self._told) >= _MOST_TOLD:
            return
        self._told.add(which)
        await self._journal.warn(
            "report.implausible",
            one.consumer,
            certificate=one.certificate,
            generation=str(one.generation),
            detail=f"{one.consumer} reports a generation of {one.certificate} that nobody can have made",
            hint=f"look who reports there; run: certfan consumer revoke {one.consumer}, and enrol it anew",
        )


def _newest(certificate: str, facts: StoreFacts) -> int:
    generations = facts.generations.get(certificate, ())
    return generations[-1].number if generations else 0
