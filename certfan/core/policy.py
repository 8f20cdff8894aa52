"""Small rules, one question each: why issue, when to renew, when to try again, by when an endpoint must agree.

What must never come in: dice. A jitter is a number in [0, 1) that the caller drew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from certfan.core.model import Attempt, Certificate, Generation, Health, Proof, Reason, RenewalInfo

SHORT_LIVED = timedelta(days=10)
DAY = timedelta(days=1)
# Let's Encrypt asks for 1, 10, 100 minutes, then daily.
ORDER_DELAYS = (timedelta(minutes=1), timedelta(minutes=10), timedelta(minutes=100), DAY)
APPLY_DELAYS = (timedelta(minutes=1), timedelta(minutes=10), timedelta(hours=1))
REPAIR_DELAYS = (timedelta(seconds=10), timedelta(minutes=1), timedelta(minutes=10), timedelta(hours=1))
ASK_DELAYS = (*ORDER_DELAYS[:3], timedelta(hours=6))
# Nothing was spent at the authority, so the cause alone decides.
UNREACHABLE_DELAYS = tuple(timedelta(seconds=s) for s in (5, 15, 60, 300))
# A config test or a privileged half that fails spends nothing; whoever mends it should not have to wait.
MENDED_LOOK = timedelta(seconds=25)
SHORT_DELAYS = tuple(timedelta(seconds=s) for s in (1, 2, 4, 8, 15))
JITTER = 0.1  # of the delay, on top of it
LONGEST_ORDER_WAIT = DAY * (1 + JITTER)
LONGEST_SHORT_WAIT = SHORT_DELAYS[-1] * (1 + JITTER)
LONGEST_ASK_WAIT = DAY
LONGEST_APPLY_WAIT = APPLY_DELAYS[-1] * (1 + JITTER)
NOTHING_SERVED_FOR = timedelta(hours=1)


class IssueFacts(NamedTuple):  # made for every certificate at every plan, four times as fast as a dataclass
    """What the checks look at; `newest` is the newest generation of the certificate."""

    certificate: Certificate
    newest: Generation
    now: datetime
    asked_at: datetime | None
    revoked: bool
    renewal: RenewalInfo | None
    clock_trusted: bool
    key_lost: bool


def is_asked(asked_at: datetime | None, since: datetime, now: datetime) -> bool:
    """Whether somebody asked after `since`. A request from the future waits: counted now, it would never be met."""
    return asked_at is not None and since < asked_at <= now


def _asked_for(facts: IssueFacts) -> Reason | None:
    return Reason.ASKED_FOR if is_asked(facts.asked_at, facts.newest.issued_at, facts.now) else None


def _names_changed(facts: IssueFacts) -> Reason | None:
    same = facts.newest.identifiers == frozenset(facts.certificate.identifiers)
    return None if same else Reason.NAMES_CHANGED


def _key_type_changed(facts: IssueFacts) -> Reason | None:
    return None if facts.newest.key_type == facts.certificate.key_type else Reason.KEY_TYPE_CHANGED


def _custody_changed(facts: IssueFacts) -> Reason | None:
    """A key goes nowhere else: another holder of keys, or none, needs another key."""
    return None if facts.newest.holder == facts.certificate.holder else Reason.CUSTODY_CHANGED


def _key_lost(facts: IssueFacts) -> Reason | None:
    return Reason.KEY_LOST if facts.key_lost else None


def _revoked(facts: IssueFacts) -> Reason | None:
    return Reason.REVOKED if facts.revoked else None


def _renewal_due(facts: IssueFacts) -> Reason | None:
    due = facts.clock_trusted and renewal_instant(facts.newest, facts.renewal) <= facts.now
    return Reason.RENEWAL_DUE if due else None


CHECKS: tuple[Callable[[IssueFacts], Reason | None], ...] = (
    _revoked,
    _names_changed,
    _key_type_changed,
    _custody_changed,
    _key_lost,
    _asked_for,
    _renewal_due,
)


def why_issue(
    certificate: Certificate,
    generations: Sequence[Generation],
    now: datetime,
    *,
    asked_at: datetime | None = None,
    revoked: frozenset[tuple[str, int]] = frozenset(),
    renewal: RenewalInfo | None = None,
    clock_trusted: bool = True,
    key_lost: bool = False,
) -> Reason | None:
    """Return why a new generation is wanted, or None. `generations` ascend; only the newest is judged.

    A clock that is not trusted starts no renewal; what does not depend on time goes on.
    """
    if not generations:
        return Reason.MISSING
    newest = generations[-1]
    is_revoked = (newest.certificate, newest.number) in revoked
    facts = IssueFacts(certificate, newest, now, asked_at, is_revoked, renewal, clock_trusted, key_lost)
    return next((reason for check in CHECKS if (reason := check(facts)) is not None), None)


def renewal_instant(generation: Generation, renewal: RenewalInfo | None) -> datetime:
    """Return when to renew: the ARI instant, else at 2/3 of the lifetime, 1/2 when that is below 10 days.

    A window that ends before it starts is no answer (RFC 9773), nor is one after the end. A stored instant outside what its rule can
    produce counts as now, which `not_before` stands for. A pair that was rolled back to keeps half of the time
    that it had left then, as far as the deadline allows: it is due early, and ordering at once would undo the
    roll-back.
    """
    instant = _leafs_renewal(generation, renewal)
    if generation.copy_of is None:
        return instant
    half = generation.issued_at + (generation.not_after - generation.issued_at) / 2
    return max(instant, min(half, leafs_deadline(generation.not_before, generation.not_after)))


def _leafs_renewal(generation: Generation, renewal: RenewalInfo | None) -> datetime:
    lifetime = generation.not_after - generation.not_before
    fallback = generation.not_before + lifetime * (1 / 2 if lifetime < SHORT_LIVED else 2 / 3)
    if renewal is None or renewal.number != generation.number or renewal.end <= renewal.start:
        return fallback
    if renewal.chosen > renewal.end:
        return generation.not_before
    return renewal.chosen if renewal.chosen <= generation.not_after else fallback


def next_try(
    failures: int,
    at: datetime,
    *,
    jitter: float,
    not_before: datetime | None = None,
    deadline: datetime | None = None,
) -> datetime:
    """Return when an order may be tried again after its `failures`-th failure in a row, at `at`.

    1 min, 10 min, 100 min, then daily, up to a tenth later. The authority's Retry-After (`not_before`) is
    obeyed up to a day. A deadline that the daily step would miss holds it at 100 min.
    """
    delay = _delay(ORDER_DELAYS, failures, jitter)
    if deadline is not None and at + delay > deadline:
        delay = min(delay, _delay(ORDER_DELAYS[:3], failures, jitter))
    return _no_sooner(at + delay, at, not_before)


def next_unreachable_try(before: timedelta | None, at: datetime, *, jitter: float) -> datetime:
    """Return when an authority that did not answer may be asked again: 5 s, 15 s, 1 min, then every 5 min.

    `before` is how long was waited after the silence before; None when this is the first in a row.
    """
    longer = (n for n, d in enumerate(UNREACHABLE_DELAYS, start=1) if before is None or d > before)
    return at + _delay(UNREACHABLE_DELAYS, next(longer, len(UNREACHABLE_DELAYS)), jitter)


def next_ask(failures: int, at: datetime, *, jitter: float, not_before: datetime | None = None) -> datetime:
    """Return when an authority may be asked again when to renew: 1, 10, 100 min, then every 6 h (RFC 9773 section 4.3.3).

    Its Retry-After (`not_before`) is obeyed up to a day.
    """
    return _no_sooner(at + _delay(ASK_DELAYS, failures, jitter), at, not_before)


def next_short_try(failures: int, at: datetime, *, jitter: float) -> datetime:
    """Return when a step at the share or a consumer may be tried again: 1 s, doubling up to 15 s."""
    return at + _delay(SHORT_DELAYS, failures, jitter)


def next_apply(failures: int, at: datetime, *, jitter: float = 0.0) -> datetime:
    """Return when a generation that failed on a consumer may be tried again: 1 min, 10 min, then hourly."""
    return at + _delay(APPLY_DELAYS, failures, jitter)


def next_repair(repairs: int, at: datetime, *, jitter: float = 0.0) -> datetime:
    """Return when a reload that did nothing is repeated: 10 s, 1 min, 10 min, then hourly."""
    return at + _delay(REPAIR_DELAYS, repairs, jitter)


def next_look(at: datetime, *, jitter: float = 0.0) -> datetime:
    """Return when something may be tried again that only its mending can help: within 30 s, however often it failed."""
    return at + MENDED_LOOK * (1 + JITTER * jitter)


def _no_sooner(instant: datetime, at: datetime, not_before: datetime | None) -> datetime:
    return instant if not_before is None else max(instant, min(not_before, at + DAY))


def _delay(delays: Sequence[timedelta], failures: int, jitter: float) -> timedelta:
    return delays[min(max(failures, 1), len(delays)) - 1] * (1 + JITTER * jitter)


def holds(not_before: datetime | None, now: datetime, longest: timedelta) -> bool:
    """Whether a stored instant still forbids a try. One further ahead than `longest` counts as now."""
    return not_before is not None and now < not_before <= now + longest


def attempt_holds(
    attempt: Attempt | None, now: datetime, longest: timedelta, lifts: Iterable[datetime | None] = ()
) -> bool:
    """Whether a failed attempt forbids the next one. What changed after it (`lifts`) frees one try."""
    if attempt is None or any(is_asked(lift, attempt.at, now) for lift in lifts):
        return False
    return holds(attempt.not_before, now, longest)


def holding_instants(not_before: datetime | None, longest: timedelta) -> tuple[datetime, ...]:
    """Return the instants at which `holds` can change its answer."""
    return () if not_before is None else (not_before - longest, not_before)


def endpoint_deadline(
    proof: Proof | None, now: datetime, *, missing_since: datetime | None = None
) -> datetime:
    """Return by when an endpoint must serve the wanted leaf.

    `proof` is the last one that showed a leaf of ours: its notAfter less a tenth of its lifetime, at least
    12 h and at most 7 d. With a placeholder, a foreign or no leaf there (proof None, not served or a
    placeholder) it is an hour after `missing_since`, which defaults to now.
    """
    if proof is None or proof.health is not Health.SERVED or proof.placeholder or proof.not_after is None:
        return (missing_since or now) + NOTHING_SERVED_FOR
    return leafs_deadline(proof.not_before, proof.not_after)


def leafs_deadline(not_before: datetime | None, not_after: datetime) -> datetime:
    """Return by when a leaf must be replaced: a tenth of its lifetime before its end, 12 h at least and 7 d at most."""
    lifetime = not_after - not_before if not_before is not None else timedelta(0)
    return not_after - min(max(lifetime / 10, timedelta(hours=12)), timedelta(days=7))


class Urgency(StrEnum):
    """How near the deadline of an endpoint is that does not serve the wanted leaf; each with its own log level."""

    CALM = "calm"  # info
    NEAR = "near"  # warning: half of the time is gone
    PRESSING = "pressing"  # error: the last tenth
    MISSED = "missed"  # error

    @property
    def rank(self) -> int:
        """Its place among them; as a text it would sort by letters."""
        return list(Urgency).index(self)


def urgency(since: datetime, deadline: datetime, now: datetime) -> Urgency:
    """Return how urgent it is that what is wrong `since` ends by its deadline.

    A window that was empty from the start is pressing until it is missed.
    """
    if now >= deadline:
        return Urgency.MISSED
    window, left = deadline - since, deadline - now
    if left <= window / 10 or window <= timedelta(0):
        return Urgency.PRESSING
    return Urgency.NEAR if left <= window / 2 else Urgency.CALM


def proof_is_fresh(proof: Proof, now: datetime, interval: timedelta) -> bool:
    """Whether a proof still says something: heard less than two probe intervals ago, and not in the future."""
    heard_at = proof.heard_at or proof.at
    return heard_at - interval <= now < heard_at + 2 * interval
