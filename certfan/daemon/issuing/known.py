"""What the store knows of one certificate when an order for it begins; a small part of the facts, which are large."""

from __future__ import annotations

from dataclasses import dataclass

from certfan.core.custody import SigningRequest
from certfan.core.issuance import Issuance
from certfan.core.keys import spent_keys
from certfan.core.model import Generation
from certfan.daemon.store import StoreFacts


@dataclass(frozen=True, slots=True)
class Known:
    """It may be late: what must not be is asked again where the intent is written down."""

    generations: tuple[Generation, ...]  # ascending by number
    revoked: frozenset[int]
    spent: frozenset[str]  # keys that are or are to be revoked
    open_one: Issuance | None
    asked: SigningRequest | None

    @classmethod
    def of(cls, facts: StoreFacts, name: str) -> Known:
        """Return what the facts say of a certificate."""
        generations = facts.generations.get(name, ())
        return cls(
            generations,
            frozenset(g.number for g in generations if (name, g.number) in facts.revoked),
            frozenset(spent_keys(generations, {*facts.revoked, *facts.revocations})),
            next((one for one in facts.issuances if one.certificate == name), None),
            facts.signing_requests.get(name),
        )
