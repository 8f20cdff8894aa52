"""Which of the orders that nothing holds up are begun now: the most urgent that each authority's caps and limits leave room for."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import datetime
from typing import NamedTuple

from certfan.core.ledger import Ledger
from certfan.core.looks import checked_identifiers, looks
from certfan.core.model import Desired, Identifier, Reason
from certfan.core.outlook import Outlook
from certfan.core.room import STANDING_STILL, Room
from certfan.core.standing import (
    PATH,
    bound_to,
    has_open_order,
    is_same_set,
    is_suggested,
    names_of,
    open_order_at,
    whom_to_ask,
    why,
)
from certfan.core.steps import Issue, Observed, Wish


def orders(
    known: Mapping[str, Outlook], due: Iterable[Issue], desired: Desired, observed: Observed, now: datetime
) -> Iterator[Wish]:
    """Wish for the looks and the most urgent orders that each authority's caps and limits leave room for.

    `due` are those that nothing holds up, the most urgent first.
    """
    wanted: set[str] = set()
    for name, outlook in known.items() if observed.self_check else ():
        found = outlook.standing
        if found is not None and (found.holding is None or found.holding.code == PATH):
            wanted.update(checked_identifiers(desired.certificates[name]))
    yield from (instant for at in observed.moved.values() for instant in (at, at + STANDING_STILL))
    yield from _begun(due, desired, observed, now)
    yield from looks(desired, observed, wanted, now)


# What is begun


def _begun(due: Iterable[Issue], desired: Desired, observed: Observed, now: datetime) -> Iterator[Wish]:
    others = tuple(under_way(desired, observed, now))
    room = Room(desired, observed, orders_in_flight(others), now)
    if not any(map(room.is_open, desired.authorities)):
        return  # mostly so
    ledgers = dict(_with_others(desired, observed, others))
    for issue in due:
        if (issue.certificate,) in observed.in_flight or not room.is_open(issue.authority):
            continue
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
        if not any(map(room.is_open, desired.authorities)):
            return


def orders_in_flight(others: Iterable[UnderWay]) -> frozenset[tuple[str, str]]:
    """Return certificate and authority of those that are being carried out."""
    return frozenset((one.certificate, one.authority) for one in others if one.in_flight)


class UnderWay(NamedTuple):  # made for every order in flight at every plan
    """An order that goes on somewhere, or may."""

    certificate: str
    authority: str
    identifiers: tuple[Identifier, ...]
    in_flight: bool
    is_sent: bool  # the authority has counted it, its certificate it has not
    exempt: bool


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
            yield UnderWay(
                name,
                begun.authority,
                begun.identifiers,
                in_flight=in_flight,
                is_sent=begun.order_url is not None,
                exempt=begun.exempt,
            )
        if in_flight and certificate is not None:
            authority = bound_to(certificate, desired, observed)
            if authority is None:
                renews = why(certificate, observed, now) is Reason.RENEWAL_DUE
                authority, _ = whom_to_ask(certificate, desired, observed, now, renews=renews)
            if not fits or begun is None or begun.authority != authority:
                exempt = is_suggested(name, authority, observed, now)
                yield UnderWay(
                    name, authority, certificate.identifiers, in_flight=True, is_sent=False, exempt=exempt
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
                expecting = spend(frozenset(map(str, one.identifiers)), exempt=one.exempt, same_set=same_set)
        yield authority, expecting
