"""An RFC 8555 order as a machine: what was seen and the instant in, one move out.

The `...Seen` values are what an authority answered, already parsed and checked by its edge.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from certfan.core.model import Identifier, Problem


class OrderStatus(StrEnum):
    """RFC 8555 section 7.1.6."""

    PENDING = "pending"
    READY = "ready"
    PROCESSING = "processing"
    VALID = "valid"
    INVALID = "invalid"


class AuthorizationStatus(StrEnum):
    """RFC 8555 section 7.1.6."""

    PENDING = "pending"
    VALID = "valid"
    INVALID = "invalid"
    DEACTIVATED = "deactivated"
    EXPIRED = "expired"
    REVOKED = "revoked"


class ChallengeStatus(StrEnum):
    """RFC 8555 section 7.1.6."""

    PENDING = "pending"
    PROCESSING = "processing"
    VALID = "valid"
    INVALID = "invalid"


@dataclass(frozen=True, slots=True)
class ChallengeSeen:
    """One challenge of an authorization; `token` matches `[A-Za-z0-9_-]+` or the edge has refused it."""

    kind: str  # http-01, dns-01, ...
    url: str
    status: ChallengeStatus
    token: str
    problem: Problem | None = None


@dataclass(frozen=True, slots=True)
class AuthorizationSeen:
    """One authorization as the authority last showed it."""

    url: str
    status: AuthorizationStatus
    identifier: Identifier
    challenges: tuple[ChallengeSeen, ...]
    wildcard: bool = field(default=False, kw_only=True)
    expires: datetime | None = field(default=None, kw_only=True)
    retry_after: timedelta | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True)
class OrderSeen:
    """One order as the authority last showed it."""

    url: str
    status: OrderStatus
    authorizations: tuple[str, ...]
    finalize: str
    certificate: str | None = field(default=None, kw_only=True)
    expires: datetime | None = field(default=None, kw_only=True)
    problem: Problem | None = field(default=None, kw_only=True)
    retry_after: timedelta | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True)
class Issuance:
    """What the store remembers of one try to get one generation; survives the process.

    `order_url` is None from the intent until the answer to newOrder was recorded. `answered` holds the URLs of
    challenges that the authority was told to try.
    """

    certificate: str
    generation: int
    authority: str
    identifiers: tuple[Identifier, ...]
    begun_at: datetime
    order_url: str | None = None
    answered: frozenset[str] = frozenset()
