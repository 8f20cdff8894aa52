"""What the daemon is about to do, and why: its own plan, with what follows from it, as a pure function.

The plan itself says only the next step of each thing. An order that succeeds is published, installed and loaded: that is
said here too, so that an admin sees where a change of the config ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from datetime import datetime

from certfan.core.model import Certificate, Desired, Reason
from certfan.core.plan import Issue, Publish, Step, plan, wanted_at
from certfan.core.policy import LONGEST_SHORT_WAIT, attempt_holds, renewal_instant
from certfan.core.standing import Holding, standing
from certfan.daemon.status.model import Verdict
from certfan.daemon.status.rows import newest, rows_of, step_name
from certfan.daemon.status.things import StateOfThings

MOST_UPCOMING = 5
_LOADED_SOON = frozenset({Reason.MISSING, Reason.NOT_PUBLISHED, Reason.NOT_DEPLOYED, Reason.NOT_SERVED})


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedOrder:
    """A certificate that is to be ordered; `held` is what it waits for."""

    certificate: str
    identifiers: tuple[str, ...]
    authority: str
    reason: str
    held: Holding | None
    under_way: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedPublication:
    """A bundle that the share is to show; `generation` None: the one that is to be ordered."""

    certificate: str
    consumer: str
    generation: int | None
    held: Holding | None
    under_way: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedReload:
    """Services that are to load new pairs; none are known of a consumer that has reported no endpoint."""

    consumer: str
    certificates: tuple[str, ...]
    services: tuple[str, ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStep:
    """Any other step of the plan."""

    step: str
    subject: str
    reason: str
    under_way: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Upcoming:
    """A renewal that is due by itself."""

    certificate: str
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigDifference:
    """What another config has beside the one in force."""

    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    consumers_added: tuple[str, ...]
    consumers_removed: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanView:
    """All of it; `difference` only for a config that is not in force."""

    now: datetime
    difference: ConfigDifference | None
    orders: tuple[PlannedOrder, ...]
    publications: tuple[PlannedPublication, ...]
    reloads: tuple[PlannedReload, ...]
    steps: tuple[PlannedStep, ...]
    upcoming: tuple[Upcoming, ...]
    wake_at: datetime | None


def planned(things: StateOfThings, other: Desired | None = None) -> PlanView:
    """Return what is about to be done, or what would be with another config; the same things give the same view."""
    difference = _difference(things.desired, other) if other is not None else None
    if other is not None and difference is not None:
        # As when the config is taken: what changed frees one try.
        freed = dict.fromkeys((*difference.added, *difference.changed), things.now)
        observed = replace(things.observed, config_changed={**things.observed.config_changed, **freed})
        things = replace(things, desired=other, observed=observed)
    found = plan(things.desired, things.observed, things.now)
    orders = tuple(_orders(things))
    ordered = {one.certificate: one for one in orders}
    return PlanView(
        now=things.now,
        difference=difference,
        orders=orders,
        publications=tuple(_publications(things, ordered)),
        reloads=tuple(_reloads(things, ordered)),
        steps=tuple(_steps(things, found.steps)),
        upcoming=tuple(sorted(_upcoming(things, ordered), key=lambda one: one.at)[:MOST_UPCOMING]),
        wake_at=found.wake_at,
    )


def _difference(before: Desired, after: Desired) -> ConfigDifference:
    old, new = before.certificates, after.certificates
    both = old.keys() & new.keys()
    return ConfigDifference(
        added=tuple(sorted(new.keys() - old.keys())),
        changed=tuple(sorted(name for name in both if old[name] != new[name])),
        removed=tuple(sorted(old.keys() - new.keys())),
        consumers_added=tuple(sorted(after.consumers.keys() - before.consumers.keys())),
        consumers_removed=tuple(sorted(before.consumers.keys() - after.consumers.keys())),
    )


def _orders(things: StateOfThings) -> Iterator[PlannedOrder]:
    for name, certificate in sorted(things.desired.certificates.items()):
        stands = standing(certificate, things.desired, things.observed, things.now)
        if stands is not None:
            under_way = (name,) in things.observed.in_flight
            yield PlannedOrder(
                certificate=name,
                identifiers=tuple(map(str, certificate.identifiers)),
                authority=stands.authority,
                reason=stands.reason,
                held=None if under_way else stands.holding,
                under_way=under_way,
            )


def _publications(things: StateOfThings, ordered: dict[str, PlannedOrder]) -> Iterator[PlannedPublication]:
    observed = things.observed
    wanted = wanted_at(things.desired, observed, things.now)
    for where in sorted(things.desired.pairs):
        certificate, consumer = where
        number = None if certificate in ordered else wanted.get(where)
        is_there = number in observed.published.get(where, ()) and observed.live.get(where) == number
        if is_there or (number is None and certificate not in ordered):
            continue
        yield PlannedPublication(
            certificate=certificate,
            consumer=consumer,
            generation=number,
            held=_share_holds(certificate, consumer, things),
            under_way=where in observed.in_flight,
        )


def _share_holds(certificate: str, consumer: str, things: StateOfThings) -> Holding | None:
    if (down := things.share_problem) is not None:
        return Holding(down.code, down.detail, down.not_before, down.hint)
    attempt = things.observed.attempts.get(f"{certificate}/{consumer}")
    if attempt is None or not attempt_holds(attempt, things.now, LONGEST_SHORT_WAIT):
        return None
    return Holding(attempt.problem.code, attempt.problem.detail, attempt.not_before, attempt.problem.hint)


def _reloads(things: StateOfThings, ordered: dict[str, PlannedOrder]) -> Iterator[PlannedReload]:
    for consumer in sorted(things.desired.consumers):
        certificates: dict[str, str] = {}
        services: set[str] = set()
        for name, certificate in sorted(things.desired.certificates.items()):
            if consumer in certificate.consumers and (
                why := _why_load(certificate, consumer, things, ordered)
            ):
                certificates[name] = why
                proofs = things.facts.proofs.get((name, consumer), ())
                services |= {proof.endpoint.service for proof in proofs}
        if certificates:
            yield PlannedReload(
                consumer=consumer,
                certificates=tuple(certificates),
                services=tuple(sorted(services)),
                reasons=tuple(sorted(set(certificates.values()))),
            )


def _why_load(
    certificate: Certificate, consumer: str, things: StateOfThings, ordered: dict[str, PlannedOrder]
) -> str | None:
    if certificate.name in ordered:
        return ordered[certificate.name].reason
    rows = rows_of(certificate.name, consumer, things)
    reasons = [row.reason for row in rows if row.verdict is not Verdict.PROVEN]
    return next((str(reason) for reason in reasons if reason in _LOADED_SOON), None)


def _steps(things: StateOfThings, steps: tuple[Step, ...]) -> Iterator[PlannedStep]:
    begun = ((step, True) for step in things.in_flight.values())
    for step, under_way in (*begun, *((step, False) for step in steps)):
        if not isinstance(step, Issue | Publish):
            yield PlannedStep(
                step=step_name(step), subject=_subject(step), reason=step.reason, under_way=under_way
            )


def _subject(step: Step) -> str:
    """Return what a step is about: `www.example.org@7 web1`."""
    told = {one.name: getattr(step, one.name) for one in fields(step)}
    number = told.get("generation")
    certificate = told.get("certificate")
    name = f"{certificate}@{number}" if certificate and number else certificate
    others = (told.get(key) for key in ("consumer", "identifier", "authority"))
    return " ".join(str(part) for part in (name, *others) if part)


def _upcoming(things: StateOfThings, ordered: dict[str, PlannedOrder]) -> Iterator[Upcoming]:
    for name in things.desired.certificates:
        generation = newest(name, things)
        if generation is not None and name not in ordered:
            instant = renewal_instant(generation, things.observed.renewals.get(name))
            yield Upcoming(certificate=name, at=instant)
