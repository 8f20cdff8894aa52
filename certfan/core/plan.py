"""The daemon's plan: what is desired and what was observed in, the steps that should happen next out.

The plan is a value and is never stored. It never says how a step is done.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from operator import itemgetter
from typing import TypeAlias

from certfan.core.model import Certificate, Desired, Generation, Reason
from certfan.core.orders import NEVER, orders
from certfan.core.policy import LONGEST_SHORT_WAIT, attempt_holds, holding_instants
from certfan.core.retirement import place_instants, place_waits, retirements
from certfan.core.steps import (
    AskCsr,
    AskRenewal,
    CheckPath,
    Clear,
    Forget,
    ForgetConsumer,
    Issue,
    Key,
    Observed,
    Offer,
    Plan,
    Publish,
    Retire,
    Revoke,
    RollAccountKey,
    RollBack,
    Step,
    TidyOrders,
    Where,
    Wish,
    Withdraw,
)
from certfan.core.upkeep import upkeep

__all__ = [
    "AskCsr",
    "AskRenewal",
    "CheckPath",
    "Clear",
    "Forget",
    "ForgetConsumer",
    "Issue",
    "Key",
    "Observed",
    "Offer",
    "Plan",
    "Publish",
    "Retire",
    "Revoke",
    "RollAccountKey",
    "RollBack",
    "Step",
    "TidyOrders",
    "Where",
    "Withdraw",
    "plan",
]

CHANNEL_AFTER = timedelta(seconds=60)  # a bundle that the share has not taken by then goes over the channel


def plan(desired: Desired, observed: Observed, now: datetime) -> Plan:
    """Return what should happen next, and the earliest instant at which that changes by itself."""
    targets = _targets(desired, observed, now)
    wishes: list[Wish] = [
        *_assignments(targets, desired, observed, now),
        *_publications(targets, observed, now),
        *_roll_backs(observed, now),
        *orders(desired, observed, now),
        *upkeep(desired, observed, now),
        *retirements(desired, observed, now),
    ]
    steps: dict[Key, Step] = {}
    for step in wishes:
        if not isinstance(step, datetime) and step.key not in observed.in_flight:
            steps.setdefault(step.key, step)
    ahead = (instant for instant in wishes if isinstance(instant, datetime) and instant > now)
    return Plan(tuple(steps.values()), min(ahead, default=None))


# Roll-backs


def _roll_backs(observed: Observed, now: datetime) -> Iterator[Wish]:
    """Wish for every older pair that somebody wants back; meanwhile nothing is ordered in its place."""
    for name, generation in sorted(observed.rolled_back.items()):
        attempt = observed.attempts.get(name)
        if not attempt_holds(attempt, now, LONGEST_SHORT_WAIT):
            yield RollBack(name, generation)
        if attempt is not None:
            yield from holding_instants(attempt.not_before, LONGEST_SHORT_WAIT)


# The share

Targets: TypeAlias = Mapping[Where, Generation | None]  # what belongs at each place that is wanted, in order


def _target(certificate: Certificate, where: Where, observed: Observed, now: datetime) -> Generation | None:
    """Return the generation that belongs at a consumer: the newest that is neither revoked nor expired.

    None also when something newer is there already: numbers only grow. A consumer that has none yet gets no
    name beyond those wanted. What another holder's key belongs to, or the daemon's own where a consumer is to have
    it alone, belongs nowhere.
    """
    generations = observed.generations.get(certificate.name)
    if not generations:
        return None
    has_one = max(observed.live.get(where, 0), observed.offered.get(where, 0))
    wanted = frozenset(certificate.identifiers)
    for newest in reversed(generations):
        if newest.holder != certificate.holder:
            continue
        is_revoked = (newest.certificate, newest.number) in observed.revoked
        if not is_revoked and now < newest.not_after and (has_one or newest.identifiers <= wanted):
            return newest if newest.number >= has_one else None
    return None


def _targets(desired: Desired, observed: Observed, now: datetime) -> Targets:
    return {
        where: _target(desired.certificates[where[0]], where, observed, now)
        for where in sorted(desired.pairs)
    }


def wanted_at(desired: Desired, observed: Observed, now: datetime) -> dict[Where, int]:
    """Return the generation that belongs at each place, where there is one."""
    found = _targets(desired, observed, now)
    return {where: generation.number for where, generation in found.items() if generation is not None}


def _is_published(generation: Generation, where: Where, observed: Observed) -> bool:
    """Whether the share shows a generation to a consumer: the folder complete, the pointer at it."""
    complete = generation.number in observed.published.get(where, frozenset())
    return complete and observed.live.get(where) == generation.number


def _publications(targets: Targets, observed: Observed, now: datetime) -> Iterator[Wish]:
    """Wish for every bundle that the share lacks, first where nothing or the oldest is served."""
    missing: list[tuple[datetime, Publish]] = []
    for where, target in targets.items():
        yield from (g.not_after for g in observed.generations.get(where[0], ()))
        yield from place_instants(where, observed)
        if target is None or _is_published(target, where, observed) or place_waits(where, observed, now):
            continue
        missing.append((_served_until(where, observed), Publish(*where, target.number)))
    if observed.share_up:
        yield from (publish for _, publish in sorted(missing, key=itemgetter(0)))


def _served_until(where: Where, observed: Observed) -> datetime:
    """Return when what a consumer was last offered expires."""
    offered = observed.offered.get(where, 0)
    generations = observed.generations.get(where[0], ())
    return next((g.not_after for g in generations if g.number == offered), NEVER)


# Assignments


def _assignments(targets: Targets, desired: Desired, observed: Observed, now: datetime) -> Iterator[Wish]:
    """Wish that consumers are assigned what is ready for them, and no more what left the config."""
    for where, target in targets.items():
        if target is not None:
            yield from (target.issued_at, target.issued_at + CHANNEL_AFTER)
        if target is not None and _is_ready(target, where, observed, now):
            if observed.offered.get(where) != target.number:
                yield Offer(*where, target.number)
        elif where not in observed.offered:
            yield Offer(*where, 0, reason=Reason.MISSING)
    yield from (Withdraw(*where) for where in sorted(observed.offered) if where not in desired.pairs)


def _is_ready(target: Generation, where: Where, observed: Observed, now: datetime) -> bool:
    """Whether a consumer can fetch it: from the share, or by the channel once the share has failed it for long."""
    if _is_published(target, where, observed):
        return True
    failing = not observed.share_up or "/".join(where) in observed.attempts
    return failing and not target.issued_at <= now < target.issued_at + CHANNEL_AFTER
