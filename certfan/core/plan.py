"""The daemon's plan: what is desired and what was observed in, the steps that should happen next out.

The plan is a value and is never stored. It never says how a step is done.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from operator import itemgetter

from certfan.core.model import Certificate, Desired, Generation, Reason
from certfan.core.policy import (
    LONGEST_ORDER_WAIT,
    LONGEST_SHORT_WAIT,
    attempt_holds,
    holding_instants,
    renewal_instant,
    why_issue,
)
from certfan.core.retirement import place_instants, place_waits, retirements
from certfan.core.steps import (
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
    RollBack,
    Step,
    Where,
    Wish,
    Withdraw,
)

__all__ = [
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
    "RollBack",
    "Step",
    "Where",
    "Withdraw",
    "plan",
]

NEVER = datetime.min.replace(tzinfo=UTC)
CHANNEL_AFTER = timedelta(seconds=60)  # a bundle that the share has not taken by then goes over the channel


def plan(desired: Desired, observed: Observed, now: datetime) -> Plan:
    """Return what should happen next, and the earliest instant at which that changes by itself."""
    wishes: list[Wish] = [
        *_assignments(desired, observed, now),
        *_publications(desired, observed, now),
        *_roll_backs(observed, now),
        *_orders(desired, observed, now),
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


# Orders


def _orders(desired: Desired, observed: Observed, now: datetime) -> Iterator[Wish]:
    """Wish for the most urgent orders that each authority's cap leaves room for."""
    due: list[Issue] = []
    for certificate in desired.certificates.values():
        yield from _order_instants(certificate, observed)
        if (reason := _why(certificate, observed, now)) is not None:
            due.append(Issue(certificate.name, reason))
    room = _room(desired, observed)
    for issue in sorted(due, key=lambda issue: _order_urgency(issue, observed)):
        authority = desired.certificates[issue.certificate].authority
        if room.get(authority, 0) > 0:
            room[authority] -= 1
            yield issue


def _why(certificate: Certificate, observed: Observed, now: datetime) -> Reason | None:
    """Return why to order now; None while one is on its way, nothing is wanted, or it is not yet time."""
    name = certificate.name
    attempt = observed.attempts.get(name)
    lifts = (observed.asked.get(name), observed.config_changed.get(name), _answered(certificate, observed))
    if (name,) in observed.in_flight or name in observed.rolled_back:
        return None
    if attempt_holds(attempt, now, LONGEST_ORDER_WAIT, lifts):
        return None
    reason = why_issue(
        certificate,
        observed.generations.get(name, ()),
        now,
        asked_at=observed.asked.get(name),
        revoked=observed.revoked,
        renewal=observed.renewals.get(name),
        clock_trusted=observed.clock_trusted,
    )
    # An order that is open is finished: giving it up would cost another one.
    return reason or (Reason.ASKED_FOR if _has_open_order(certificate, observed) else None)


def _answered(certificate: Certificate, observed: Observed) -> datetime | None:
    """Return since when the authority answers again, if that it did not is what holds the order."""
    attempt = observed.attempts.get(certificate.name)
    unreachable = attempt is not None and attempt.problem.code == "authority.unreachable"
    return observed.answered.get(certificate.authority) if unreachable else None


def _has_open_order(certificate: Certificate, observed: Observed) -> bool:
    """Whether an order for exactly the wanted names is open, that has not become a generation."""
    order = observed.open_orders.get(certificate.name)
    if order is None or frozenset(order.identifiers) != frozenset(certificate.identifiers):
        return False
    return all(g.number < order.generation for g in observed.generations.get(certificate.name, ()))


def _room(desired: Desired, observed: Observed) -> dict[str, int]:
    """Return how many more orders each authority may have at once."""
    room = {name: authority.orders_at_once for name, authority in desired.authorities.items()}
    for name in {key[0] for key in observed.in_flight if len(key) == 1}:
        source = desired.certificates.get(name) or observed.open_orders.get(name)
        if source is not None and source.authority in room:
            room[source.authority] -= 1
    return room


def _order_urgency(issue: Issue, observed: Observed) -> tuple[bool, datetime, str]:
    """Open orders first, then what expires first; nothing issued yet is as urgent as long expired."""
    newest = max((g.not_after for g in observed.generations.get(issue.certificate, ())), default=NEVER)
    return issue.certificate not in observed.open_orders, newest, issue.certificate


def _order_instants(certificate: Certificate, observed: Observed) -> Iterator[datetime]:
    name = certificate.name
    generations = observed.generations.get(name, ())
    if generations and observed.clock_trusted:
        yield renewal_instant(generations[-1], observed.renewals.get(name))
    if (attempt := observed.attempts.get(name)) is not None:
        yield from holding_instants(attempt.not_before, LONGEST_ORDER_WAIT)
    yield from (at for facts in (observed.asked, observed.config_changed) if (at := facts.get(name)))
    if (answered := _answered(certificate, observed)) is not None:
        yield answered


# The share


def _target(certificate: Certificate, where: Where, observed: Observed, now: datetime) -> Generation | None:
    """Return the generation that belongs at a consumer: the newest that is neither revoked nor expired.

    None also when something newer is there already: numbers only grow. A consumer that has none yet gets no
    name beyond those wanted.
    """
    has_one = max(observed.live.get(where, 0), observed.offered.get(where, 0))
    wanted = frozenset(certificate.identifiers)
    usable = (
        g
        for g in observed.generations.get(certificate.name, ())
        if (g.certificate, g.number) not in observed.revoked
        and now < g.not_after
        and (has_one or g.identifiers <= wanted)
    )
    newest = max(usable, key=lambda g: g.number, default=None)
    return newest if newest is not None and newest.number >= has_one else None


def _is_published(generation: Generation, where: Where, observed: Observed) -> bool:
    """Whether the share shows a generation to a consumer: the folder complete, the pointer at it."""
    complete = generation.number in observed.published.get(where, frozenset())
    return complete and observed.live.get(where) == generation.number


def _publications(desired: Desired, observed: Observed, now: datetime) -> Iterator[Wish]:
    """Wish for every bundle that the share lacks, first where nothing or the oldest is served."""
    missing: list[tuple[datetime, Publish]] = []
    for where in sorted(desired.pairs):
        certificate = desired.certificates[where[0]]
        yield from (g.not_after for g in observed.generations.get(certificate.name, ()))
        yield from place_instants(where, observed)
        target = _target(certificate, where, observed, now)
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


def _assignments(desired: Desired, observed: Observed, now: datetime) -> Iterator[Wish]:
    """Wish that consumers are assigned what is ready for them, and no more what left the config."""
    for where in sorted(desired.pairs):
        target = _target(desired.certificates[where[0]], where, observed, now)
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
