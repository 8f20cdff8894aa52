"""Our own looks at the way of the challenge: how long one is good for an order, and when the next is due."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import datetime, timedelta

from certfan.core.model import Certificate, Desired, PathCheck, Reason
from certfan.core.policy import LONGEST_SHORT_WAIT, UNREACHABLE_DELAYS, attempt_holds, holding_instants
from certfan.core.steps import CheckPath, Observed, Wish
from certfan.core.subjects import path_subject

CHECK_IS_GOOD_FOR = timedelta(minutes=10)  # before an order
CANARY = timedelta(hours=6)  # between looks that nobody waits for


def checked_identifiers(certificate: Certificate) -> tuple[str, ...]:
    """Return what of a certificate the authority comes to over http-01."""
    return tuple(str(i) for i in certificate.identifiers if not i.value.startswith("*."))


def is_fresh(check: PathCheck, now: datetime) -> bool:
    """Whether what a look said still counts; a failure does until the next look."""
    return check.problem is not None or check.at <= now < check.at + CHECK_IS_GOOD_FOR


def fresh_instants(certificate: Certificate, observed: Observed) -> Iterator[datetime]:
    """Tell when `is_fresh` can change its answer for anything of a certificate."""
    for identifier in checked_identifiers(certificate):
        if (check := observed.checks.get(identifier)) is not None:
            yield from (check.at, check.at + CHECK_IS_GOOD_FOR)


def looks(desired: Desired, observed: Observed, wanted: Collection[str], now: datetime) -> Iterator[Wish]:
    """Wish for a look at every name now and then, and at once where an order waits for it."""
    if not observed.self_check:
        return
    named = (i for certificate in desired.certificates.values() for i in checked_identifiers(certificate))
    for identifier in sorted(set(named)):
        yield from _look(identifier, observed, now, is_wanted=identifier in wanted)


def _look(identifier: str, observed: Observed, now: datetime, *, is_wanted: bool) -> Iterator[Wish]:
    attempt = observed.attempts.get(path_subject(identifier))
    if attempt is not None:  # not the path, the look at it has failed
        yield from holding_instants(attempt.not_before, LONGEST_SHORT_WAIT)
    is_held = attempt_holds(attempt, now, LONGEST_SHORT_WAIT)
    check = observed.checks.get(identifier)
    if check is None:
        if not is_held:
            yield CheckPath(identifier, reason=Reason.MISSING)
        return
    due = check.at + _look_again_after(check, is_wanted=is_wanted)
    yield from (check.at, check.at + CHECK_IS_GOOD_FOR, due)
    if not is_held and (due <= now or check.at > now):
        yield CheckPath(identifier)


def _look_again_after(check: PathCheck, *, is_wanted: bool) -> timedelta:
    if check.problem is not None:
        return UNREACHABLE_DELAYS[min(check.failures, len(UNREACHABLE_DELAYS)) - 1]
    return CHECK_IS_GOOD_FOR if is_wanted else CANARY
