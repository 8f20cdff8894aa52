"""Which certificates are to be ordered, where, and what holds an order up: one answer for the plan and the status."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

from certfan.core.attempts import UNREACHABLE
from certfan.core.custody import fits, lost_since
from certfan.core.issuance import Issuance
from certfan.core.keys import unwanted
from certfan.core.ledger import Held
from certfan.core.looks import checked_identifiers, is_fresh
from certfan.core.model import Attempt, Certificate, Desired, Problem, Reason
from certfan.core.policy import (
    LONGEST_ORDER_WAIT,
    ORDER_DELAYS,
    attempt_holds,
    holding_instants,
    leafs_deadline,
    why_issue,
)
from certfan.core.steps import Observed, RollAccountKey
from certfan.core.subjects import order_subject, rollover_subject


@dataclass(frozen=True, slots=True)
class Holding:
    """What holds an order up; `until` None: until somebody has done something."""

    code: str
    why: str
    until: datetime | None = None
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Standing:
    """A certificate that is to be ordered: why, at which authority, and what holds it up."""

    reason: Reason
    authority: str
    holding: Holding | None
    exempt: bool = field(default=False, kw_only=True)  # the authority itself suggested to renew now
    instead_of: Problem | None = field(default=None, kw_only=True)  # why not the config's authority


def standing(
    certificate: Certificate, desired: Desired, observed: Observed, now: datetime
) -> Standing | None:
    """Return how a certificate stands; None when nothing is to be ordered for it."""
    name = certificate.name
    reason = why(certificate, observed, now)
    if reason is None or name in observed.rolled_back:
        return None
    renews = reason is Reason.RENEWAL_DUE
    authority, attempt = whom_to_ask(certificate, desired, observed, now, renews=renews)
    is_exempt = renews and is_suggested(name, authority, observed, now)
    holding = (
        _held_by_attempt(attempt)
        or _held_by_account(authority, observed, now)
        or (None if is_exempt else _held_by_ledger(certificate, authority, observed, now))
        or _held_by_holder(certificate, observed)
        or _held_by_path(certificate, authority, observed, now)
    )
    instead_of = None
    if authority != certificate.authority:
        if (first := observed.attempts.get(name)) is not None:
            instead_of = first.problem
        elif limit := _held_by_ledger(certificate, certificate.authority, observed, now):
            instead_of = Problem(limit.code, limit.why, limit.hint, limit.until)
    return Standing(reason, authority, holding, exempt=is_exempt, instead_of=instead_of)


def why(certificate: Certificate, observed: Observed, now: datetime) -> Reason | None:
    """Return why to order, if ever it were possible."""
    name = certificate.name
    generations = observed.generations.get(name, ())
    ended: set[tuple[str, int]] = set()
    if observed.revoked or observed.revocations:
        named = ((g.certificate, g.number) for g in generations)
        ended = {one for one in named if one in observed.revoked or one in observed.revocations}
    reason = why_issue(
        certificate,
        generations,
        now,
        asked_at=observed.asked.get(name),
        revoked=unwanted(generations, ended),
        renewal=observed.renewals.get(name),
        clock_trusted=observed.clock_trusted,
        key_lost=is_key_lost(name, observed, now),
    )
    # An order that is open is finished: giving it up would cost another one.
    return reason or (Reason.ASKED_FOR if has_open_order(certificate, observed) else None)


def is_key_lost(name: str, observed: Observed, now: datetime) -> bool:
    """Whether the newest generation is to be replaced because its holder has lost the key."""
    since = lost_since(observed.generations.get(name, ()), observed.lost_keys.get(name))
    return since is not None and since <= now


def has_open_order(certificate: Certificate, observed: Observed) -> bool:
    """Whether an order for exactly the wanted names is open, that has not become a generation."""
    order = observed.open_orders.get(certificate.name)
    if order is None:
        return False
    ordered, wanted = order.identifiers, certificate.identifiers
    if ordered != wanted and frozenset(ordered) != frozenset(wanted):  # mostly they are in the same order too
        return False
    generations = observed.generations.get(certificate.name)
    return not generations or all(g.number < order.generation for g in generations)


def open_order_at(authority: str, certificate: Certificate, observed: Observed) -> Issuance | None:
    """Return the order that goes on at an authority; any other is given up there, and a new one begun."""
    order = observed.open_orders.get(certificate.name)
    if order is None or order.authority != authority or order.order_url is None:
        return None
    return order if has_open_order(certificate, observed) else None


# Where


def whom_to_ask(
    certificate: Certificate, desired: Desired, observed: Observed, now: datetime, *, renews: bool
) -> tuple[str, Attempt | None]:
    """Return whom to ask, and the failed attempt that still forbids it.

    It is the first of the certificate's authorities that may be asked now; a fallback only after all before it
    have failed for long, or are held by a limit for as long. An order that is open goes on where it is.
    """
    held: list[tuple[str, Attempt]] = []
    limited: list[str] = []
    for name in _authorities(certificate, desired, observed):
        attempt = observed.attempts.get(order_subject(certificate, name))
        if attempt is not None:
            freed = lifts(certificate, name, attempt, observed)
            if attempt_holds(attempt, now, LONGEST_ORDER_WAIT, freed):
                held.append((name, attempt))
                if now < fallback_instant(certificate, attempt, observed):
                    break
                continue
        is_exempt = renews and is_suggested(certificate.name, name, observed, now)
        limit = None if is_exempt else limit_at(name, certificate, observed, now)
        if limit is None or limit.until <= _leave_at(certificate, now, observed):
            return name, None
        limited.append(name)
    return (limited[0], None) if limited else min(held, key=lambda one: one[1].not_before)


def _authorities(certificate: Certificate, desired: Desired, observed: Observed) -> list[str]:
    bound = bound_to(certificate, desired, observed)
    return [bound] if bound is not None else _known(certificate, desired)


def _known(certificate: Certificate, desired: Desired) -> list[str]:
    return [certificate.authority, *(a for a in certificate.fallback if a in desired.authorities)]


def bound_to(certificate: Certificate, desired: Desired, observed: Observed) -> str | None:
    """Return the authority at which an open order goes on, so that no other is asked; None: it is bound to none."""
    begun = observed.open_orders.get(certificate.name)
    if begun is None or not has_open_order(certificate, observed):
        return None
    # Only when it may be asked: an order that is stuck there holds up no other authority.
    if order_subject(certificate, begun.authority) in observed.attempts:
        return None
    return begun.authority if begun.authority in _known(certificate, desired) else None


def fallback_instant(certificate: Certificate, attempt: Attempt, observed: Observed) -> datetime:
    """Return from when on the next authority may be asked: earlier than configured when the deadline is near."""
    return _leave_at(
        certificate, min(attempt.since or attempt.at, attempt.at), observed
    )  # clocks are set back


def _leave_at(certificate: Certificate, since: datetime, observed: Observed) -> datetime:
    """Return how long an authority that has been of no use `since` then is waited for."""
    instant = since + certificate.fallback_after
    generations = observed.generations.get(certificate.name, ())
    if generations:
        deadline = leafs_deadline(generations[-1].not_before, generations[-1].not_after)
        instant = min(instant, max(since, since + (deadline - since) / 2))
    return instant


def limit_instants(certificate: Certificate, observed: Observed, now: datetime) -> Iterator[datetime]:
    """Tell when a limit ends, and when it ends so soon that the next authority need not be asked."""
    for authority in (certificate.authority, *certificate.fallback) if certificate.fallback else ():
        if limit := limit_at(authority, certificate, observed, now):
            yield from (limit.until, limit.until - certificate.fallback_after)
            for newest in observed.generations.get(certificate.name, ())[-1:]:
                yield limit.until - (leafs_deadline(newest.not_before, newest.not_after) - limit.until)


def lifts(
    certificate: Certificate, authority: str, attempt: Attempt, observed: Observed
) -> tuple[datetime | None, ...]:
    """Return what may have freed an attempt: somebody asked, the config changed, or its cause went away."""
    name = certificate.name
    code = attempt.problem.code
    # A path that comes and goes (one broken machine of several) must not wear the authority out: from the daily
    # step on only somebody's word frees a try.
    is_early = attempt.failures < len(ORDER_DELAYS)
    return (
        observed.asked.get(name),
        observed.config_changed.get(name),
        observed.answered.get(authority) if code == UNREACHABLE else None,
        _mended_at(certificate, observed) if code == "challenge.failed" and is_early else None,
    )


def _mended_at(certificate: Certificate, observed: Observed) -> datetime | None:
    checks = (observed.checks.get(i) for i in checked_identifiers(certificate))
    return max((c.mended_at for c in checks if c is not None and c.mended_at is not None), default=None)


# What holds it up

PATH, LIMIT, CSR = "challenge.self_check_failed", "authority.limit", "custody.waits_for_csr"


def _held_by_attempt(attempt: Attempt | None) -> Holding | None:
    if attempt is None:
        return None
    return Holding(attempt.problem.code, attempt.problem.detail, attempt.not_before, attempt.problem.hint)


def awaits_key(authority: str, observed: Observed, now: datetime) -> bool:
    """Whether our account there gets a new key now; one that it would not take holds up nothing until its next try."""
    if RollAccountKey(authority).key in observed.in_flight:
        return True
    attempt = observed.attempts.get(rollover_subject(authority))
    return authority in observed.rollovers and not attempt_holds(attempt, now, LONGEST_ORDER_WAIT)


def key_instants(authority: str, observed: Observed) -> Iterator[datetime]:
    """Tell when `awaits_key` can change its answer."""
    attempt = observed.attempts.get(rollover_subject(authority)) if authority in observed.rollovers else None
    if attempt is not None:
        yield from holding_instants(attempt.not_before, LONGEST_ORDER_WAIT)


def _held_by_account(authority: str, observed: Observed, now: datetime) -> Holding | None:
    if not awaits_key(authority, observed, now):
        return None
    return Holding("authority.account", f"the account at {authority} gets a new key first")


def limit_at(authority: str, certificate: Certificate, observed: Observed, now: datetime) -> Held | None:
    """Return what was spent of an authority's limits, and until when that holds an order of a certificate there."""
    ledger = observed.ledgers.get(authority)
    # An open one is among what was spent.
    if ledger is None or open_order_at(authority, certificate, observed):
        return None
    same_set = is_same_set(certificate, authority, observed)
    return ledger.held(names_of(certificate), now, same_set=same_set)


def _held_by_ledger(
    certificate: Certificate, authority: str, observed: Observed, now: datetime
) -> Holding | None:
    held = limit_at(authority, certificate, observed, now)
    if held is None:
        return None
    hint = f"it waits by itself; fewer orders, or another authority for {certificate.name}, help sooner"
    return Holding(LIMIT, f"{authority}: {held.why}", held.until, hint)


def _held_by_holder(certificate: Certificate, observed: Observed) -> Holding | None:
    """Return that the consumer that alone is to have the key has not sent its request yet."""
    name, holder = certificate.name, certificate.holder
    if not holder:
        return None
    request = observed.signing_requests.get(name)
    if request is not None and fits(request, certificate, observed.generations.get(name, ())):
        if request.csr is not None:
            return None
        if request.problem is not None:
            why = f"the CSR of {holder} was refused: {request.problem.detail}"
            return Holding(CSR, why, hint=request.problem.hint)
    return Holding(
        CSR, f"waits for the CSR of {holder}", hint=f"run on {holder}: journalctl -u certfan-agent"
    )


def _held_by_path(
    certificate: Certificate, authority: str, observed: Observed, now: datetime
) -> Holding | None:
    """Return what our own look at the way of the challenge says; a challenge that was answered needs none."""
    if not observed.self_check:
        return None
    begun = open_order_at(authority, certificate, observed)
    if begun is not None and begun.answered:
        return None
    for identifier in checked_identifiers(certificate):
        check = observed.checks.get(identifier)
        if check is None or not is_fresh(check, now):
            return Holding(PATH, f"our own check of {identifier} comes first")
        if check.problem is not None:
            return Holding(PATH, check.problem.detail, hint=check.problem.hint)
    return None


def names_of(certificate: Certificate) -> frozenset[str]:
    """Return the identifiers as the ledger counts them."""
    return frozenset(map(str, certificate.identifiers))


def is_same_set(certificate: Certificate, authority: str, observed: Observed) -> bool:
    """Whether the authority has issued for exactly these identifiers before, so that it counts less."""
    wanted = frozenset(certificate.identifiers)
    generations = observed.generations.get(certificate.name, ())
    return any(g.authority == authority and g.identifiers == wanted for g in generations)


def is_suggested(name: str, authority: str, observed: Observed, now: datetime) -> bool:
    """Whether the authority that issued it has now inside its window, which frees the order from its limits."""
    info, generations = observed.renewals.get(name), observed.generations.get(name, ())
    if info is None or not generations or generations[-1].authority != authority:
        return False
    return info.number == generations[-1].number and info.start <= now < info.end
