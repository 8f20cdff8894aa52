"""What can be asked for one by one: generations, deployments, proofs, ledgers and runs, as values and how they are found.

Pure, as `view.py`. A list is told as pairs: what an item is sorted by, and how to make it, for those that are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TypeAlias, TypeVar

from certfan import log
from certfan.core.ledger import Budget, Spend
from certfan.core.model import Deployment, Generation, Proof
from certfan.daemon.status.model import AuthorityView, CertificateView, ConsumerView, LimitUsed, RunView
from certfan.daemon.status.things import StateOfThings
from certfan.daemon.status.wire import Fields, Place, Span
from certfan.daemon.store.facts import Event

_T = TypeVar("_T")
Items: TypeAlias = Iterator[tuple[str, Callable[[], _T]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationView:
    """One generation of a certificate that is in the config, or orphaned. `wanted`: it is the newest."""

    certificate: str
    number: int
    wanted: bool
    fingerprint: str
    serial: str
    identifiers: tuple[str, ...]
    key_type: str
    authority: str
    not_before: datetime
    not_after: datetime
    issued_at: datetime
    copy_of: int | None
    revoked_at: datetime | None
    offered_to: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProofView:
    """What was last seen at one endpoint: `at` by the prober's clock, `heard_at` by ours."""

    certificate: str
    consumer: str
    endpoint: Place
    health: str
    fingerprint: str
    placeholder: bool
    not_before: datetime | None
    not_after: datetime | None
    at: datetime
    heard_at: datetime | None
    since: datetime | None
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SpendView:
    """Something that an authority has counted against our account."""

    kind: str
    at: datetime
    names: tuple[str, ...]
    exempt: bool
    same_set: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """So many of something in any window of that length."""

    limit: str
    count: int
    window: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """What an authority grants, how much of it is used, and what was spent, the newest last."""

    authority: str
    granted: tuple[Granted, ...]
    used: tuple[LimitUsed, ...]
    spent: tuple[SpendView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EventView:
    """A line of the journal."""

    id: int
    at: datetime
    name: str
    subject: str
    fields: Fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificates:
    """`next` is the `after` of what follows, null at the end; so of every list."""

    certificates: tuple[CertificateView, ...]
    next: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """The newest lines of the journal about a certificate, ascending."""

    events: tuple[EventView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Generations:
    """Generations by certificate and number."""

    generations: tuple[GenerationView, ...]
    next: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Consumers:
    """Consumers of the config by name."""

    consumers: tuple[ConsumerView, ...]
    next: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployments:
    """Deployments by certificate, consumer and generation."""

    deployments: tuple[Deployment, ...]
    next: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Proofs:
    """Proofs by certificate, consumer and endpoint."""

    proofs: tuple[ProofView, ...]
    next: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Authorities:
    """Authorities of the config by name."""

    authorities: tuple[AuthorityView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """Runs of the daemon's process, the newest first."""

    runs: tuple[RunView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    """Lines of the journal, ascending; `next` is the `after` that goes on from here, also when nothing came yet."""

    events: tuple[EventView, ...]
    next: int


def generations(things: StateOfThings, certificate: str = "") -> Items[GenerationView]:
    """Yield every generation, or those of one certificate."""
    offered: dict[tuple[str, int], list[str]] = {}
    for (name, consumer), number in sorted(things.facts.offered.items()):
        offered.setdefault((name, number), []).append(consumer)
    for name, numbered in things.facts.generations.items():
        if certificate in {"", name}:
            for one in numbered:
                where = tuple(offered.get((name, one.number), ()))
                make = partial(_generation, one, one is numbered[-1], where, things)
                yield generation_key(name, one.number), make


def generation_key(certificate: str, number: int) -> str:
    """Return what a generation is sorted by."""
    return f"{certificate}@{number:09}"


def _generation(
    one: Generation, wanted: bool, offered_to: tuple[str, ...], things: StateOfThings
) -> GenerationView:
    return GenerationView(
        certificate=one.certificate,
        number=one.number,
        wanted=wanted,
        fingerprint=one.fingerprint,
        serial=one.serial,
        identifiers=tuple(sorted(map(str, one.identifiers))),
        key_type=one.key_type,
        authority=one.authority,
        not_before=one.not_before,
        not_after=one.not_after,
        issued_at=one.issued_at,
        copy_of=one.copy_of,
        revoked_at=things.facts.revoked.get((one.certificate, one.number)),
        offered_to=offered_to,
    )


def deployments(things: StateOfThings, certificate: str = "", consumer: str = "") -> Items[Deployment]:
    """Yield every deployment, or those of a certificate, on a consumer, or both."""
    for pair, found in _at(things.facts.deployments, certificate, consumer):
        for one in found:
            yield deployment_key(*pair, one.generation), partial(_itself, one)


def deployment_key(certificate: str, consumer: str, generation: int) -> str:
    """Return what a deployment is sorted by."""
    return f"{certificate}/{consumer}/{generation:09}"


def _itself(one: Deployment) -> Deployment:
    return one


def proofs(things: StateOfThings, certificate: str = "", consumer: str = "") -> Items[ProofView]:
    """Yield what was last seen at each endpoint, or at those of a certificate, on a consumer, or both."""
    for pair, found in _at(things.facts.proofs, certificate, consumer):
        for one in found:
            yield f"{'/'.join(pair)}/{one.endpoint.service} {one.endpoint}", partial(_proof, *pair, one)


def _at(
    known: Mapping[tuple[str, str], tuple[_T, ...]], certificate: str, consumer: str
) -> Iterator[tuple[tuple[str, str], tuple[_T, ...]]]:
    for pair, found in known.items():
        if certificate in {"", pair[0]} and consumer in {"", pair[1]}:
            yield pair, found


def _proof(certificate: str, consumer: str, one: Proof) -> ProofView:
    return ProofView(
        certificate=certificate,
        consumer=consumer,
        endpoint=one.endpoint,
        health=one.health,
        fingerprint=one.fingerprint,
        placeholder=one.placeholder,
        not_before=one.not_before,
        not_after=one.not_after,
        at=one.at,
        heard_at=one.heard_at,
        since=one.since,
        detail=one.detail,
    )


def ledger(things: StateOfThings, authority: str) -> Ledger:
    """Return the book of an authority of the config."""
    book = things.observed.ledgers.get(authority)
    limits = things.desired.authorities[authority].limits
    granted = ((budget, getattr(limits, budget)) for budget in Budget)
    return Ledger(
        authority=authority,
        granted=tuple(
            Granted(limit=name, count=one.count, window=one.window)
            for name, one in granted
            if one is not None
        ),
        used=tuple(map(LimitUsed.of, book.used(things.now))) if book else (),
        spent=tuple(map(_spend, things.facts.spends.get(authority, ()))),
    )


def _spend(one: Spend) -> SpendView:
    names = tuple(sorted(one.names))
    return SpendView(kind=one.kind, at=one.at, names=names, exempt=one.exempt, same_set=one.same_set)


def event(one: Event) -> EventView:
    """Return a line of the journal as we tell it."""
    return EventView(id=one.id, at=one.at, name=one.name, subject=one.subject, fields=log.redact(one.fields))
