"""What an authority is asked beside orders: when to renew, to revoke, and what our account there needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta

from certfan.core.attempts import UNREACHABLE
from certfan.core.model import Attempt, Desired, Generation
from certfan.core.orders import orders_in_flight, under_way
from certfan.core.policy import (
    LONGEST_ORDER_WAIT,
    attempt_holds,
    holding_instants,
    proof_is_fresh,
)
from certfan.core.room import stands_still
from certfan.core.standing import awaits_key
from certfan.core.steps import GiveUpOrder, Observed, Revoke, RollAccountKey, TidyOrders, Wish
from certfan.core.subjects import (
    order_subject,
    revocation_subject,
    rollover_subject,
    tidy_subject,
)

SLIPS_LAST = timedelta(hours=1)  # so long an order waits for its certificate to come back into the config
LEFTOVER_LIFE = timedelta(days=7)  # a pending authorization ends by itself by then


def upkeep(desired: Desired, observed: Observed, now: datetime) -> Iterator[Wish]:
    """Wish for all that is due."""
    yield from _revocations(desired, observed, now)
    yield from _orphaned_orders(desired, observed, now)
    yield from _accounts(desired, observed, now)


# Revoking


def _revocations(desired: Desired, observed: Observed, now: datetime) -> Iterator[Wish]:
    for (name, number), wish in sorted(observed.revocations.items()):
        for generation in observed.generations.get(name, ()):
            if generation.number == number:
                yield generation.not_after
        if _has_expired(name, number, observed, now):
            yield Revoke(name, number, expired=True)
            continue
        attempt = observed.attempts.get(revocation_subject(name, number))
        if attempt is not None:
            yield from (wish.asked_at, *holding_instants(attempt.not_before, LONGEST_ORDER_WAIT))
        if attempt_holds(attempt, now, LONGEST_ORDER_WAIT, (wish.asked_at,)):
            continue
        for pair in _pairs(name, desired):
            for proof in observed.proofs.get(pair, ()):
                heard_at = proof.heard_at or proof.at
                yield from (heard_at - observed.probe_interval, heard_at + 2 * observed.probe_interval)
        if wish.at_once or is_succeeded(name, number, desired, observed, now):
            yield Revoke(name, number)


def _has_expired(name: str, number: int, observed: Observed, now: datetime) -> bool:
    known = observed.generations.get(name, ())
    return observed.clock_trusted and any(g.number == number and g.not_after <= now for g in known)


def is_succeeded(name: str, number: int, desired: Desired, observed: Observed, now: datetime) -> bool:
    """Whether every endpoint freshly proves a newer generation with another key; what left the config has none."""
    return not without_successor(name, number, desired, observed, now)


def without_successor(
    name: str, number: int, desired: Desired, observed: Observed, now: datetime
) -> tuple[str, ...]:
    """Return the consumers that do not freshly prove a newer generation with another key at every endpoint."""
    if all(g.number != number for g in observed.generations.get(name, ())):
        return ()  # it is forgotten, and with it what was served of it
    leaves = {g.fingerprint for g in successors(name, number, observed)}
    return tuple(
        pair[1]
        for pair in _pairs(name, desired)
        if not (
            (proofs := observed.proofs.get(pair, ()))
            and all(
                p.fingerprint in leaves and proof_is_fresh(p, now, observed.probe_interval) for p in proofs
            )
        )
    )


def successors(name: str, number: int, observed: Observed) -> tuple[Generation, ...]:
    """Return the newer generations that have neither the leaf nor the key of this one."""
    generations = observed.generations.get(name, ())
    old = next((g for g in generations if g.number == number), None)
    if old is None:
        return ()
    return tuple(
        g
        for g in generations
        if g.number > number and g.fingerprint != old.fingerprint and (not old.key or g.key != old.key)
    )


def _pairs(name: str, desired: Desired) -> list[tuple[str, str]]:
    return sorted(pair for pair in desired.pairs if pair[0] == name)


# Orders of what left the config


def _orphaned_orders(desired: Desired, observed: Observed, now: datetime) -> Iterator[Wish]:
    """Wish that they are given up: what they left pending at the authority is then tidied up."""
    for name, begun in sorted(observed.open_orders.items()):
        if name in desired.certificates:
            continue
        until = begun.begun_at + SLIPS_LAST
        yield from (begun.begun_at, until)
        if not begun.begun_at <= now < until:
            yield GiveUpOrder(name, begun.generation)


# Our account


def silent_authorities(
    desired: Desired, attempts: Mapping[str, Attempt], answered: Mapping[str, datetime]
) -> frozenset[str]:
    """Return the authorities that have not answered since an order failed for that."""
    if all(one.problem.code != UNREACHABLE for one in attempts.values()):
        return frozenset()
    found = set()
    for certificate in desired.certificates.values():
        for authority in (certificate.authority, *certificate.fallback):
            attempt = attempts.get(order_subject(certificate, authority))
            if attempt is None or attempt.problem.code != UNREACHABLE:
                continue
            if authority in desired.authorities and attempt.at >= answered.get(authority, attempt.at):
                found.add(authority)
    return frozenset(found)


def _accounts(desired: Desired, observed: Observed, now: datetime) -> Iterator[Wish]:
    wanted = sorted(observed.rollovers & desired.authorities.keys())
    flying = {
        authority
        for name, authority in (orders_in_flight(under_way(desired, observed, now)) if wanted else ())
        if not stands_still(name, observed, now)
    }
    for authority in wanted:
        attempt = observed.attempts.get(rollover_subject(authority))
        if attempt is not None:
            yield from holding_instants(attempt.not_before, LONGEST_ORDER_WAIT)
        # The challenges of an order that is under way are answered with the old key.
        if awaits_key(authority, observed, now) and authority not in flying:
            yield RollAccountKey(authority)
    for authority in sorted({one.authority for one in observed.leftovers} & desired.authorities.keys()):
        attempt = observed.attempts.get(tidy_subject(authority))
        if attempt is not None:
            yield from holding_instants(attempt.not_before, LONGEST_ORDER_WAIT)
        if not attempt_holds(attempt, now, LONGEST_ORDER_WAIT) and not awaits_key(authority, observed, now):
            yield TidyOrders(authority)
