"""What the rules say of one certificate by itself, and for how long.

Caps, limits that others use up, and whatever concerns more than one certificate is not judged here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from certfan.core.custody import fits, lost_since
from certfan.core.ledger import Ledger
from certfan.core.looks import fresh_instants
from certfan.core.model import Certificate, Desired, Generation, Reason
from certfan.core.policy import (
    JITTER,
    LONGEST_ASK_WAIT,
    LONGEST_ORDER_WAIT,
    attempt_holds,
    holding_instants,
    renewal_instant,
)
from certfan.core.queue import Due, Queue
from certfan.core.renewal import LATEST_ASK, USUAL_ASK
from certfan.core.retirement import place_instants, place_waits
from certfan.core.room import has_failed
from certfan.core.standing import Standing, fallback_instant, key_instants, lifts, limit_instants, standing
from certfan.core.steps import AskCsr, AskRenewal, Issue, Observed, Offer, Publish, Step, Where, Wish
from certfan.core.subjects import order_subject, renewal_subject
from certfan.core.targets import NEVER, Targets, is_published, served_until, targets

ALWAYS = datetime.max.replace(tzinfo=UTC)
CHANNEL_AFTER = timedelta(seconds=60)  # a bundle that the share has not taken by then goes over the channel
LONGEST_UNTIL_ASKED = LATEST_ASK * (1 + JITTER)


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a certificate wants, if nothing else stood in its way; `until`: when that may change by itself."""

    standing: Standing | None
    due: Due | None  # its order, unless something holds it up
    offers: tuple[Step, ...]
    missing: tuple[tuple[datetime, Publish], ...]  # on the share; before them until when something is served
    requests: tuple[Step, ...]
    asks: tuple[Step, ...]
    until: datetime | None

    @property
    def wants(self) -> bool:
        """Whether it wants anything beside its order."""
        return bool(self.offers or self.missing or self.requests or self.asks)


def outlook(certificate: Certificate, desired: Desired, observed: Observed, now: datetime) -> Outlook:
    """Apply every rule that looks at one certificate alone."""
    places = targets(certificate, observed, now)
    found = standing(certificate, desired, observed, now)
    offers = list(_assignments(places, observed, now))
    missing = [
        (served_until(where, observed), Publish(*where, target.number))
        for where, target in (places.items() if observed.share_up else ())
        if target is not None
        and not is_published(target, where, observed)
        and not place_waits(where, observed, now)
    ]
    requests: list[Wish] = []
    if found is not None and certificate.holder:
        requests += _asked_of_holder(certificate, found.reason, observed, now)
    asks = list(_asks(certificate.name, desired, observed, now))
    wishes = (*offers, *requests, *asks, *_instants(certificate, places, found, observed, now))
    ahead = [wish for wish in wishes if isinstance(wish, datetime) and wish > now]
    return Outlook(
        found,
        _due(certificate, found, observed),
        _steps(offers),
        tuple(missing),
        _steps(requests),
        _steps(asks),
        min(ahead, default=None),
    )


def _steps(wishes: list[Wish]) -> tuple[Step, ...]:
    return tuple([wish for wish in wishes if not isinstance(wish, datetime)]) if wishes else ()


# Kept from plan to plan


class Outlooks:
    """The outlook of every certificate, judged anew only where a fact has changed or its time has come.

    With a thousand certificates a plan would else take some ten milliseconds, and one follows every step.
    """

    def __init__(self) -> None:
        self._shared: tuple[object, ...] = ()
        self._own: tuple[Mapping[Any, object], ...] = ()
        self._ledgers: Mapping[str, Ledger] = {}
        self._judged_at = NEVER
        self._outlooks: dict[str, Outlook] = {}
        self._until: dict[str, datetime] = {}
        self._soonest = ALWAYS
        self._wanting: dict[str, Outlook] = {}
        self._queue = Queue()

    @property
    def wanting(self) -> Mapping[str, Outlook]:
        """Those that want anything beside their order, in the order of the config: few of many."""
        return self._wanting

    @property
    def due(self) -> Iterable[Issue]:
        """The orders that nothing holds up, the most urgent first."""
        return self._queue

    @property
    def until(self) -> datetime | None:
        """When the first of them may change by itself."""
        return None if self._soonest == ALWAYS else self._soonest

    def of(self, desired: Desired, observed: Observed, now: datetime) -> Mapping[str, Outlook]:
        """Return the outlook of each certificate that is desired; it stays so until the next call.

        Of an order in flight nothing is looked at: what it would be without is not begun before it has landed.
        """
        landed = {
            name: order for name, order in observed.open_orders.items() if (name,) not in observed.in_flight
        }
        observed = replace(observed, open_orders=landed)
        shared, own = _shared_facts(desired, observed), _own_facts(observed)
        is_same = shared == self._shared and now >= self._judged_at  # else clocks were set back
        self._shared = ()  # whoever fails midway judges all of them anew
        if is_same:
            stale = _changed(self._own, own)
            stale.update(self._held_otherwise(desired, observed.ledgers))
            if self._soonest <= now:
                stale.update(name for name, until in self._until.items() if until <= now)
            self._judge(stale & self._outlooks.keys(), desired, observed, now)
        else:
            self._outlooks, self._until, self._soonest = {}, {}, ALWAYS
            self._wanting, self._queue = {}, Queue()
            self._judge(desired.certificates, desired, observed, now)
        self._shared, self._own, self._ledgers, self._judged_at = shared, own, dict(observed.ledgers), now
        return self._outlooks

    def _judge(self, names: Collection[str], desired: Desired, observed: Observed, now: datetime) -> None:
        more = False
        for name in names:
            before = self._outlooks.get(name)
            found = outlook(desired.certificates[name], desired, observed, now)
            self._queue.replace(before.due if before is not None else None, found.due)
            self._outlooks[name], self._until[name] = found, found.until or ALWAYS
            if found.wants:
                more |= name not in self._wanting
                self._wanting[name] = found
            else:
                self._wanting.pop(name, None)
        if more:  # each to its place
            self._wanting = {name: self._wanting[name] for name in self._outlooks if name in self._wanting}
        if names:
            self._soonest = min(self._until.values())

    def _held_otherwise(self, desired: Desired, ledgers: Mapping[str, Ledger]) -> Iterator[str]:
        """Tell the certificates that wait for an order which what was spent since may hold up."""
        spent = {
            name for name in {*ledgers, *self._ledgers} if ledgers.get(name) is not self._ledgers.get(name)
        }
        for name, outlook in self._outlooks.items() if spent else ():
            certificate = desired.certificates[name]
            if outlook.standing is not None and not spent.isdisjoint(
                (certificate.authority, *certificate.fallback)
            ):
                yield name


def _shared_facts(desired: Desired, observed: Observed) -> tuple[object, ...]:
    """Return whatever may change the outlook of any certificate; what does not concern one is not among it."""
    return (
        desired,
        observed.revoked,
        observed.revocations,
        observed.attempts,
        observed.answered,
        observed.checks,
        observed.rollovers,
        observed.self_check,
        observed.clock_trusted,
        observed.share_up,
        frozenset(key for key in observed.in_flight if key[0] == "account"),
    )


def _own_facts(observed: Observed) -> tuple[Mapping[Any, object], ...]:
    """Return what concerns one certificate alone, by its name, and by its name and a consumer."""
    return (
        observed.generations,
        observed.asked,
        observed.config_changed,
        observed.renewals,
        observed.open_orders,
        observed.rolled_back,
        observed.lost_keys,
        observed.signing_requests,
        observed.offered,
        observed.published,
        observed.live,
    )


def _changed(before: tuple[Mapping[Any, object], ...], after: tuple[Mapping[Any, object], ...]) -> set[str]:
    """Return the certificates of which any fact is another one."""
    keys: set[Any] = set()
    for old, new in zip(before, after, strict=True):
        if old is not new and old != new:
            keys.update([key for key, fact in new.items() if old.get(key) != fact])
            keys.update(old.keys() - new.keys())
    return {key if isinstance(key, str) else key[0] for key in keys}


# Assignments


def _assignments(targets: Targets, observed: Observed, now: datetime) -> Iterator[Wish]:
    """Wish that consumers are assigned what is ready for them."""
    for where, target in targets.items():
        if target is not None:
            yield from (target.issued_at, target.issued_at + CHANNEL_AFTER)
        if target is not None and _is_ready(target, where, observed, now):
            if observed.offered.get(where) != target.number:
                yield Offer(*where, target.number)
        elif where not in observed.offered:
            yield Offer(*where, 0, reason=Reason.MISSING)


def _is_ready(target: Generation, where: Where, observed: Observed, now: datetime) -> bool:
    """Whether a consumer can fetch it: from the share, or by the channel once the share has failed it for long."""
    if is_published(target, where, observed):
        return True
    failing = not observed.share_up or "/".join(where) in observed.attempts
    return failing and not target.issued_at <= now < target.issued_at + CHANNEL_AFTER


# Orders


def _due(certificate: Certificate, found: Standing | None, observed: Observed) -> Due | None:
    """Return the order that nothing holds up. Nothing issued yet, or all of it revoked, is as urgent as long expired."""
    if found is None or found.holding is not None:
        return None
    name = certificate.name
    generations = observed.generations.get(name, ())
    usable = (g.not_after for g in generations if (name, g.number) not in observed.revoked)
    is_troubled = has_failed(certificate, found.authority, observed)
    priority = is_troubled, name not in observed.open_orders, max(usable, default=NEVER), name
    return priority, Issue(name, found.reason, found.authority, exempt=found.exempt)


def _asked_of_holder(
    certificate: Certificate, reason: Reason, observed: Observed, now: datetime
) -> Iterator[Wish]:
    """Wish for the request of a consumer that makes its own keys, early: whatever holds the order up takes longer."""
    name, where = certificate.name, (certificate.name, certificate.holder)
    known = observed.signing_requests.get(name)
    if not fits(known, certificate, observed.generations.get(name, ())):
        yield from place_instants(where, observed)
        if not place_waits(where, observed, now):
            yield AskCsr(*where, reason)


# When to renew (RFC 9773)


def _asks(name: str, desired: Desired, observed: Observed, now: datetime) -> Iterator[Wish]:
    """Wish to ask the authority when to renew (RFC 9773)."""
    generations = observed.generations.get(name, ())
    if not generations or generations[-1].authority not in desired.authorities:
        return
    newest = generations[-1]
    yield newest.not_after
    attempt = observed.attempts.get(renewal_subject(name))
    if attempt is not None:
        yield from holding_instants(attempt.not_before, LONGEST_ASK_WAIT)
    due = _ask_at(newest, observed)
    yield from (due, due - LONGEST_UNTIL_ASKED)
    is_due = due <= now or due > now + LONGEST_UNTIL_ASKED
    if is_due and now < newest.not_after and not attempt_holds(attempt, now, LONGEST_ASK_WAIT):
        yield AskRenewal(name, newest.number)


def _ask_at(newest: Generation, observed: Observed) -> datetime:
    """Return when to ask about a generation: for the first time a while after it was issued, as nothing can be new."""
    info = observed.renewals.get(newest.certificate)
    if info is not None and info.number == newest.number:
        return info.ask_again_at
    return newest.issued_at + min(USUAL_ASK, (newest.not_after - newest.not_before) / 10)


# When an answer may be another one


def _instants(
    certificate: Certificate, targets: Targets, found: Standing | None, observed: Observed, now: datetime
) -> Iterator[datetime]:
    if targets:
        yield from (generation.not_after for generation in observed.generations.get(certificate.name, ()))
    for where in targets:
        yield from place_instants(where, observed)
    if found is not None:
        if observed.self_check:
            yield from fresh_instants(certificate, observed)
        yield from key_instants(found.authority, observed)
        yield from limit_instants(certificate, observed, now)
        if found.holding is not None and found.holding.until is not None:
            yield found.holding.until
    yield from _order_instants(certificate, observed)


def _order_instants(certificate: Certificate, observed: Observed) -> Iterator[datetime]:
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
    for facts in (observed.asked, observed.config_changed):
        if (at := facts.get(name)) is not None:
            yield at
