"""Which of the orders that nothing holds up are begun now: the most urgent that each authority's caps and limits leave room for."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

from certfan.core.custody import fits, lost_since
from certfan.core.ledger import Ledger
from certfan.core.looks import checked_identifiers, looks
from certfan.core.model import Certificate, Desired, Generation, Reason
from certfan.core.policy import LONGEST_ORDER_WAIT, holding_instants, renewal_instant
from certfan.core.retirement import place_instants, place_waits
from certfan.core.room import STANDING_STILL, Room, has_failed
from certfan.core.standing import (
    PATH,
    fallback_instant,
    has_open_order,
    is_same_set,
    is_suggested,
    lifts,
    names_of,
    open_order_at,
    standing,
    whom_to_ask,
)
from certfan.core.steps import AskCsr, Issue, Observed, Wish
from certfan.core.subjects import order_subject

NEVER = datetime.min.replace(tzinfo=UTC)


def orders(desired: Desired, observed: Observed, now: datetime) -> Iterator[Wish]:
    """Wish for the looks and the most urgent orders that each authority's caps and limits leave room for."""
    due: list[Issue] = []
    wanted: set[str] = set()
    for certificate in desired.certificates.values():
        yield from _order_instants(certificate, desired, observed)
        found = standing(certificate, desired, observed, now)
        if found is None:
            continue
        if found.holding is not None and found.holding.until is not None:
            yield found.holding.until
        yield from _asked_of_holder(certificate, found.reason, observed, now)
        if observed.self_check and (found.holding is None or found.holding.code == PATH):
            wanted.update(checked_identifiers(certificate))
        if found.holding is None and (certificate.name,) not in observed.in_flight:
            due.append(Issue(certificate.name, found.reason, found.authority, exempt=found.exempt))
    yield from (instant for at in observed.moved.values() for instant in (at, at + STANDING_STILL))
    yield from _begun(due, desired, observed, now)
    yield from looks(desired, observed, wanted, now)


def _asked_of_holder(
    certificate: Certificate, reason: Reason, observed: Observed, now: datetime
) -> Iterator[Wish]:
    """Wish for the request of a consumer that makes its own keys, early: whatever holds the order up takes longer."""
    name, where = certificate.name, (certificate.name, certificate.holder)
    known = observed.signing_requests.get(name)
    if certificate.holder and not fits(known, certificate, observed.generations.get(name, ())):
        yield from place_instants(where, observed)
        if not place_waits(where, observed, now):
            yield AskCsr(*where, reason)


# What is begun


def _begun(due: list[Issue], desired: Desired, observed: Observed, now: datetime) -> Iterator[Wish]:
    others = tuple(under_way(desired, observed, now))
    room = Room(desired, observed, orders_in_flight(others), now)
    ledgers = dict(_with_others(desired, observed, others))
    for issue in sorted(due, key=lambda issue: _order_urgency(issue, desired, observed)):
        certificate = desired.certificates[issue.certificate]
        ledger = ledgers.get(issue.authority)
        if not room.has(certificate, issue.authority):
            continue
        if ledger is not None and open_order_at(issue.authority, certificate, observed) is None:
            names, same_set = names_of(certificate), is_same_set(certificate, issue.authority, observed)
            if held := ledger.held(names, now, exempt=issue.exempt, same_set=same_set):
                yield held.until  # others under way use the last of it up; earlier only when one of them ends
                continue
            ledgers[issue.authority] = ledger.with_order(names, exempt=issue.exempt, same_set=same_set)
        room.take(certificate, issue.authority)
        yield issue


def orders_in_flight(others: Iterable[UnderWay]) -> frozenset[tuple[str, str]]:
    """Return certificate and authority of those that are being carried out."""
    return frozenset((one.certificate, one.authority) for one in others if one.in_flight)


@dataclass(frozen=True, slots=True)
class UnderWay:
    """An order that goes on somewhere, or may."""

    certificate: str
    authority: str
    names: frozenset[str]
    in_flight: bool = field(kw_only=True)
    is_sent: bool = field(kw_only=True)  # the authority has counted it, its certificate it has not
    exempt: bool = field(kw_only=True)


def under_way(desired: Desired, observed: Observed, now: datetime) -> Iterator[UnderWay]:
    """Yield every order in flight, also before its first record, and those that only wait.

    One in flight that is not what would be begun now may end as what it was for, or be given up for another: it is both.
    """
    flying = {key[0] for key in observed.in_flight if len(key) == 1}
    for name in sorted({*observed.open_orders, *flying}):
        certificate, begun = desired.certificates.get(name), observed.open_orders.get(name)
        in_flight = name in flying
        fits = certificate is not None and has_open_order(certificate, observed)
        if begun is not None and (in_flight or (fits and begun.order_url is not None)):
            names, is_sent = frozenset(map(str, begun.identifiers)), begun.order_url is not None
            yield UnderWay(
                name, begun.authority, names, in_flight=in_flight, is_sent=is_sent, exempt=begun.exempt
            )
        if in_flight and certificate is not None:
            authority, _ = whom_to_ask(certificate, desired, observed, now)
            if not fits or begun is None or begun.authority != authority:
                exempt = is_suggested(name, authority, observed, now)
                yield UnderWay(
                    name, authority, names_of(certificate), in_flight=True, is_sent=False, exempt=exempt
                )


def _with_others(
    desired: Desired, observed: Observed, others: Collection[UnderWay]
) -> Iterator[tuple[str, Ledger]]:
    """Add what the orders under way will be counted for."""
    for authority, ledger in observed.ledgers.items():
        expecting = ledger
        for one in others:
            certificate = desired.certificates.get(one.certificate)
            if one.authority == authority:
                spend = expecting.with_open_order if one.is_sent else expecting.with_order
                same_set = certificate is not None and is_same_set(certificate, authority, observed)
                expecting = spend(one.names, exempt=one.exempt, same_set=same_set)
        yield authority, expecting


def _order_urgency(issue: Issue, desired: Desired, observed: Observed) -> tuple[bool, bool, datetime, str]:
    """What has failed before comes last, so that it delays nobody; then open orders first, then what expires first.

    Nothing issued yet, or all of it revoked, is as urgent as long expired.
    """
    name = issue.certificate
    generations = observed.generations.get(name, ())
    usable = (g.not_after for g in generations if (name, g.number) not in observed.revoked)
    is_troubled = has_failed(desired.certificates[name], issue.authority, observed)
    return is_troubled, name not in observed.open_orders, max(usable, default=NEVER), name


# When an answer may be another one


def _order_instants(certificate: Certificate, desired: Desired, observed: Observed) -> Iterator[datetime]:
    name = certificate.name
    generations: tuple[Generation, ...] = observed.generations.get(name, ())
    info = observed.renewals.get(name)
    if generations and observed.clock_trusted:
        yield renewal_instant(generations[-1], info)
    if info is not None:
        yield from (info.start, info.end)
    if (since := lost_since(generations, observed.lost_keys.get(name))) is not None:
        yield since
    for authority in (certificate.authority, *certificate.fallback):
        attempt = observed.attempts.get(order_subject(certificate, authority))
        if attempt is not None:
            yield from holding_instants(attempt.not_before, LONGEST_ORDER_WAIT)
            yield fallback_instant(certificate, attempt, observed)
            yield from (at for at in lifts(certificate, authority, attempt, observed) if at)
    yield from (at for facts in (observed.asked, observed.config_changed) if (at := facts.get(name)))
