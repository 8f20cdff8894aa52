"""What a real order remembers: all that the next process must know, in the store."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime

from certfan.core.issuance import Issuance
from certfan.core.model import Identifier, Problem
from certfan.daemon.issuing.ordering import Memory
from certfan.daemon.journal import Journal
from certfan.daemon.store import Store


@dataclass(frozen=True, slots=True)
class Written(Memory):
    """The store, and what the journal tells."""

    issuance: Issuance
    store: Store
    journal: Journal
    clock: Callable[[], datetime]

    @property
    def _where(self) -> tuple[str, int]:
        return self.issuance.certificate, self.issuance.generation

    async def order_made(self, url: str) -> None:
        """Keep its URL, and tell of it."""
        await self.store.record_order_url(*self._where, url, self.clock())
        name, number = self._where
        self.journal.tell("order.created", f"{name}@{number}", url=url)

    async def not_replaced(self) -> None:
        """Keep that the order names no predecessor."""
        await self.store.drop_replaces(*self._where)

    async def token_live(self, token: str, answer: str, identifier: Identifier) -> None:
        """Keep the answer."""
        name = self.issuance.certificate
        await self.store.record_token(token, answer, name, str(identifier), self.clock())

    async def answered(self, challenge_url: str) -> None:
        """Keep the challenge's URL; should that be lost, the challenge is answered once more, as after a lost answer."""
        self.store.queue_answered(*self._where, challenge_url)

    async def fetched(self, places: Mapping[str, datetime]) -> None:
        """Tell of each place."""
        for place, at in places.items():
            self.journal.tell("challenge.fetched", self.issuance.certificate, at=at, through=place)

    async def given_up(self, problem: Problem, failed: Collection[Identifier]) -> None:
        """Close the try, with the reason."""
        await self.store.abandon_issuance(*self._where, problem, self.clock(), failed=tuple(failed))
