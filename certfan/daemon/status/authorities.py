"""The authority side of the page: how each of them stands, what is to be revoked and what that waits for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby

from certfan.core.ledger import Used
from certfan.core.model import Revocation
from certfan.core.orders import orders_in_flight, under_way
from certfan.core.subjects import revocation_subject, rollover_subject
from certfan.core.upkeep import silent_authorities, successors, without_successor
from certfan.daemon.status.model import AuthorityView, LimitUsed, PendingRevocation
from certfan.daemon.status.things import StateOfThings


def authority_views(things: StateOfThings) -> tuple[AuthorityView, ...]:
    """Return every authority of the config, by name."""
    desired, observed = things.desired, things.observed
    others = under_way(desired, observed, things.now)
    flying = Counter(where for _, where in orders_in_flight(others))
    silent = silent_authorities(desired, observed.attempts, observed.answered)
    found = []
    for name, authority in sorted(desired.authorities.items()):
        account = things.accounts.get(name)
        failed = observed.attempts.get(rollover_subject(name)) if name in observed.rollovers else None
        ledger = observed.ledgers.get(name)
        found.append(
            AuthorityView(
                name=name,
                directory=authority.directory,
                account=account.uri if account else None,
                silent=name in silent,
                new_key=name in observed.rollovers,
                orders=flying[name],
                limits=tuple(map(LimitUsed.of, _worth_telling(ledger.used(things.now) if ledger else ()))),
                problem=failed.problem if failed else None,
            )
        )
    return tuple(found)


def _worth_telling(used: Sequence[Used]) -> Iterator[Used]:
    """Yield what is most used of each kind, and what is half used up: one limit may count for thousands of names."""
    for _, group in groupby(used, key=lambda one: one.budget):
        rows = list(group)
        most = max(rows, key=_share)
        yield from (one for one in rows if one is most or _share(one) >= 1 / 2)


def _share(used: Used) -> float:
    return used.used / used.limit.count


def revocations(certificate: str, things: StateOfThings) -> tuple[PendingRevocation, ...]:
    """Return what is to be revoked of a certificate, in the config or not, by generation."""
    found = []
    for (name, number), wish in sorted(things.observed.revocations.items()):
        if name == certificate:
            failed = things.observed.attempts.get(revocation_subject(name, number))
            found.append(
                PendingRevocation(
                    generation=number,
                    reason=wish.reason.value,
                    at_once=wish.at_once,
                    asked_at=wish.asked_at,
                    waits_for="" if failed else _waits_for(name, number, wish, things),
                    problem=failed.problem if failed else None,
                )
            )
    return tuple(found)


def _waits_for(name: str, number: int, wish: Revocation, things: StateOfThings) -> str:
    if wish.at_once:
        return ""
    lacking = without_successor(name, number, things.desired, things.observed, things.now)
    if not lacking:
        return ""
    if not successors(name, number, things.observed):
        return "a successor with another key"
    return f"{', '.join(lacking)} to prove the successor"
