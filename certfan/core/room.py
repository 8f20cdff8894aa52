"""How many orders each authority may have at once, so that one that stands still, or fails, delays no other.

An order takes a place at its authority from newOrder until it is issued. Twice as many again are begun: while
they make their keys ready, or fetch and keep what was issued, others have the places.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from datetime import datetime, timedelta

from certfan.core.model import Certificate, Desired, Identifier
from certfan.core.steps import Observed
from certfan.core.subjects import order_subject

STANDING_STILL = timedelta(
    seconds=5
)  # without an answer that changed anything; validations take one to three
MOST_STANDING = 4  # times orders_at_once
BEGUN = 3  # times orders_at_once


class Room:
    """How many more may be begun; orders that failed before may fill half of the places.

    An order that stands still counts no more, as all that it costs is a look now and then. Known limit: beyond
    `MOST_STANDING` times `orders_at_once` they count again, for at most as long as an order is waited for.

    There is no room for a second order for the same names: an authority may answer it with the first one (RFC 8555
    section 7.4 does not forbid that, and Boulder does so), and only one of two keys would be certified.
    """

    def __init__(
        self, desired: Desired, observed: Observed, flying: Collection[tuple[str, str]], now: datetime
    ) -> None:
        """Count the orders that are in flight, `flying`: certificate and authority."""
        self._observed = observed
        most = {name: authority.orders_at_once for name, authority in desired.authorities.items()}
        self._free = {name: BEGUN * places for name, places in most.items()}
        self._for_troubled = {name: max(places // 2, 1) for name, places in most.items()}
        self._names: set[tuple[str, frozenset[Identifier]]] = set()
        may_stand = {name: MOST_STANDING * places for name, places in most.items()}
        for name, authority in flying:
            if authority not in self._free:
                continue
            certificate, begun = desired.certificates.get(name), observed.open_orders.get(name)
            if certificate is not None:
                self._names.add((authority, frozenset(certificate.identifiers)))
            if begun is not None and (certificate is None or begun.identifiers != certificate.identifiers):
                self._names.add((authority, frozenset(begun.identifiers)))
            if may_stand[authority] > 0 and stands_still(name, observed, now):
                may_stand[authority] -= 1
                continue
            self._take(
                authority, troubled=certificate is not None and self._is_troubled(certificate, authority)
            )

    def is_open(self, authority: str) -> bool:
        """Whether any order at all may be begun there."""
        return self._free.get(authority, 0) > 0

    def has(self, certificate: Certificate, authority: str) -> bool:
        """Whether an order for a certificate may be begun there."""
        if (authority, frozenset(certificate.identifiers)) in self._names:
            return False
        troubled = self._is_troubled(certificate, authority)
        return self.is_open(authority) and (not troubled or self._for_troubled[authority] > 0)

    def take(self, certificate: Certificate, authority: str) -> None:
        """Count it as begun."""
        self._names.add((authority, frozenset(certificate.identifiers)))
        self._take(authority, troubled=self._is_troubled(certificate, authority))

    def _is_troubled(self, certificate: Certificate, authority: str) -> bool:
        return has_failed(certificate, authority, self._observed)

    def _take(self, authority: str, *, troubled: bool) -> None:
        self._free[authority] -= 1
        self._for_troubled[authority] -= troubled


def stands_still(name: str, observed: Observed, now: datetime) -> bool:
    """Whether the order under way for a certificate waits for its authority, for longer than is usual."""
    return is_still(observed.moved.get(name), now)


def is_still(moved_at: datetime | None, now: datetime) -> bool:
    """Whether an order that last got further then waits for its authority, for longer than is usual."""
    return moved_at is not None and not moved_at <= now < moved_at + STANDING_STILL


def free_places(orders_at_once: int, moved: Iterable[datetime | None], now: datetime) -> int:
    """Return how many more orders may go to an authority, beside those there, which last got further then."""
    still = [is_still(at, now) for at in moved]
    return orders_at_once - len(still) + min(sum(still), MOST_STANDING * orders_at_once)


def outdated(desired: Desired, observed: Observed, now: datetime) -> Iterator[str]:
    """Return the certificates whose order under way stands still, and is not what the config asks for any more."""
    for name, begun in sorted(observed.open_orders.items()):
        if (name,) not in observed.in_flight or not stands_still(name, observed, now):
            continue
        wanted = desired.certificates.get(name)
        if (
            wanted is None
            or frozenset(begun.identifiers) != frozenset(wanted.identifiers)
            or begun.authority not in {wanted.authority, *wanted.fallback}
        ):
            yield name


def has_failed(certificate: Certificate, authority: str, observed: Observed) -> bool:
    """Whether the last try to order it there has failed."""
    return order_subject(certificate, authority) in observed.attempts
