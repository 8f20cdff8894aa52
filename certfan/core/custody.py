"""Keys that a consumer makes and alone has: what it is asked to sign, and whether that still fits what is wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from certfan.core.model import Certificate, Generation, Identifier, KeyType, Problem

# Keys of one certificate that a consumer keeps at least, to go back to; older ones go with their generations.
KEYS_KEPT = 5
LOST_AGAIN = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class SigningRequest:
    """What a consumer was asked to sign with a key of its own, for one generation to be; `csr` is its answer (DER).

    `key` names the key (by SPKI hash) that it is to use again, "" a new one. `problem` is why an answer was refused.
    """

    certificate: str
    consumer: str
    generation: int = field(kw_only=True)
    identifiers: frozenset[Identifier] = field(kw_only=True)
    key_type: KeyType = field(kw_only=True)
    asked_at: datetime = field(kw_only=True)
    key: str = field(default="", kw_only=True)
    csr: bytes | None = field(default=None, repr=False, kw_only=True)
    problem: Problem | None = field(default=None, kw_only=True)


def fits(request: SigningRequest | None, certificate: Certificate, generations: Sequence[Generation]) -> bool:
    """Whether what a consumer was asked for is what the next generation needs. `generations` ascend."""
    if request is None:
        return False
    wanted = (certificate.holder, frozenset(certificate.identifiers), certificate.key_type)
    is_next = not generations or generations[-1].number < request.generation
    return is_next and (request.consumer, request.identifiers, request.key_type) == wanted


def lost_since(generations: Sequence[Generation], lost: datetime | None) -> datetime | None:
    """Return from when on a newest generation whose key its holder has lost is to be replaced; None: it need not be.

    At once, but no second order within a day: a consumer that loses every key would wear the authority out. What was
    gone back to cost none.
    """
    if lost is None or not generations or not generations[-1].holder:
        return None
    newest = generations[-1]
    before = [g.issued_at for g in generations[:-1] if g.copy_of is None]
    if newest.copy_of is not None or not before:
        return newest.issued_at
    return max(newest.issued_at, before[-1] + LOST_AGAIN)
