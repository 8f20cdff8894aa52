"""The daemon's plan: what is desired and what was observed in, the steps that should happen next out.

The plan is a value and is never stored. It never says how a step is done.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from operator import itemgetter

from certfan.core.model import Desired
from certfan.core.orders import orders
from certfan.core.outlook import Outlook, Outlooks
from certfan.core.policy import LONGEST_SHORT_WAIT, attempt_holds, holding_instants
from certfan.core.retirement import retirements
from certfan.core.steps import (
    AskCsr,
    AskRenewal,
    CheckPath,
    Clear,
    Forget,
    ForgetConsumer,
    GiveUpOrder,
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
from certfan.core.targets import wanted_at
from certfan.core.upkeep import upkeep

__all__ = [
    "AskCsr",
    "AskRenewal",
    "CheckPath",
    "Clear",
    "Forget",
    "ForgetConsumer",
    "GiveUpOrder",
    "Issue",
    "Key",
    "Observed",
    "Offer",
    "Outlooks",
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
    "wanted_at",
]


def plan(desired: Desired, observed: Observed, now: datetime, outlooks: Outlooks | None = None) -> Plan:
    """Return what should happen next, and the earliest instant at which that changes by itself.

    `outlooks` may be what an earlier plan was made with: then only what has changed since is judged anew.
    """
    outlooks = outlooks if outlooks is not None else Outlooks()
    known = outlooks.of(desired, observed, now)
    wanting = outlooks.wanting.values()
    wishes: list[Wish] = [
        *(step for one in wanting for step in one.offers),
        *_withdrawals(desired, observed),
        *_publications(wanting, observed),
        *_roll_backs(observed, now),
        *(step for one in wanting for step in one.requests),
        *orders(known, outlooks.due, desired, observed, now),
        *(step for one in wanting for step in one.asks),
        *upkeep(desired, observed, now),
        *retirements(desired, observed, now),
        *((outlooks.until,) if outlooks.until is not None else ()),
    ]
    steps: dict[Key, Step] = {}
    for step in wishes:
        if not isinstance(step, datetime) and step.key not in observed.in_flight:
            steps.setdefault(step.key, step)
    ahead = (instant for instant in wishes if isinstance(instant, datetime) and instant > now)
    return Plan(tuple(steps.values()), min(ahead, default=None))


# The share


def _publications(known: Iterable[Outlook], observed: Observed) -> Iterator[Wish]:
    """Wish for every bundle that the share lacks, first where nothing or the oldest is served.

    Before the first look nobody knows what it lacks: everything would be published again at every start.
    """
    if observed.share_up and observed.share_seen:
        missing = [one for outlook in known for one in outlook.missing]
        yield from (publish for _, publish in sorted(missing, key=itemgetter(0)))


def _withdrawals(desired: Desired, observed: Observed) -> Iterator[Wish]:
    """Wish that consumers are assigned no more what left the config."""
    return (Withdraw(*where) for where in sorted(observed.offered.keys() - desired.pairs))


# Roll-backs


def _roll_backs(observed: Observed, now: datetime) -> Iterator[Wish]:
    """Wish for every older pair that somebody wants back; meanwhile nothing is ordered in its place."""
    for name, generation in sorted(observed.rolled_back.items()):
        attempt = observed.attempts.get(name)
        if not attempt_holds(attempt, now, LONGEST_SHORT_WAIT):
            yield RollBack(name, generation)
        if attempt is not None:
            yield from holding_instants(attempt.not_before, LONGEST_SHORT_WAIT)
