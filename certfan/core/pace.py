"""When an authority that has fetched our tokens is asked again, and what: as its last orders went on.

What must never come in: how one waits, and what a fetch was.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta

from certfan.core.issuance import AuthorizationSeen, AuthorizationStatus, Issuance, OrderSeen, OrderStatus

# A CA validates from several places; ask once none of them has come for this long.
SHORTEST_QUIET, LONGEST_QUIET = timedelta(milliseconds=5), timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Pace:
    """How soon an authority has an order ready after its last fetch, learned from the first that each order saw of it."""

    quiet: timedelta = SHORTEST_QUIET
    is_prompt: bool = False  # the last order was ready after the quiet: the next may be finalized unlooked at

    def after(self, quiet: timedelta, *, ready: bool) -> Pace:
        """Return the pace once an order was found to be ready, or pending still, after that quiet.

        Orders that began at the same pace and fared alike change it once.
        """
        if ready:
            return Pace(max(min(self.quiet, quiet * 15 / 16), SHORTEST_QUIET), True)
        return Pace(min(max(self.quiet, quiet * 2), LONGEST_QUIET), False)


def presumed(
    issuance: Issuance,
    order: OrderSeen | None,
    authorizations: Mapping[str, AuthorizationSeen],
    fetched: Collection[str],
) -> OrderSeen | None:
    """Return a pending order as the ready one that it must be soon: each authorization valid, or answered and fetched.

    None when it must not be. An authority that is not as far refuses to finalize, which changes nothing, and is
    looked at then (RFC 8555 section 7.4); one that is has been spared a look. `fetched` are tokens.
    """
    if order is None or order.status is not OrderStatus.PENDING:
        return None
    seen = [authorizations.get(url) for url in order.authorizations]
    if all(one is not None and _is_done(issuance, one, fetched) for one in seen):
        return replace(order, status=OrderStatus.READY)
    return None


def _is_done(issuance: Issuance, seen: AuthorizationSeen, fetched: Collection[str]) -> bool:
    if seen.status is not AuthorizationStatus.PENDING:
        return seen.status is AuthorizationStatus.VALID
    return any(one.url in issuance.answered and one.token in fetched for one in seen.challenges)
