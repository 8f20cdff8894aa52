"""What the store hands out beside core's own values: frozen facts, each as it stands in one row.

Instants are aware UTC, fingerprints and hashes lower-case hex SHA-256, certificates PEM bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Any

from certfan.core.custody import SigningRequest
from certfan.core.issuance import Issuance
from certfan.core.ledger import Spend
from certfan.core.model import (
    Attempt,
    Deployment,
    Generation,
    Leftover,
    PathCheck,
    Problem,
    Proof,
    RenewalInfo,
    Revocation,
)


@dataclass(frozen=True, slots=True)
class Run:
    """One life of the daemon's process. `boot_id` is the kernel's: two runs of one boot were no reset."""

    number: int
    boot_id: str
    pid: int = field(kw_only=True)
    epoch: str = field(kw_only=True)  # random; the first half of every revision handed out in this run
    remembered_until: datetime = field(kw_only=True)  # the last that the store knew of when the run began
    began_at: datetime = field(kw_only=True)
    ended_at: datetime | None = field(default=None, kw_only=True)  # None: still runs, or ended uncleanly
    booted_for: int | None = field(default=None, kw_only=True)  # seconds since boot, at its begin


@dataclass(frozen=True, slots=True)
class AccountFact:
    """An account at an authority; its key is in the state folder."""

    authority: str
    directory: str
    uri: str = field(kw_only=True)
    thumbprint: str = field(kw_only=True)
    recorded_at: datetime = field(kw_only=True)
    contact: tuple[str, ...] | None = field(default=None, kw_only=True)  # what it was told last


@dataclass(frozen=True, slots=True)
class ClosedIssuance:
    """A try that ended: with its generation (no problem) or given up."""

    issuance: Issuance
    closed_at: datetime
    problem: Problem | None = None


@dataclass(frozen=True, slots=True)
class ConsumerFact:
    """A consumer that the admin added; `revoked_at` is when all that it could show was last ended."""

    name: str
    added_at: datetime
    revoked_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class EnrolmentFact:
    """A one-time token by its hash; `spent_by` is the SPKI hash that redeemed it, "" while nobody has."""

    token_hash: str
    consumer: str
    opened_at: datetime = field(kw_only=True)
    expires: datetime = field(kw_only=True)
    spent_by: str = field(default="", kw_only=True)


@dataclass(frozen=True, slots=True)
class IdentityFact:
    """A certificate of the internal CA that a consumer shows; the store ends it, not its date.

    `used_at` is its first use, which ended the consumer's others.
    """

    serial: str
    consumer: str
    spki: str = field(kw_only=True)
    certificate_pem: bytes = field(kw_only=True)
    not_before: datetime = field(kw_only=True)
    not_after: datetime = field(kw_only=True)
    used_at: datetime | None = field(default=None, kw_only=True)
    ended_at: datetime | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True)
class Standing:
    """As much of an identity that has not ended as every request asks for."""

    serial: str
    consumer: str
    used_at: datetime | None
    ended_at: None = None


@dataclass(frozen=True, slots=True)
class Lists:
    """What some consumers were last offered, as one transaction saw it; each of them is in `revisions`."""

    epoch: str
    revisions: Mapping[str, int]
    offered: Mapping[
        str, tuple[tuple[str, int], ...]
    ]  # (certificate, generation) by certificate; 0: none issued yet
    generations: Mapping[str, tuple[Generation, ...]]


@dataclass(frozen=True, slots=True)
class PublishedFact:
    """When a generation was first published for a consumer; history only, the share itself is the truth."""

    certificate: str
    consumer: str
    generation: int
    at: datetime


@dataclass(frozen=True, slots=True)
class Heard:
    """The newest report of a consumer that counted; `at` is the daemon's clock."""

    consumer: str
    at: datetime
    boot_id: str = field(kw_only=True)
    sequence: int = field(kw_only=True)
    version: str = field(kw_only=True)
    install: str = field(default="", kw_only=True)  # copy or in-place; "": a release that does not say


@dataclass(frozen=True, slots=True)
class ConfigFact:
    """The config in force. `problems` are those of the newest file, which then is not the one in force."""

    number: int
    digest: str
    in_force_since: datetime
    problems: tuple[str, ...] = ()
    problems_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """A line of the journal: name is noun.participle, fields are JSON values. `id` is 0 until stored."""

    at: datetime
    name: str
    subject: str
    fields: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    id: int = 0


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """All that the reconciler reads at a tick, as one transaction saw it. Pairs are (certificate, consumer).

    Nothing in it may be changed; a part may be the very value of the tick before.
    """

    generations: Mapping[str, tuple[Generation, ...]]  # ascending by number
    issuances: tuple[Issuance, ...]  # open ones, at most one a certificate
    attempts: Mapping[str, Attempt]  # by subject
    asked: Mapping[str, datetime]
    revoked: Mapping[tuple[str, int], datetime]  # by (certificate, generation), as the next
    renewal_infos: Mapping[tuple[str, int], RenewalInfo]
    offered: Mapping[tuple[str, str], int]
    deployments: Mapping[tuple[str, str], tuple[Deployment, ...]]  # ascending by generation
    proofs: Mapping[tuple[str, str], tuple[Proof, ...]]
    heard: Mapping[str, Heard]  # by consumer
    rolled_back: Mapping[str, int]  # by certificate: the older generation that is wanted back
    to_forget: Mapping[str, datetime]  # certificates, since when
    consumers_to_forget: Mapping[str, datetime]
    enrolled: Mapping[str, datetime]  # consumers that have an identity, since when
    config_changed: Mapping[str, datetime]  # since when a certificate's definition is what it is
    revocations: Mapping[tuple[str, int], Revocation]  # by (certificate, generation): asked for, not done
    spends: Mapping[str, tuple[Spend, ...]]  # by authority, oldest first
    leftovers: tuple[Leftover, ...]  # oldest first
    rollovers: frozenset[str]  # authorities
    checks: Mapping[str, PathCheck]  # by identifier
    sealing_keys: Mapping[str, bytes]  # public ones, by consumer
    signing_requests: Mapping[str, SigningRequest]  # by certificate
