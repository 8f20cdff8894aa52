"""What may be removed: generations that something newer has replaced, and orphans, which left the config.

Of an orphan nothing goes before it has expired or somebody said to forget it.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from certfan.core.model import Desired, Reason
from certfan.core.policy import LONGEST_SHORT_WAIT, attempt_holds, holding_instants, proof_is_fresh
from certfan.core.steps import Clear, Forget, ForgetConsumer, Observed, Retire, Step, Where, Wish
from certfan.core.subjects import consumer_subject

KEEP_TIME = timedelta(days=7)
ALWAYS_KEPT = 2  # generations at a place


def retirements(desired: Desired, observed: Observed, now: datetime) -> Iterator[Wish]:
    """Wish that no key is kept longer than needed: first off the share, the oldest first, then here."""
    if not observed.share_up:
        return
    for where in sorted(_where_something_may_go(desired, observed)):
        yield from place_instants(where, observed)
        yield from _retirement_instants(where, observed)
        if place_waits(where, observed, now):
            continue
        if where in desired.pairs:
            step = _superseded(where, observed, now)
        else:
            is_forgotten = where[0] in observed.forgotten - desired.certificates.keys()
            step = _orphaned(where, observed, now, is_forgotten=is_forgotten)
        if step is not None:
            yield step
    if observed.share_seen:
        yield from _forgotten_certificates(desired, observed, now)
        yield from _forgotten_consumers(desired, observed, now)


def _on_the_share(observed: Observed) -> frozenset[Where]:
    return frozenset([*observed.live, *[where for where, numbers in observed.published.items() if numbers]])


def _where_something_may_go(desired: Desired, observed: Observed) -> Iterator[Where]:
    """Leave out where nothing can become superseded by itself: nearly everywhere."""
    for where in _on_the_share(observed):
        few = len(observed.published.get(where, ())) <= ALWAYS_KEPT
        if not few or where not in desired.pairs or where in observed.outdated:
            yield where


def place_waits(where: Where, observed: Observed, now: datetime) -> bool:
    """Whether a failure at one place of the share forbids the next try."""
    attempt = observed.attempts.get("/".join(where))
    return attempt_holds(attempt, now, LONGEST_SHORT_WAIT, (observed.config_changed.get(where[0]),))


def place_instants(where: Where, observed: Observed) -> Iterator[datetime]:
    """Tell when `place_waits` can change its answer."""
    if (attempt := observed.attempts.get("/".join(where))) is not None:
        yield from holding_instants(attempt.not_before, LONGEST_SHORT_WAIT)
    if (changed := observed.config_changed.get(where[0])) is not None:
        yield changed


# What is still wanted


def _superseded(where: Where, observed: Observed, now: datetime) -> Step | None:
    # Its key is sealed to what the consumer has no more, or lies open though its custody has become `sealed`.
    for number, bundle in sorted(observed.outdated.get(where, ())):
        return Retire(*where, number, bundle=bundle)
    if not observed.clock_trusted:
        return None
    numbers = sorted(observed.published.get(where, ()))
    old = (
        n
        for n in numbers[:-ALWAYS_KEPT]
        if n != observed.live.get(where) and _is_superseded(n, where, observed, now)
    )
    return next((Retire(*where, number) for number in old), None)


def _is_superseded(number: int, where: Where, observed: Observed, now: datetime) -> bool:
    """Whether every endpoint freshly proves a newer one that is older than the keep time."""
    proofs = observed.proofs.get(where, ())
    generations = observed.generations.get(where[0], ())
    newer = {g.fingerprint for g in generations if g.number > number and g.issued_at + KEEP_TIME <= now}
    # A roll-back's copy shows the same leaf, so its proofs do not tell which of both is in use.
    newer -= {g.fingerprint for g in generations if g.number == number}
    return bool(proofs) and all(
        proof.fingerprint in newer and proof_is_fresh(proof, now, observed.probe_interval) for proof in proofs
    )


def _retirement_instants(where: Where, observed: Observed) -> Iterator[datetime]:
    for generation in observed.generations.get(where[0], ()):
        yield from (generation.issued_at + KEEP_TIME, generation.not_after)
    for proof in observed.proofs.get(where, ()):
        heard_at = proof.heard_at or proof.at
        yield from (heard_at - observed.probe_interval, heard_at + 2 * observed.probe_interval)


# What left the config


def _orphaned(where: Where, observed: Observed, now: datetime, *, is_forgotten: bool) -> Step | None:
    """Return what may go of an orphan at one consumer; nothing is taken from under a running offer."""
    if where in observed.offered:
        return None
    if is_forgotten:
        return Clear(*where, reason=Reason.ASKED_FOR)
    live = observed.live.get(where)
    numbers = sorted({*observed.published.get(where, ()), *([live] if live is not None else [])})
    expired = [n for n in numbers if observed.clock_trusted and _is_expired(n, where, observed, now)]
    if len(expired) == len(numbers):
        return Clear(*where)
    return next((Retire(*where, number) for number in expired if number != live), None)


def _is_expired(number: int, where: Where, observed: Observed, now: datetime) -> bool:
    """Whether a generation that left the config has expired; one that the store does not know is left alone."""
    generations = observed.generations.get(where[0], ())
    return any(g.number == number and g.not_after <= now for g in generations)


def _forgotten_certificates(desired: Desired, observed: Observed, now: datetime) -> Iterator[Wish]:
    """Wish that orphans are forgotten here once neither the share nor a consumer's list has them."""
    orphans = (observed.generations.keys() | observed.forgotten) - desired.certificates.keys()
    if not orphans:
        return
    elsewhere = {where[0] for where in (*_on_the_share(observed), *observed.offered)}
    for name in sorted(orphans - elsewhere):
        expiries = [g.not_after for g in observed.generations.get(name, ())]
        yield from expiries
        attempt = observed.attempts.get(name)
        if attempt is not None:
            yield from holding_instants(attempt.not_before, LONGEST_SHORT_WAIT)
        if attempt_holds(attempt, now, LONGEST_SHORT_WAIT):
            continue
        if name in observed.forgotten:
            yield Forget(name, reason=Reason.ASKED_FOR)
        elif observed.clock_trusted and max(expiries) <= now:
            yield Forget(name)


def _forgotten_consumers(desired: Desired, observed: Observed, now: datetime) -> Iterator[Wish]:
    orphans = observed.forgotten_consumers - desired.consumers.keys()
    offered = {where[1] for where in observed.offered} if orphans else set()
    for name in sorted(orphans - offered):
        attempt = observed.attempts.get(consumer_subject(name))
        if not attempt_holds(attempt, now, LONGEST_SHORT_WAIT):
            yield ForgetConsumer(name)
        elif attempt is not None:
            yield from holding_instants(attempt.not_before, LONGEST_SHORT_WAIT)
